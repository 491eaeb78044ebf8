"""Checks of the rules of `buf.validate`: they compile for their types, and can be kept."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from protovalidate import CompilationError, EvaluationError, Validator

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import is_map, value_of
from tools.contracts.generate.descriptors import Contracts
from tools.paths import VENV

__all__ = ["compile_rules", "enum_errors", "require_consistent_rules"]

_LINT: Final = json.dumps(
    {
        "version": "v2",
        "modules": [
            {"path": "proto", "lint": {"use": ["PROTOVALIDATE"]}},
            {"path": ".dev/third_party", "lint": {"ignore": [".dev/third_party"]}},
        ],
    }
)
"""Configuration of buf with one rule, which checks CEL against the types of fields."""


def require_consistent_rules(contracts: Contracts, project: Path) -> None:
    """Raise SystemExit with file, line, field and rule id for each faulty rule in `project`/proto.

    A rule is faulty if its CEL does not compile or has the wrong types, if it is not for the type
    of its field, or if it contradicts another rule.
    """
    result = subprocess.run(
        ["buf", "lint", "--error-format=json", "--config", _LINT],
        cwd=project,
        env=os.environ | {"PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.stderr:  # buf itself failed
        sys.exit(result.stderr)
    if faults := [_explained(contracts, json.loads(line)) for line in result.stdout.splitlines()]:
        sys.exit("\n".join(f"gen: {fault}" for fault in faults))


def _explained(contracts: Contracts, fault: dict[str, Any]) -> str:
    """Return a fault of buf as `proto/FILE:LINE: TEXT`, with the id of a rule in CEL."""
    line, column = fault.get("start_line", 1), fault.get("start_column", 1)
    name = Path(fault["path"]).relative_to("proto").as_posix()
    rule = contracts.option_at(name, line - 1, column - 1)
    id_ = f"rule {rule.id!r}: " if rule is not None and getattr(rule, "id", None) else ""
    return f"{fault['path']}:{line}: {id_}{fault['message']}"


def enum_errors(contracts: Contracts) -> Iterator[ContractError]:
    """Yield an error for each enum field whose rules name no value, or leave none."""
    for message in contracts.messages:
        for field in message.fields:
            enum = value_of(field).enum_type
            if enum is not None:
                yield from _of_enum(field, enum, _rules_of_value(contracts, field).enum)


def _rules_of_value(contracts: Contracts, field: FieldDescriptor) -> Any:
    rules = contracts.rules(field)
    if is_map(field):
        return rules.map.values
    return rules.repeated.items if field.is_repeated else rules


def _of_enum(field: FieldDescriptor, enum: EnumDescriptor, rules: Any) -> Iterator[ContractError]:
    known = set(enum.values_by_number)
    wanted = {rules.const} if rules.HasField("const") else set(getattr(rules, "in"))
    for number in sorted(wanted - known):
        yield ContractError(field, f"a rule names {number}, which {enum.full_name} does not have")
    if not (wanted or known) - set(rules.not_in):
        yield ContractError(field, f"its rules exclude every value of {enum.full_name}")


def compile_rules(contracts: Contracts) -> None:
    """Raise ContractError for the first message with a rule that the validator cannot compile.

    A rule that cannot be applied to an empty message is accepted.
    """
    validator = Validator()  # it caches messages by name, which differ between contracts
    for message in contracts.messages:
        try:
            validator.collect_violations(GetMessageClass(message)())
        except CompilationError as error:
            raise ContractError(message, str(error).splitlines()[0]) from None
        except EvaluationError:
            continue
