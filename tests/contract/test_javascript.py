"""Messages in both directions with another implementation: @bufbuild/protobuf in Node."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.protojson import write_message
from tests.contract.kinds import Kinds, canonical, examples
from tools.node import node_environment, node_modules

pytestmark = pytest.mark.long

MESSAGES = ["Scalars", "Optionals", "Lists", "Maps", "Choices", "Nested", "Wrappers", "Names"]
SCRIPT = Path(__file__).with_name("javascript.mjs")
many = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)


class JavaScript:
    """A Node process that converts messages of kinds.proto."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def convert(self, name: str, **message: Any) -> Any:
        """Return the JSON and the bytes of a message, from either of them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"type": f"kinds.v1.{name}", **message}) + "\n")
        self._process.stdin.flush()
        message = json.loads(self._process.stdout.readline())
        return message["json"], base64.b64decode(message["binary"])


@pytest.fixture(scope="module")
def javascript(kinds: Kinds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JavaScript]:
    folder = tmp_path_factory.mktemp("javascript")  # Node resolves packages beside the script
    script = shutil.copy(SCRIPT, folder)
    (folder / "node_modules").symlink_to(node_modules())
    command = ["node", script, kinds.descriptors]
    with subprocess.Popen(
        command,
        env=node_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield JavaScript(process)
        assert process.stdin is not None
        process.stdin.close()


def without_numbers(document: Any) -> Any:
    """Normalize numbers, which Python and JavaScript write with different digits."""
    if isinstance(document, dict):
        return {name: without_numbers(value) for name, value in document.items()}
    if isinstance(document, list):
        return [without_numbers(value) for value in document]
    return 0 if type(document) in (int, float) else document


@pytest.mark.parametrize("name", MESSAGES)
@many
@given(data=st.data())
def test_json_and_bytes_equal_those_of_javascript(
    kinds: Kinds, javascript: JavaScript, name: str, data: st.DataObject
) -> None:
    codec = kinds.codecs[name]
    message = kinds.google(name, data.draw(examples(codec.upb.DESCRIPTOR, tame=True)))

    theirs, again = javascript.convert(
        name, binary=base64.b64encode(message.SerializeToString()).decode()
    )
    _, from_json = javascript.convert(name, json=write_message(message))

    assert without_numbers(write_message(message)) == without_numbers(theirs)
    read = [codec.upb.FromString(binary) for binary in (again, from_json)]
    read.append(json_format.ParseDict(theirs, codec.upb()))
    assert [canonical(each) for each in read] == [canonical(message)] * 3


@pytest.mark.parametrize("name", MESSAGES)
@many
@given(data=st.data())
def test_javascript_reads_the_messages_of_our_classes(
    kinds: Kinds, javascript: JavaScript, name: str, data: st.DataObject
) -> None:
    codec = kinds.codecs[name]
    message = kinds.google(name, data.draw(examples(codec.upb.DESCRIPTOR, tame=True)))
    ours = kinds.encode(codec.read(message)).SerializeToString()

    _, theirs = javascript.convert(name, binary=base64.b64encode(ours).decode())

    back = codec.read(codec.upb.FromString(theirs))
    assert back == codec.read(message)
