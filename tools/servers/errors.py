"""The error of this package."""


class ServersUnavailableError(Exception):
    """A server cannot be provided. The text gives the cause and the remedy for the user."""
