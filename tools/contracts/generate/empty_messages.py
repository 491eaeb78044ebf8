"""The rules that an empty message breaks: they show which fields a request must have."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from protovalidate import EvaluationError, Validator, Violation

from tools.contracts.generate.descriptors import Contracts

__all__ = ["EmptyMessages"]

_CEL: Final = ("cel", "cel_expression")


class EmptyMessages:
    """Validates empty messages of a contract."""

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self._validator = Validator()  # it caches messages by name, which differ between contracts
        self._plain_validator = Validator()

    def violations(self, message: Any) -> Sequence[Violation]:
        """Return the violations of an empty message.

        If an expression cannot be applied to it, those of the rules that are not CEL.
        """
        try:
            return self._validator.collect_violations(GetMessageClass(message)())
        except EvaluationError:
            plain = self._without_cel.FindMessageTypeByName(message.full_name)
            return self._plain_validator.collect_violations(GetMessageClass(plain)())

    @cached_property
    def _without_cel(self) -> DescriptorPool:
        pool = DescriptorPool()
        for file in self._contracts.parsed_files:
            for message in file.message_type:
                self._remove_cel(message)
            pool.AddSerializedFile(file.SerializeToString())
        return pool

    def _remove_cel(self, message: Any) -> None:
        find = self._contracts.pool.FindExtensionByName
        _clear(message.options, find, "buf.validate.message")
        for field in message.field:
            _clear(field.options, find, "buf.validate.field")
        for nested in message.nested_type:
            self._remove_cel(nested)


def _clear(options: Any, find: Any, extension: str) -> None:
    try:
        found = find(extension)
    except KeyError:  # no file imports the rules
        return
    if options.HasExtension(found):
        _clear_rules(options.Extensions[found])


def _clear_rules(rules: Message) -> None:
    """Remove the expressions of rules, and of the rules for items, keys and values in them."""
    for field, value in rules.ListFields():
        if field.name in _CEL:
            rules.ClearField(field.name)
        elif field.message_type is not None and not field.is_repeated:
            _clear_rules(value)
