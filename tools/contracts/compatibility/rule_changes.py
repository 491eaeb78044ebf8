"""Rules on constraints: buf.validate and google.api.field_behavior.

A tightened constraint breaks writers of the message; a loosened one breaks readers, who rely on it.
A looser limit (length, items, bound) of a message that clients write, too, is a notice. Constraints
in text (pattern, CEL) cannot be compared: their changes break both.
"""

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from protovalidate import CompilationError

from postbus_runtime.fields import oneof_of
from tools.contracts.compatibility.constraint_facts import (
    IGNORE,
    LOWER,
    UPPER,
    Facts,
    facts_of_field,
    facts_of_message,
    show,
    split_rule,
)
from tools.contracts.compatibility.findings import Breaks, Change, callers, every_use, readers
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.message_changes import same_type
from tools.contracts.compatibility.surface import Pair

__all__ = ["field_constraints", "message_constraints", "new_fields_required"]

_UUID_LENGTH: Final = 36


def field_constraints(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield changes of the rules of a field with the same type."""
    before, after = facts_of_field(pair.old, pair.before), facts_of_field(pair.new, pair.after)
    if same_type(pair) and pair.before.is_repeated == pair.after.is_repeated:
        yield from _compare(pair.after.full_name, before, after)


def message_constraints(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield changes of the rules of a message and its oneofs."""
    common = {each.json_name for each in pair.before.fields}
    common &= {each.json_name for each in pair.after.fields}
    before = facts_of_message(pair.old, pair.before, common)
    after = facts_of_message(pair.new, pair.after, common)
    yield from _compare(pair.after.full_name, before, after)


def new_fields_required(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield new required fields, by the rules that an empty message breaks."""
    added = {
        field.name: field
        for field in pair.after.fields
        if field.number not in pair.before.fields_by_number
        and field.json_name not in {each.json_name for each in pair.before.fields}
    }
    missing = _missing_in_empty(pair) if added else {}
    for name, field in added.items():
        behavior = "REQUIRED" in pair.new.behaviors(field)
        if oneof_of(field) is None and (behavior or name in missing):
            yield Change(
                name=field.full_name,
                kind=Kind.NEW_FIELD_REQUIRED,
                before="none",
                after="google.api.field_behavior REQUIRED" if behavior else missing[name],
                breaks=callers,
            )


def _missing_in_empty(pair: Pair[Descriptor]) -> dict[str, str]:
    """Return the fields that an empty message lacks, with the rule that requires them."""
    try:
        found = pair.new.violations_of_empty(pair.after)
    except CompilationError as error:
        raise ValueError(f"{pair.after.full_name}: {error}") from None
    return {
        violation.proto.field.elements[0].field_name: violation.proto.rule_id
        for violation in found
        if violation.proto.field and violation.proto.field.elements
    }


def _compare(name: str, before: Facts, after: Facts) -> Iterator[Change]:
    yield from _renamed(name, before, after)
    before, after = _comparable(before, after), _comparable(after, before)
    for rule in sorted(before.keys() | after.keys()):
        old, new = (facts.get(rule, _implied(rule, facts)) for facts in (before, after))
        if old != new and not _is_idle(rule, before, after):
            kind, breaks = _verdict(split_rule(rule)[1], old, new)
            yield Change(
                name=name,
                kind=kind,
                detail=rule,
                before=show(old),
                after=show(new),
                breaks=breaks,
                relaxes=kind is Kind.RULE_LOOSENED and _is_limit(split_rule(rule)[1], new),
            )


def _is_limit(rule: str, after: Any) -> bool:
    """Return whether a rule that is now looser only limits the values: a list may get longer."""
    return rule in UPPER | LOWER | {"not_in"} or (rule == "in" and after is not None)


def _comparable(facts: Facts, other: Facts) -> Facts:
    """Return rules with a constant as a list of one value, if the other rules have a list."""
    found = {}
    for rule, value in facts.items():
        prefix, name = split_rule(rule)
        listed = name == "const" and f"{prefix}in" in other
        found[f"{prefix}in" if listed else rule] = frozenset({value}) if listed else value
    return found


def _renamed(name: str, before: Facts, after: Facts) -> Iterator[Change]:
    """Yield CEL expressions with another id, which violations have."""
    for rule, expression in before.items():
        new = (each for each in after if each not in before and after[each] == expression)
        now = next((each for each in new if split_rule(each) == split_rule(rule)), None)
        if split_rule(rule)[1] == "cel" and rule not in after and now is not None:
            ids = (each.partition(" ")[2] for each in (rule, now))
            kind = Kind.RULE_RENAMED
            yield Change(name=name, kind=kind, before=next(ids), after=next(ids), breaks=callers)


def _implied(rule: str, facts: Facts) -> int | None:
    """Return the length that `string.uuid` implies, if `rule` bounds the length beside it."""
    prefix, bound = split_rule(rule)
    implied = bound in ("min_len", "max_len") and facts.get(f"{prefix}uuid")
    return _UUID_LENGTH if implied else None


def _is_idle(rule: str, before: Facts, after: Facts) -> bool:
    """Return whether a rule has no effect: `ignore` alone, or a CEL expression with another id."""
    if split_rule(rule)[1] == "ignore":
        return not (before.keys() - {rule} and after.keys() - {rule})
    expression, other = (before[rule], after) if rule in before else (after[rule], before)
    same = (each for each in other if split_rule(each) == split_rule(rule))
    return (
        split_rule(rule)[1] == "cel"
        and rule not in other
        and expression in (other[each] for each in same)
    )


_Verdict = tuple[Kind, Breaks]
_TIGHTENED: Final[_Verdict] = (Kind.RULE_TIGHTENED, callers)
_LOOSENED: Final[_Verdict] = (Kind.RULE_LOOSENED, readers)
_CHANGED: Final[_Verdict] = (Kind.RULE_CHANGED, every_use)


def _verdict(rule: str, old: Any, new: Any) -> _Verdict:
    if rule == "ignore":
        return _LOOSENED if _ignore_rank(new) > _ignore_rank(old) else _TIGHTENED
    if rule == "strict":
        return _LOOSENED if new is False else _TIGHTENED
    if old is None or new is None:
        return _TIGHTENED if old is None else _LOOSENED
    if rule in UPPER:
        return _TIGHTENED if new < old else _LOOSENED
    if rule in LOWER:
        return _TIGHTENED if new > old else _LOOSENED
    if rule in ("in", "not_in") and (new < old or new > old):
        return _TIGHTENED if (new < old) == (rule == "in") else _LOOSENED
    return _CHANGED


def _ignore_rank(name: str | None) -> int:
    return IGNORE.index(name) if name else 0
