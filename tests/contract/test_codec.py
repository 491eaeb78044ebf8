"""The codec compared with google's and betterproto's, for every kind of field."""

import betterproto
import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.kinds import Kinds, canonical, examples

READ_ALIKE = ["Scalars", "Optionals", "Lists", "Maps", "Choices", "Nested", "Names", "Wrappers"]
ALL = [*READ_ALIKE, "WellKnown", "Anything", "Documents"]
WRITTEN_ALIKE = ["Scalars", "Optionals", "Lists", "Maps", "Choices", "Names", "Wrappers"]
many = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)


@pytest.mark.parametrize("name", ALL)
@many
@given(data=st.data())
def test_message_is_unchanged_after_read_and_write(
    kinds: Kinds, name: str, data: st.DataObject
) -> None:
    codec = kinds.codecs[name]
    google = kinds.google(name, data.draw(examples(codec.upb.DESCRIPTOR)))

    again = kinds.encode(codec.read(google))

    assert canonical(again) == canonical(google)


@pytest.mark.parametrize("name", READ_ALIKE)
@many
@given(data=st.data())
def test_object_equals_that_of_betterproto(kinds: Kinds, name: str, data: st.DataObject) -> None:
    codec = kinds.codecs[name]
    google = kinds.google(name, data.draw(examples(codec.upb.DESCRIPTOR, tame=True)))

    ours = codec.read(google)
    theirs = getattr(kinds.messages, name)()
    betterproto.Message.parse(theirs, google.SerializeToString())

    assert ours == theirs
    assert ours._group_current == theirs._group_current


@pytest.mark.parametrize("name", READ_ALIKE)
@many
@given(data=st.data())
def test_json_of_a_class_is_that_of_google(kinds: Kinds, name: str, data: st.DataObject) -> None:
    codec = kinds.codecs[name]
    google = kinds.google(name, data.draw(examples(codec.upb.DESCRIPTOR, tame=True)))
    document = json_format.MessageToDict(google, descriptor_pool=google.DESCRIPTOR.file.pool)

    ours = codec.read(google)

    assert ours.to_dict() == document
    assert canonical(kinds.encode(type(ours).from_dict(document))) == canonical(google)
    assert type(ours).FromString(bytes(ours)) == ours


@pytest.mark.parametrize("name", WRITTEN_ALIKE)
@many
@given(data=st.data())
def test_bytes_are_equivalent_to_those_of_betterproto(
    kinds: Kinds, name: str, data: st.DataObject
) -> None:
    codec = kinds.codecs[name]
    ours = codec.read(kinds.google(name, data.draw(examples(codec.upb.DESCRIPTOR, tame=True))))

    theirs = codec.upb.FromString(betterproto.Message.__bytes__(ours))

    assert canonical(kinds.encode(ours)) == canonical(theirs)


@pytest.mark.parametrize("name", READ_ALIKE)
@many
@given(data=st.data())
def test_constructor_is_equivalent_to_that_of_betterproto(
    kinds: Kinds, name: str, data: st.DataObject
) -> None:
    codec = kinds.codecs[name]
    values = codec.read(
        kinds.google(name, data.draw(examples(codec.upb.DESCRIPTOR, tame=True)))
    ).__dict__
    given = {
        field: value
        for field, value in values.items()
        if not field.startswith("_") and value is not betterproto.PLACEHOLDER
    }

    ours, theirs = (getattr(each, name)(**given) for each in (kinds.messages, kinds.plain))

    assert ours.__dict__ == theirs.__dict__
