"""The runtime of a process: settings, logs, start and stop, verification of sessions."""
