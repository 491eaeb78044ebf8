"""Rules on constraints: buf.validate and google.api.field_behavior.

Tightened, they break those who write the message; loosened, those who read it and rely on them.
Where text decides (pattern, CEL), nobody can tell: such a change breaks both.
"""

from collections.abc import Iterator
from typing import Any, Final

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from tools.contracts.compatibility.findings import Breaks, Change, anyone, callers, readers
from tools.contracts.compatibility.message_changes import real_oneof, same_type
from tools.contracts.compatibility.surface import Pair, Surface

__all__ = ["field_constraints", "message_constraints", "new_fields_required"]

Facts = dict[str, Any]

_REQUIRED = 2
_IGNORE_ALWAYS = 3
_UPPER: Final = frozenset({"max_len", "max_bytes", "max_items", "max_pairs", "lte"})
_LOWER: Final = frozenset({"min_len", "min_bytes", "min_items", "min_pairs", "gte"})
_EXACT: Final = {"len": ("min_len", "max_len"), "len_bytes": ("min_bytes", "max_bytes")}
_STRICT: Final = {"gt": ("gte", 1), "lt": ("lte", -1)}
_UUID_LENGTH: Final = 36


def field_constraints(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """The rules of a field, while its type is the same."""
    before, after = _of_field(pair.old, pair.before), _of_field(pair.new, pair.after)
    if same_type(pair) and pair.before.is_repeated == pair.after.is_repeated:
        yield from _compare(pair.after.full_name, before, after)


def message_constraints(pair: Pair[Descriptor]) -> Iterator[Change]:
    """The rules of a message and its oneofs."""
    before, after = _of_message(pair.old, pair.before), _of_message(pair.new, pair.after)
    yield from _compare(pair.after.full_name, before, after)


def new_fields_required(pair: Pair[Descriptor]) -> Iterator[Change]:
    """A new field that may not be left out: an empty message, validated, tells which."""
    added = {
        field.name: field
        for field in pair.after.fields
        if field.number not in pair.before.fields_by_number
        and field.json_name not in {each.json_name for each in pair.before.fields}
    }
    refused = _refused_if_empty(pair.after) if added else {}
    for name, field in added.items():
        behavior = _is_required(pair.new, field)
        if real_oneof(field) is None and (behavior or name in refused):
            yield Change(
                name=field.full_name,
                what="new field required",
                before="none",
                after="google.api.field_behavior REQUIRED" if behavior else refused[name],
                breaks=callers,
            )


def _refused_if_empty(message: Descriptor) -> dict[str, str]:
    """The fields that break a rule when nothing is set, with the rule."""
    try:
        # A validator of its own: one remembers types by name, and they differ between the sets.
        found = protovalidate.Validator().collect_violations(GetMessageClass(message)())
    except (protovalidate.CompilationError, protovalidate.EvaluationError) as error:
        raise ValueError(f"{message.full_name}: {error}") from None
    return {
        violation.proto.field.elements[0].field_name: violation.proto.rule_id
        for violation in found
        if violation.proto.field and violation.proto.field.elements
    }


def _is_required(surface: Surface, field: FieldDescriptor) -> bool:
    return _REQUIRED in (surface.raw_option(field, "google.api.field_behavior") or ())


def _of_field(surface: Surface, field: FieldDescriptor) -> Facts:
    rules = surface.raw_option(field, "buf.validate.field")
    facts = {} if rules is None else _canonical(_flat(rules))
    if _is_required(surface, field):
        facts["google.api.field_behavior REQUIRED"] = True
    return facts


def _of_message(surface: Surface, message: Descriptor) -> Facts:
    rules = surface.raw_option(message, "buf.validate.message")
    facts = {} if rules is None else _flat(rules)
    for oneof in message.oneofs:
        if surface.options(oneof, "buf.validate.oneof").get("required"):
            facts[f"oneof {oneof.name} required"] = True
    return facts


def _flat(rules: Any, prefix: str = "") -> Facts:
    """The rules that are set, under dotted names as violations carry them."""
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
    """Durations and timestamps as numbers that compare."""
    return value.seconds + value.nanos / 1e9 if hasattr(value, "DESCRIPTOR") else value


def _canonical(facts: Facts) -> Facts:
    """Say the same in one way: bounds as gte and lte, exact lengths as both, ignored as nothing."""
    canonical: Facts = {}
    for name, value in facts.items():
        prefix, rule = _split(name)
        if facts.get(_ignore_of(prefix)) == _IGNORE_ALWAYS:
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
    """`string.max_len` as `string.` and `max_len`; what follows a blank is an id."""
    rule = name.partition(" ")[0].rpartition(".")[2]
    return name.partition(" ")[0].removesuffix(rule), rule


def _ignore_of(prefix: str) -> str:
    """`ignore` stands beside the kind: `ignore` for `string.`, `repeated.items.ignore`, …"""
    holders = ("repeated.items.", "map.keys.", "map.values.")
    return next((each for each in holders if prefix.startswith(each)), "") + "ignore"


def _past(value: Any, step: int) -> tuple[Any, int]:
    """A bound that excludes its value; a whole number's neighbour includes itself."""
    return (value + step, 0) if isinstance(value, int) else (value, step)


def _exclusive(facts: Facts) -> Facts:
    """A lower bound above the upper one asks for what lies outside: neither half compares."""
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
    """An `ignore` with nothing beside it to ignore; the same CEL expression under another id."""
    if _split(rule)[1] == "ignore":
        return not (before.keys() - {rule} and after.keys() - {rule})
    expression, other = (before[rule], after) if rule in before else (after[rule], before)
    return _split(rule)[1] == "cel" and rule not in other and expression in other.values()


_Verdict = tuple[str, Breaks]
_TIGHTENED: Final[_Verdict] = ("tightened", callers)
_LOOSENED: Final[_Verdict] = ("loosened", readers)
_CHANGED: Final[_Verdict] = ("changed, it can't be decided how", anyone)


def _verdict(rule: str, old: Any, new: Any) -> _Verdict:
    if rule == "ignore":
        return _LOOSENED if (new or 0) > (old or 0) else _TIGHTENED
    if old is None or new is None:
        return _TIGHTENED if old is None else _LOOSENED
    if rule in _UPPER:
        return _TIGHTENED if new < old else _LOOSENED
    if rule in _LOWER:
        return _TIGHTENED if new > old else _LOOSENED
    if rule in ("in", "not_in") and (new < old or new > old):
        return _TIGHTENED if (new < old) == (rule == "in") else _LOOSENED
    return _CHANGED


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple) and value[1] in (-1, 0, 1):
        return f"{value[0]} excluded" if value[1] else str(value[0])
    if isinstance(value, frozenset):
        return f"[{', '.join(map(str, sorted(value)))}]"
    return str(value)
