"""Records the commands that a client sends to MongoDB, for `explain`."""

from typing import Any, Final

from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

__all__ = ["EXPLAINED", "SentCommands"]

Document = dict[str, Any]
EXPLAINED: Final = ("find", "aggregate", "update", "delete", "findAndModify")


class SentCommands(CommandListener):
    """Records commands that MongoDB can explain."""

    def __init__(self) -> None:
        self._commands: list[Document] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name in EXPLAINED:
            self._commands.append(dict(event.command))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Ignore the event."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Ignore the event."""

    def take(self) -> list[Document]:
        """Return the commands since the last call, as arguments of `explain`."""
        commands, self._commands = self._commands, []
        return [_bare(each) for command in commands for each in _singles(command)]


def _singles(command: Document) -> list[Document]:
    """Return a command for each statement of a batch, because `explain` takes one."""
    for statements in ("updates", "deletes"):
        if statements in command:
            return [{**command, statements: [each]} for each in command[statements]]
    return [command]


def _bare(command: Document) -> Document:
    """Return a command without the fields of its session."""
    return {
        name: value
        for name, value in command.items()
        if not name.startswith("$") and name not in ("lsid", "writeConcern")
    }
