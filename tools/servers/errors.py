"""The one error of this package."""


class InfrastructureError(Exception):
    """A server can't be had; the text says why and what to do, and is printed as it is."""
