"""Messages with every kind of field, generated as by `just gen`, and strategies for examples."""

import importlib
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_tools import protoc
from hypothesis import strategies as st

from tools.contracts.generate.message_classes import with_optional_times, with_runtime_classes
from tools.contracts.generate.package_modules import write_package_modules

__all__ = ["DURATIONS", "TIMES", "Kinds", "canonical", "examples", "fill"]

_F = FieldDescriptor
_PROTO = Path(__file__).with_name("kinds.proto")


class Kinds:
    """The generated package: its messages, the messages of plain betterproto, and the codecs."""

    def __init__(self, folder: Path) -> None:
        self.messages, self.plain, codec = _build(folder)
        self.codecs = {kind.__name__: each for kind, each in codec.CODECS.items()}
        self.descriptors = folder / "kinds/contracts.binpb"

    def google(self, name: str, values: dict[str, Any]) -> Any:
        return fill(self.codecs[name].upb(), values)

    def encode(self, message: Any) -> Any:
        """Return the message that google's parser reads from the encoded bytes."""
        codec = self.codecs[type(message).__name__]
        target = codec.upb()
        codec.write(message, target)
        return codec.upb.FromString(target.SerializeToString())


def _build(target: Path) -> tuple[ModuleType, ModuleType, ModuleType]:
    """Generate the package `kinds` below `target` and import it.

    Return its messages, the messages of plain betterproto, and the codec module.
    """
    source = target / "proto/kinds/v1/kinds.proto"
    source.parent.mkdir(parents=True)
    source.write_bytes(_PROTO.read_bytes())
    _compile(source, target)
    (target / "plain").mkdir()
    (target / "plain/__init__.py").touch()
    (target / "kinds/v1").rename(target / "plain/v1")
    rival = target / "plain/v1/__init__.py"
    rival.write_text(with_optional_times(rival.read_text()))
    _compile(source, target)
    module = target / "kinds/v1/__init__.py"
    module.write_text(with_runtime_classes(module.read_text()))
    write_package_modules(target / "kinds")
    sys.path.insert(0, str(target))
    kinds, plain, codec = map(importlib.import_module, ("kinds.v1", "plain.v1", "kinds.codec"))
    return kinds, plain, codec


def _compile(source: Path, target: Path) -> None:
    includes = [f"-I{target / 'proto'}", f"-I{files('grpc_tools').joinpath('_proto')}"]
    (target / "kinds").mkdir(exist_ok=True)
    plugin = Path(sys.executable).with_name("protoc-gen-python_betterproto")
    options = [
        f"--plugin={plugin}",
        f"--python_betterproto_out={target}",
        "--include_imports",
        f"-o{target / 'kinds/contracts.binpb'}",
    ]
    if protoc.main(["protoc", *includes, *options, str(source)]) != 0:
        raise AssertionError("kinds.proto does not compile")


def _integers(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1])


_SCALARS: Final[dict[int, st.SearchStrategy[Any]]] = {
    _F.TYPE_DOUBLE: st.floats(),
    _F.TYPE_FLOAT: st.floats(width=32),
    _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_STRING: st.text(max_size=20),
    _F.TYPE_BYTES: st.binary(max_size=20),
    _F.TYPE_ENUM: st.sampled_from([0, 1, -1, 2**31 - 1, 7]),  # 7 has no name
    **dict.fromkeys((_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32), _integers(32, signed=True)),
    **dict.fromkeys((_F.TYPE_UINT32, _F.TYPE_FIXED32), _integers(32, signed=False)),
    **dict.fromkeys((_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64), _integers(64, signed=True)),
    **dict.fromkeys((_F.TYPE_UINT64, _F.TYPE_FIXED64), _integers(64, signed=False)),
}
_MICROSECOND: Final = 1000
_FIRST: Final = -62135596800
_LAST: Final = 253402300799
_LONGEST: Final = 315_576_000_000
_TAME_SECONDS: Final = 2**32
"""betterproto computes longer durations by inexact floats."""


def _nanos(*, exact: bool) -> st.SearchStrategy[int]:
    """Return a strategy for nanoseconds; `exact` for whole microseconds."""
    micros = st.integers(0, 999_999).map(lambda micros: micros * _MICROSECOND)
    some = micros | st.sampled_from([0, 1000, 999_999_000])
    return some if exact else some | st.integers(0, 999_999_999) | st.sampled_from([1, 999_999_999])


