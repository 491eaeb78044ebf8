"""The error of this package."""


class InfrastructureError(Exception):
    """A server cannot be provided. The text gives the cause and the remedy for the user."""
