"""The error of accounts that cannot be made."""

from collections.abc import Sequence


class MissingRightsError(Exception):
    """Raised if the administrator's account may not make the accounts of the services.

    `commands` are what an administrator has to run; they contain `PASSWORD` in place of passwords.
    """

    def __init__(self, cause: str, commands: Sequence[str]) -> None:
        super().__init__(cause)
        self.commands = tuple(commands)
