"""The foundation of every service: bus, codec, errors, identity, databases, process runtime."""
