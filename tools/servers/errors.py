"""The error of servers that cannot be provided."""


class ServersUnavailableError(Exception):
    """Raised if a server cannot be provided. The text gives the cause and the remedy."""
