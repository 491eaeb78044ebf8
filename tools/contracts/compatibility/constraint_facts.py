"""The constraints of fields and messages as comparable values."""

from collections.abc import Set
from decimal import Decimal
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from postbus_runtime.options import enum_name
from tools.contracts.compatibility.surface import Surface

__all__ = [
    "IGNORE",
    "LOWER",
    "UPPER",
    "Facts",
    "facts_of_field",
    "facts_of_message",
    "show",
    "split_rule",
]

Facts = dict[str, Any]
"""Values of rules by their dotted names."""

IGNORE: Final = ("IGNORE_UNSPECIFIED", "IGNORE_IF_ZERO_VALUE", "IGNORE_ALWAYS")
"""From the strictest to the loosest."""
UPPER: Final = frozenset({"max_len", "max_bytes", "max_items", "max_pairs", "lte"})
LOWER: Final = frozenset({"min_len", "min_bytes", "min_items", "min_pairs", "gte"})
_FALSE: Final = ("const", "strict")
"""Flags that differ from unset ones if they are false."""
_EXACT: Final = {"len": ("min_len", "max_len"), "len_bytes": ("min_bytes", "max_bytes")}
_STRICT: Final = {"gt": ("gte", 1), "lt": ("lte", -1)}


def facts_of_field(surface: Surface, field: FieldDescriptor) -> Facts:
    """Return the normalized rules of a field, by dotted names as in violations."""
    rules = surface.foreign_option(field, "buf.validate.field")
    facts = {} if rules is None else _canonical(_flat(rules))
    if "REQUIRED" in surface.behaviors(field):
        facts["google.api.field_behavior REQUIRED"] = True
    return facts


def facts_of_message(surface: Surface, message: Descriptor, common: Set[str]) -> Facts:
    """Return the rules of a message and its oneofs.

    A oneof has the JSON name of its first member that is in `common`: its own is never sent.
    """
    rules = surface.foreign_option(message, "buf.validate.message")
    facts = {} if rules is None else _flat(rules)
    for oneof in message.oneofs:
        oneof_rules = surface.foreign_option(oneof, "buf.validate.oneof")
        if oneof_rules is not None and oneof_rules.required:
            members = sorted(each.json_name for each in oneof.fields if each.json_name in common)
            facts[f"oneof with {(*members, oneof.name)[0]} required"] = True
    return facts


def _flat(rules: Any, prefix: str = "") -> Facts:
    """Return the rules that are set, by dotted names as in violations."""
    facts: Facts = {}
    for field, value in rules.ListFields():
        name = prefix + field.name
        if field.name == "cel":
            facts |= {f"{prefix}cel {rule.id}": rule.expression for rule in value}
        elif field.name == "cel_expression":
            facts |= {f"{prefix}cel {expression}": expression for expression in value}
        elif field.name == "oneof":
            facts |= _message_oneofs(value)
        elif field.name == "example" or (value is False and field.name not in _FALSE):
            continue
        elif field.is_repeated:
            facts[name] = frozenset(_plain(each) for each in value)
        elif field.message_type and not _is_time(value):
            facts |= _flat(value, name + ".")
        elif field.enum_type:
            facts[name] = enum_name(rules, field.name)
        else:
            facts[name] = _plain(value)
    return facts


def _message_oneofs(rules: Any) -> Facts:
    facts: Facts = {}
    for rule in rules:
        name = f"oneof of {', '.join(rule.fields)}"
        facts[name] = True
        if rule.required:
            facts[f"{name} required"] = True
    return facts


def _is_time(value: Any) -> bool:
    return value.DESCRIPTOR.full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp")


def _plain(value: Any) -> Any:
    """Return durations and timestamps as exact numbers, and other values unchanged."""
    if not hasattr(value, "DESCRIPTOR"):
        return value
    if not value.nanos:
        return Decimal(value.seconds)
    return (value.seconds + Decimal(value.nanos).scaleb(-9)).normalize()


def _canonical(facts: Facts) -> Facts:
    """Normalize rules: bounds to gte and lte, exact lengths to both, ignored rules to none."""
    canonical: Facts = {}
    for name, value in facts.items():
        prefix, rule = split_rule(name)
        if facts.get(_ignore_of(prefix)) == IGNORE[-1]:
            continue
        if rule in _EXACT:
            canonical |= {prefix + each: value for each in _EXACT[rule]}
        elif rule in _STRICT:
            bound, step = _STRICT[rule]
            canonical[prefix + bound] = _past(value, step)
        elif rule not in LOWER or rule == "gte" or value:
            canonical[name] = (value, 0) if rule in ("gte", "lte") else value
    return _exclusive(canonical)


def split_rule(name: str) -> tuple[str, str]:
    """Split `string.max_len` into `string.` and `max_len`; an id may follow after a blank."""
    rule = name.partition(" ")[0].rpartition(".")[2]
    return name.partition(" ")[0].removesuffix(rule), rule


def _ignore_of(prefix: str) -> str:
    """Return the rule `ignore` that applies to a prefix: `ignore`, `repeated.items.ignore`, …"""
    holders = ("repeated.items.", "map.keys.", "map.values.")
    return next((each for each in holders if prefix.startswith(each)), "") + "ignore"


def _past(value: Any, step: int) -> tuple[Any, int]:
    """Return an exclusive bound; for an integer, the next value as an inclusive bound."""
    return (value + step, 0) if isinstance(value, int) else (value, step)


def _exclusive(facts: Facts) -> Facts:
    """Merge bounds that exclude a range (lower above upper), which cannot be compared singly."""
    for name in [each for each in facts if each.endswith(".gte")]:
        upper = name.removesuffix("gte") + "lte"
        if upper in facts and facts[name] > facts[upper]:
            outside = f"to {show(facts.pop(upper))}, from {show(facts.pop(name))}"
            facts[name.removesuffix("gte") + "outside"] = outside
    return facts


def show(value: Any) -> str:
    """Return the value of a rule as text."""
    if value is None:
        return "none"
    if isinstance(value, tuple) and value[1] in (-1, 0, 1):
        return f"{value[0]} excluded" if value[1] else str(value[0])
    if isinstance(value, frozenset):
        return f"[{', '.join(map(str, sorted(value)))}]"
    return str(value)