def _times(*, exact: bool) -> st.SearchStrategy[dict[str, int]]:
    seconds = st.integers(_FIRST, _LAST) | st.sampled_from([_FIRST, -1, 0, 1, _LAST])
    return st.fixed_dictionaries({"seconds": seconds, "nanos": _nanos(exact=exact)})


def _durations(*, exact: bool) -> st.SearchStrategy[dict[str, int]]:
    seconds = st.integers(0, _LONGEST) | st.sampled_from([0, 1, _LONGEST])
    return st.builds(
        lambda seconds, nanos, sign: {"seconds": sign * seconds, "nanos": sign * nanos},
        seconds,
        _nanos(exact=exact),
        st.sampled_from([1, -1]),
    )


TIMES: Final = _times(exact=False)
"""Fields of every valid Timestamp, nanoseconds and both bounds included."""
DURATIONS: Final = _durations(exact=False)
_WELL_KNOWN: Final = {
    "google.protobuf.Timestamp": _times(exact=True),
    "google.protobuf.Duration": _durations(exact=True),
}
"""Values within the precision of Python's datetime."""


_PATH: Final = st.from_regex(r"[a-z]{1,3}(_[a-z]{1,3}){0,2}(\.[a-z]{1,3})?", fullmatch=True)
"""Paths of a FieldMask that JSON can represent."""
_TAME: Final = {
    _F.TYPE_DOUBLE: st.floats(allow_nan=False).map(lambda value: value + 0.0),
    # google's json_format prints the largest as 3.4028235e38, and refuses to read that
    _F.TYPE_FLOAT: st.floats(-(2.0**120), 2.0**120, width=32).map(lambda value: value + 0.0),
}


def examples(
    message: Descriptor, *, depth: int = 2, tame: bool = False
) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for the values of some fields by name, as `fill` takes them.

    `tame` excludes the values that betterproto 2.0.0b7 handles wrongly: negative or unknown enum
    values, -0.0, NaN, negative or long times, and empty entries of maps.
    """
    optional = {
        field.name: _field(field, depth, tame=tame)
        for field in message.fields
        if depth or field.message_type is None
    }

    def one_of_each_oneof(values: dict[str, Any]) -> dict[str, Any]:
        for oneof in message.oneofs:
            for field in [field for field in oneof.fields if field.name in values][1:]:
                del values[field.name]
        return values

    return st.fixed_dictionaries({}, optional=optional).map(one_of_each_oneof)


def _field(field: FieldDescriptor, depth: int, *, tame: bool) -> st.SearchStrategy[Any]:
    if field.message_type and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        key = _SCALARS[entry["key"].type].filter(lambda key: key or not tame)
        return st.dictionaries(key, _value(entry["value"], depth, tame=tame), max_size=3)
    value = _value(field, depth, tame=tame)
    return st.lists(value, max_size=3) if field.is_repeated else value


def _value(field: FieldDescriptor, depth: int, *, tame: bool) -> st.SearchStrategy[Any]:
    if field.enum_type and tame:
        numbers = [value.number for value in field.enum_type.values]
        return st.sampled_from([number for number in numbers if number >= 0])
    if field.message_type is None:
        return (_SCALARS | _TAME)[field.type] if tame else _SCALARS[field.type]
    if field.message_type.full_name == "google.protobuf.FieldMask":
        return st.builds(lambda paths: {"paths": paths}, st.lists(_PATH, max_size=3))
    known = _WELL_KNOWN.get(field.message_type.full_name)
    if known is None:
        return examples(field.message_type, depth=depth - 1, tame=tame)
    return known.filter(lambda value: not tame or _is_tame(value))


def _is_tame(time: dict[str, int]) -> bool:
    return 0 <= time["seconds"] < _TAME_SECONDS and time["nanos"] >= 0


def fill(message: Message, values: dict[str, Any]) -> Message:
    """Set fields of a google message, and return it."""
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            for key, each in value.items():
                if isinstance(each, dict):
                    fill(target[key], each)
                else:
                    target[key] = each
        elif field.is_repeated:
            for each in value:
                if isinstance(each, dict):
                    fill(target.add(), each)
                else:
                    target.append(each)
        elif isinstance(value, dict):
            target.SetInParent()
            fill(target, value)
        else:
            setattr(message, name, value)
    return message


def canonical(message: Any) -> bytes:
    """Return bytes that are equal for equal messages, NaN included."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data
