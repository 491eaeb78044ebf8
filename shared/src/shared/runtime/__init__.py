"""The life of a process: settings, logs, start and stop, verified sessions."""
