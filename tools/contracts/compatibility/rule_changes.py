"""Rules on constraints: buf.validate and google.api.field_behavior.

A tightened constraint breaks writers of the message; a loosened one breaks readers, who rely on it.
Constraints in text (pattern, CEL) cannot be compared: their changes break both.
"""

from collections.abc import Iterator
from typing import Any, Final

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from postbus_runtime.fields import oneof_of
from postbus_runtime.options import enum_name
from tools.contracts.compatibility.findings import Breaks, Change, callers, every_use, readers
from tools.contracts.compatibility.message_changes import same_type
from tools.contracts.compatibility.surface import Pair, Surface

__all__ = ["field_constraints", "message_constraints", "new_fields_required"]

Facts = dict[str, Any]

_IGNORE: Final = ("IGNORE_UNSPECIFIED", "IGNORE_IF_ZERO_VALUE", "IGNORE_ALWAYS")
"""From the strictest to the loosest."""
_UPPER: Final = frozenset({"max_len", "max_bytes", "max_items", "max_pairs", "lte"})
_LOWER: Final = frozenset({"min_len", "min_bytes", "min_items", "min_pairs", "gte"})
_EXACT: Final = {"len": ("min_len", "max_len"), "len_bytes": ("min_bytes", "max_bytes")}
_STRICT: Final = {"gt": ("gte", 1), "lt": ("lte", -1)}
_UUID_LENGTH: Final = 36


def field_constraints(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield changes of the rules of a field with the same type."""
    before, after = _of_field(pair.old, pair.before), _of_field(pair.new, pair.after)
    if same_type(pair) and pair.before.is_repeated == pair.after.is_repeated:
        yield from _compare(pair.after.full_name, before, after)


def message_constraints(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield changes of the rules of a message and its oneofs."""
    before, after = _of_message(pair.old, pair.before), _of_message(pair.new, pair.after)
    yield from _compare(pair.after.full_name, before, after)


def new_fields_required(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield new required fields: those whose absence in an empty message breaks a rule."""
    added = {
        field.name: field
        for field in pair.after.fields
        if field.number not in pair.before.fields_by_number
        and field.json_name not in {each.json_name for each in pair.before.fields}
    }
    missing = _missing_in_empty(pair.after) if added else {}
    for name, field in added.items():
        behavior = _is_required(pair.new, field)
        if oneof_of(field) is None and (behavior or name in missing):
            yield Change(
                name=field.full_name,
                what="new field required",
                before="none",
                after="google.api.field_behavior REQUIRED" if behavior else missing[name],
                breaks=callers,
            )


def _missing_in_empty(message: Descriptor) -> dict[str, str]:
    """Return the fields whose absence in an empty message breaks a rule, with the rule."""
    try:
        # A validator caches types by name, and they differ between the sets.
        found = protovalidate.Validator().collect_violations(GetMessageClass(message)())
    except (protovalidate.CompilationError, protovalidate.EvaluationError) as error:
        raise ValueError(f"{message.full_name}: {error}") from None
    return {
        violation.proto.field.elements[0].field_name: violation.proto.rule_id
        for violation in found
        if violation.proto.field and violation.proto.field.elements
    }


def _is_required(surface: Surface, field: FieldDescriptor) -> bool:
    return "REQUIRED" in surface.behaviors(field)


def _of_field(surface: Surface, field: FieldDescriptor) -> Facts:
    rules = surface.foreign_option(field, "buf.validate.field")
    facts = {} if rules is None else _canonical(_flat(rules))
    if _is_required(surface, field):
        facts["google.api.field_behavior REQUIRED"] = True
    return facts


def _of_message(surface: Surface, message: Descriptor) -> Facts:
    rules = surface.foreign_option(message, "buf.validate.message")
    facts = {} if rules is None else _flat(rules)
    for oneof in message.oneofs:
        oneof_rules = surface.foreign_option(oneof, "buf.validate.oneof")
        if oneof_rules is not None and oneof_rules.required:
            facts[f"oneof {oneof.name} required"] = True
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
        elif field.name == "example" or value is False:
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
    """Return durations and timestamps as comparable numbers, and other values unchanged."""
    return value.seconds + value.nanos / 1e9 if hasattr(value, "DESCRIPTOR") else value


def _canonical(facts: Facts) -> Facts:
    """Normalize rules: bounds to gte and lte, exact lengths to both, ignored rules to none."""
    canonical: Facts = {}
    for name, value in facts.items():
        prefix, rule = _split(name)
        if facts.get(_ignore_of(prefix)) == _IGNORE[-1]:
            continue
        if rule in _EXACT:
            canonical |= {prefix + each: value for each in _EXACT[rule]}
        elif rule in _STRICT:
            bound, step = _STRICT[rule]
            canonical[prefix + bound] = _past(value, step)
        elif rule not in _LOWER or rule == "gte" or value:
            canonical[name] = (value, 0) if rule in ("gte", "lte") else value
    return _exclusive(canonical)


def _split(name: str) -> tuple[str, str]:
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
            outside = f"to {_show(facts.pop(upper))}, from {_show(facts.pop(name))}"
            facts[name.removesuffix("gte") + "outside"] = outside
    return facts


def _compare(name: str, before: Facts, after: Facts) -> Iterator[Change]:
    for rule in sorted(before.keys() | after.keys()):
        old, new = (facts.get(rule, _implied(rule, facts)) for facts in (before, after))
        if old != new and not _is_idle(rule, before, after):
            word, breaks = _verdict(_split(rule)[1], old, new)
            what = f"constraint {word}: {rule}"
            yield Change(name=name, what=what, before=_show(old), after=_show(new), breaks=breaks)


def _implied(rule: str, facts: Facts) -> int | None:
    """Return the length that `string.uuid` implies, if `rule` bounds the length beside it."""
    prefix, bound = _split(rule)
    implied = bound in ("min_len", "max_len") and facts.get(f"{prefix}uuid")
    return _UUID_LENGTH if implied else None


def _is_idle(rule: str, before: Facts, after: Facts) -> bool:
    """Return whether a rule has no effect: `ignore` alone, or a CEL expression with another id."""
    if _split(rule)[1] == "ignore":
        return not (before.keys() - {rule} and after.keys() - {rule})
    expression, other = (before[rule], after) if rule in before else (after[rule], before)
    return _split(rule)[1] == "cel" and rule not in other and expression in other.values()


_Verdict = tuple[str, Breaks]
_TIGHTENED: Final[_Verdict] = ("tightened", callers)
_LOOSENED: Final[_Verdict] = ("loosened", readers)
_CHANGED: Final[_Verdict] = ("changed, effect unknown", every_use)


def _verdict(rule: str, old: Any, new: Any) -> _Verdict:
    if rule == "ignore":
        return _LOOSENED if _ignore_rank(new) > _ignore_rank(old) else _TIGHTENED
    if old is None or new is None:
        return _TIGHTENED if old is None else _LOOSENED
    if rule in _UPPER:
        return _TIGHTENED if new < old else _LOOSENED
    if rule in _LOWER:
        return _TIGHTENED if new > old else _LOOSENED
    if rule in ("in", "not_in") and (new < old or new > old):
        return _TIGHTENED if (new < old) == (rule == "in") else _LOOSENED
    return _CHANGED


def _ignore_rank(name: str | None) -> int:
    return _IGNORE.index(name) if name else 0


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple) and value[1] in (-1, 0, 1):
        return f"{value[0]} excluded" if value[1] else str(value[0])
    if isinstance(value, frozenset):
        return f"[{', '.join(map(str, sorted(value)))}]"
    return str(value)
