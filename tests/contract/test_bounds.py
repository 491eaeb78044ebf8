"""The time and the response size of a request are bounded for every input."""

import json
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gateway.problems import problem
from gateway.settings import GatewaySettings
from gateway.targets import query_parameters
from gateway.transcoding import Transcoder
from gateway.websocket_frames import parse_frame, read_client_frame
from postbus.bus.v1 import Error, FieldViolation
from postbus.posts.v1 import CreatePostRequest
from postbus.registry import METHODS
from postbus.users.v1 import BatchGetUsersRequest
from postbus_runtime.reasons import Reason
from shared import bounds
from shared.bounds import OverBoundError, count_elements
from shared.bus.reply import error_reply
from shared.errors import Code, ServiceError
from shared.protojson import read_json, read_message
from shared.protojson.refusal import RefusedError
from shared.protojson.text_violations import repeated_members
from shared.wire import encode, find_violations, message_class, read_valid, to_upb
from tests.contract.kinds import Kinds
from tools.contracts.generate.openapi import MAX_BODY_BYTES

pytestmark = pytest.mark.usefixtures("frozen_heap")

ANSWER_BYTES = 64 * 1024
CPU_SECONDS = 0.3
"""Several times the slowest case on an idle machine; without limits it takes 4 to 40 seconds."""
MEGABYTE = 1_000_000
POSTS = "postbus.posts.v1.PostsService"
HOSTILE = {
    "empty tags": b'{"title":"x","tags":[' + b'"",' * 330_000 + b'""]}',
    "numbers as tags": b'{"title":"x","tags":[' + b"1," * 480_000 + b"1]}",
    "lists as tags": b'{"title":"x","tags":[' + b"[]," * 330_000 + b"[]]}",
    "objects in objects": b'{"a":{"b":' + b'{"a":{}},' * 0 + b"[" + b'{"":{}},' * 120_000 + b"0]}}",
    "unknown members": b"{" + b",".join(b'"a%d":1' % i for i in range(90_000)) + b"}",
    "one long name": b'{"' + b"a" * MEGABYTE + b'":1}',
    "invisible name": b'{"' + "\u202e".encode() * 300_000 + b'":1}',
    "one repeated name": b"{" + b'"a":1,' * 160_000 + b'"a":1}',
    "deep lists": b'{"title":' + b"[" * 1000 + b"]" * 1000 + b"}",
    "numbers beyond a double": b'{"title":[' + b"1e400," * 19_000 + b"1e400]}",
    "one number beyond a double": b'{"title":[' + b"0," * 19_000 + b"1e400]}" + b" " * 960_000,
    "lone surrogates": b'{"title":"' + b"\\ud800" * 160_000 + b'"}',
    "long names of lone surrogates": (
        b"{" + b",".join(b'"%b":1' % (b"\\ud800" * 8_000) for _ in range(20)) + b"}"
    ),
    "a deep list in a repeated member": (
        b'{"title":' + b"[" * 1000 + b"]" * 1000 + b',"title":"y"}' + b" " * 990_000
    ),
    "many lists in a repeated member": (
        b'{"title":' + b"[" * 90 + b"[]," * 9_000 + b"[]" + b"]" * 90 + b',"title":"y"}'
    ),
    "deeper lists than allowed": b"[" * MEGABYTE,
    "many deep lists": b'{"title":[' + (b"[" * 90 + b"]" * 90 + b",") * 5_000 + b"0]}",
    "a long title": b'{"title":"' + b"x" * MEGABYTE + b'"}',
    "escaped quotes": b'{"title":"' + b'\\"' * 490_000 + b'"}',
    "backslashes": b'{"title":"' + b"\\\\" * 490_000 + b'"}',
    "colons": b'{"title":"' + b":{" * 490_000 + b'"}',
    "a string without an end": b'{"title":"' + b'\\"' * 490_000,
    "a long number": b'{"title":"x","status":"' + b"9" * MEGABYTE + b'"}',
    "a number of many digits": b'{"title":"x","status":' + b"9" * MEGABYTE + b"}",
    "paths of a mask": b'{"updateMask":"' + b"bio," * 240_000 + b'bio"}',
}


def transcoder(name: str) -> Transcoder:
    method = METHODS[name]
    return Transcoder(method, method.http[0])


def refused(call: Any) -> tuple[ServiceError, float]:
    """Return the error of a call, and its CPU time in seconds."""
    began = time.process_time()
    with pytest.raises(ServiceError) as raised:
        call()
    return raised.value, time.process_time() - began


def require_bounded(error: ServiceError, seconds: float) -> None:
    assert seconds < CPU_SECONDS
    assert len(problem(error, "trace").body) <= ANSWER_BYTES
    assert len(error_reply(error)) <= ANSWER_BYTES
    assert len(error.violations) <= 20


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_megabyte_is_refused_quickly_and_briefly(text: bytes) -> None:
    create, update = (
        transcoder(f"{POSTS}.CreatePost"),
        transcoder("postbus.users.v1.UsersService.UpdateMe"),
    )

    for binding in (create, update):
        error, seconds = refused(lambda binding=binding: binding.read({}, [], text))
        require_bounded(error, seconds)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_megabyte_in_a_frame_is_refused_quickly_and_briefly(text: bytes) -> None:
    frame = b'{"id":"1","call":{"method":"%s.CreatePost","request":%s}}' % (POSTS.encode(), text)

    error, seconds = refused(lambda: read_client_frame(parse_frame(frame), frame))

    require_bounded(error, seconds)


def test_megabyte_of_parameters_is_refused_quickly_and_briefly() -> None:
    binding = transcoder(f"{POSTS}.ListPosts")
    queries = [b"&".join([b"a=1"] * 250_000), b"&".join([b"tag=1"] * 900), b"a" * MEGABYTE + b"=1"]

    for query in queries:
        error, seconds = refused(lambda query=query: binding.read({}, query_parameters(query), b""))
        require_bounded(error, seconds)


def test_worker_refuses_a_long_list_before_it_validates_the_elements() -> None:
    data = encode(BatchGetUsersRequest(ids=[""] * 400_000))

    error, seconds = refused(lambda: read_valid(BatchGetUsersRequest, data))

    require_bounded(error, seconds)
    assert [(each.field, each.rule) for each in error.violations] == [("ids", "repeated.max_items")]
    assert error.more_violations


def test_error_has_20_violations_at_most_and_reports_that_there_are_more() -> None:
    binding = transcoder(f"{POSTS}.CreatePost")

    def read(tags: list[Any]) -> ServiceError:
        body = orjson.dumps({"title": "x", "tags": tags})
        return refused(lambda: binding.read({}, [], body))[0]

    form, rules = read([1] * 20), read([""] * 20)
    body = orjson.dumps({"a": 1, "title": "", "tags": [1] * 20})
    more = refused(lambda: binding.read({}, [], body))[0]

    assert (len(form.violations), form.more_violations) == (20, False)
    assert (len(rules.violations), rules.more_violations) == (20, False)
    assert (len(more.violations), more.more_violations) == (20, True)


def test_texts_of_errors_are_truncated() -> None:
    violation = FieldViolation(field="f" * 9_999, rule="r" * 9_999, message="\u20ac" * 9_999)
    ours = ServiceError(
        Reason("R" * 9_999, Code.INVALID_ARGUMENT), "m" * 9_999, violations=[violation] * 99
    )
    sent = Error(message="m" * 9_999, violations=[violation] * 99)
    received = ServiceError.from_message(to_upb(sent))

    for error in (ours, received):
        assert len(error.message) == 500
        assert len(error.reason) <= 500
        assert len(str(error)) <= 1_000
        texts = {(each.field, each.rule, each.message) for each in error.violations}
        assert all(len(text) <= 500 for each in texts for text in each)
        assert len(error.violations) == 20
        assert error.more_violations
        assert len(error_reply(error)) <= ANSWER_BYTES
        assert ServiceError.from_message(to_upb(error.to_message(""))).more_violations


def test_reading_stops_after_21_violations(kinds: Kinds) -> None:
    cases = [
        ("Lists", {"strings": [1] * 1_000}),
        ("Maps", {"strings": dict.fromkeys(map(str, range(1_000)), 1)}),
        ("Nested", dict.fromkeys(map(str, range(1_000)), 1)),
    ]

    for name, document in cases:
        read = read_message._reader(kinds.codecs[name].upb.DESCRIPTOR)
        with pytest.raises(RefusedError) as raised:
            read(document)
        assert len(raised.value.found) == 21
    assert len(repeated_members(b"{" + b'"a":1,' * 1_000 + b'"a":1}')) == 21


def test_refusal_of_many_duplicates_costs_little_more_than_plain_parsing() -> None:
    body = b"[" + b",".join([b'{"a":1,"a":1}'] * 9_990) + b"]"

    refusal = min(_cpu_seconds(lambda: repeated_members(body)) for _ in range(5))
    parsing = min(_cpu_seconds(lambda: json.loads(body, object_pairs_hook=list)) for _ in range(5))

    assert refusal < 2.5 * parsing


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def test_violations_of_rules_are_20_at_most() -> None:
    kind: Any = message_class("postbus.users.v1.BatchGetUsersRequest")

    violations, more = find_violations(kind(ids=[""] * 21))

    assert (len(violations), more) == (20, True)


def test_lists_maps_and_masks_have_a_limit_without_a_rule(kinds: Kinds) -> None:
    lists, maps, known = (kinds.codecs[name].upb for name in ("Lists", "Maps", "WellKnown"))
    cases: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
        (lists, {"strings": ["a"] * 1_000}, {"strings": ["a"] * 1_001}, "repeated.max_items"),
        (maps, {"strings": dict.fromkeys(map(str, range(1_000)), "a")},
         {"strings": dict.fromkeys(map(str, range(1_001)), "a")}, "map.max_pairs"),
        (known, {"mask": ",".join(["a"] * 100)}, {"mask": ",".join(["a"] * 101)},
         "repeated.max_items"),
        (known, {"list": [None] * 1_000}, {"list": [None] * 1_001}, "repeated.max_items"),
        (known, {"struct": dict.fromkeys(map(str, range(1_000)))},
         {"struct": dict.fromkeys(map(str, range(1_001)))}, "repeated.max_items"),
    ]  # fmt: skip

    for kind, short, long, rule in cases:
        message = read_message(kind, short)
        count_elements(message)
        error, _ = refused(lambda kind=kind, long=long: read_message(kind, long))
        assert [(each.field, each.rule) for each in error.violations] == [(next(iter(long)), rule)]


def test_binary_message_has_the_same_limits(kinds: Kinds) -> None:
    lists, maps, nested, known = (
        kinds.codecs[name].upb for name in ("Lists", "Maps", "Nested", "WellKnown")
    )
    child, long = nested(children=[nested()] * 1_000), nested(nothings=[{}] * 1_001)
    cases = [
        (lists(strings=["a"] * 1_001), "strings", "repeated.max_items"),
        (maps(strings=dict.fromkeys(map(str, range(1_001)), "a")), "strings", "map.max_pairs"),
        (nested(inner={"nested": long}), "inner.nested.nothings", "repeated.max_items"),
        (nested(children=[nested(), long]), "children[1].nothings", "repeated.max_items"),
        (nested(children=[child] * 21), "", "max_values"),
        (known(mask={"paths": ["a"] * 101}), "mask.paths", "repeated.max_items"),
    ]  # fmt: skip

    for message, path, rule in cases:
        with pytest.raises(OverBoundError) as raised:
            count_elements(message)
        assert (raised.value.path, raised.value.rule) == (path, rule)
    assert count_elements(child) == 1_000


def test_rule_of_the_contract_is_the_limit() -> None:
    kind: Any = message_class("postbus.posts.v1.CreatePostRequest")

    error, _ = refused(lambda: read_message(kind, {"tags": [1] * 21}))

    assert bounds.max_elements(kind.DESCRIPTOR.fields_by_name["tags"]) == 20
    assert [(each.field, each.rule) for each in error.violations] == [
        ("tags", "repeated.max_items")
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"[" * 101 + b"]" * 101, "nesting"),
        (b"[" + b"[1,1,1]," * 5_000 + b"1]", "max_values"),
        (b"[" + b"1," * 20_000 + b"1]", "max_values"),
        (b"[" + b"{}," * 20_001 + b"1]", "max_values"),
        (b"{" + b'"a":1,' * 20_001 + b'"a":1}', "max_values"),
    ],
)
def test_document_beyond_a_limit_is_refused(text: bytes, rule: str) -> None:
    error, _ = refused(lambda: read_json(text))

    assert [each.rule for each in error.violations] == [rule]


@pytest.mark.parametrize(
    "text",
    [
        b"1," * 20_001,
        b"[" * 20_002,
        b'""' * 40_001 + b'"' + b"," * 20_001 + b'"',
    ],
)
def test_values_are_counted_before_the_text_is_parsed(text: bytes) -> None:
    error, _ = refused(lambda: read_json(text))  # not JSON, which only a parser would find

    assert [each.rule for each in error.violations] == ["max_values"]


@pytest.mark.parametrize("levels", [101, 500, 1_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"b":0,"b":', "}")])
def test_repeated_member_with_a_deep_earlier_value_is_refused(
    levels: int, opening: str, closing: str
) -> None:
    value = opening * levels + "0" + closing * levels
    text = f'{{"title":{value},"title":"y"}}'.encode()
    frame = b'{"id":"1","call":{"method":"%s.CreatePost","request":%s}}' % (POSTS.encode(), text)
    authenticate = f'{{"authenticate":{{"a":{value},"a":1}}}}'.encode()
    binding = transcoder(f"{POSTS}.CreatePost")

    for call in (
        lambda: binding.read({}, [], text),
        lambda: read_client_frame(parse_frame(frame), frame),
        lambda: read_client_frame(parse_frame(authenticate), authenticate),
    ):
        error, _ = refused(call)
        assert error.reason == "INVALID_FIELDS"
        assert [each.rule for each in error.violations] == ["nesting"]


def test_repeated_member_with_an_earlier_value_of_allowed_levels_is_a_duplicate() -> None:
    error, _ = refused(lambda: read_json(b'{"a":' + b"[" * 99 + b"]" * 99 + b',"a":1}'))

    assert [(each.field, each.rule) for each in error.violations] == [("a", "duplicate")]


@pytest.mark.parametrize(
    ("opening", "element", "closing", "elements"),
    [
        (b"[", b"[]", b"]", 20_000),
        (b'{"x":[', b"[]", b"]}", 19_999),
        (b'{"x":[', b"{}", b"]}", 19_999),
        (b'[{"x":[', b"0", b"]}]", 19_998),
        (b'{"x":[', b'""', b"]}", 19_999),
    ],
)
def test_document_of_20000_values_is_read_and_one_of_20001_is_refused(
    opening: bytes, element: bytes, closing: bytes, elements: int
) -> None:
    def text(count: int) -> bytes:
        return opening + b",".join([element] * count) + closing

    assert read_json(text(elements))
    error, _ = refused(lambda: read_json(text(elements + 1)))

    assert [each.rule for each in error.violations] == ["max_values"]


NOT_READ = [
    (b'{"a":1e400}', "a", "range"),
    (b'{"a":-1e400}', "a", "range"),
    (b'{"a":' + b"9" * 400 + b"}", "a", "range"),
    (b'{"a":[0,1e999]}', "a[1]", "range"),
    (b'{"a":1e400,"a":1}', "a", "range"),
    (b'{"a":{"b":"\\ud800"}}', "a.b", "format"),
    (b'{"a":["\\udc00\\ud800"]}', "a[0]", "format"),
    (b'{"\\ud800":1}', "\\ud800", "format"),
    (b'"\\ud800"', "", "format"),
    (b'{"a":' + b"[" * 1_500 + b"]" * 1_500 + b"}", "", "nesting"),
]


@pytest.mark.parametrize(("text", "path", "rule"), NOT_READ)
def test_json_that_cannot_be_represented_is_not_called_malformed(
    text: bytes, path: str, rule: str
) -> None:
    json.loads(text.replace(b"[" * 1_500, b"").replace(b"]" * 1_500, b"0"))  # is JSON by RFC 8259

    error, _ = refused(lambda: read_json(text))

    assert error.reason == "INVALID_FIELDS"
    assert [(each.field, each.rule) for each in error.violations] == [(path, rule)]


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":NaN,"b":1e400}',
        b"[-Infinity]",
        b"[1e400,]",
        b'["\xff",1e400]',
        b'["\x01",1e400]',
        b"\xef\xbb\xbf[1e400]",
        b"[01]",
        b"",
    ],
)
def test_text_that_is_not_json_is_malformed(text: bytes) -> None:
    error, _ = refused(lambda: read_json(text))

    assert error.reason == "MALFORMED_JSON"


def test_frame_that_cannot_be_represented_has_the_paths_of_rest() -> None:
    frame = b'{"id":"1","call":{"method":"%s.CreatePost","request":{"title":1e400}}}'

    error, _ = refused(lambda: parse_frame(frame % POSTS.encode()))

    assert [(each.field, each.rule) for each in error.violations] == [("title", "range")]


def test_brackets_in_strings_are_no_levels() -> None:
    text = '{"a":' + json.dumps("[" * 200 + '\\"[') + ',"a":1}'

    error, _ = refused(lambda: read_json(text.encode()))

    assert [(each.field, each.rule) for each in error.violations] == [("a", "duplicate")]


def test_document_within_the_limits_is_read() -> None:
    brackets, commas, quoted = "{[" * 20_000, "," * 20_001, 'a"'
    code = f'{{"title": "x", "body": {json.dumps(brackets)}}}'.encode()

    assert read_json(b"[" * 100 + b"]" * 100)
    assert len(read_json(b"[" + b"1," * 19_999 + b"1]")) == 20_000
    assert read_json(code)["body"] == brackets
    assert read_json(json.dumps([commas, *[quoted] * 19_999]).encode())[0] == commas


def test_message_that_is_too_deep_for_binary_protobuf_is_refused(kinds: Kinds) -> None:
    nested, known = kinds.codecs["Nested"].upb, kinds.codecs["WellKnown"].upb
    deep: Any = {}
    value: Any = None
    for _ in range(60):
        deep = {"inner": {"nested": deep}}
    deeper: Any = {}
    for _ in range(1_000):
        deeper = {"inner": {"nested": deeper}}
    for _ in range(21):
        value = [value]

    for kind, document in (
        (nested, deep),
        (nested, deeper),
        (known, {"value": value}),
        (known, {"list": value}),
    ):
        error, _ = refused(lambda kind=kind, document=document: read_message(kind, document))
        assert error.violations[0].rule == "nesting"
    assert known.FromString(read_message(known, {"value": value[0]}).SerializeToString())


def test_body_limit_is_above_every_valid_request() -> None:
    """An escaped character outside Unicode's basic plane has 12 bytes."""
    default = GatewaySettings.model_fields["max_body_bytes"].default

    largest = max(
        _bytes(message_class(method.request_name).DESCRIPTOR)
        for method in METHODS.values()
        if any(rule.body for rule in method.http)
    )

    assert 12 * 100_000 < largest <= default == MAX_BODY_BYTES


def _bytes(message: Any) -> int:
    """Return the largest size of the JSON of a message, by the rules of its strings and lists."""
    total = 2
    for field in message.fields:
        rules = bounds._rules(field)
        each = rules.repeated.items if field.is_repeated else rules
        length = 12 * (each.string.max_len or 64) if field.type == field.TYPE_STRING else 64
        times = bounds.max_elements(field) if field.is_repeated else 1
        total += len(field.json_name) + 8 + times * (length + 4)
    return total


def test_largest_post_is_valid_in_gateway_and_worker() -> None:
    binding = transcoder(f"{POSTS}.CreatePost")
    body = orjson.dumps({"title": "a: b", "body": "\U0001f600" * 100_000, "tags": ["a"] * 20})

    message = binding.read({}, [], body)

    assert read_valid(CreatePostRequest, message.SerializeToString()).title == "a: b"


def test_counting_ends_at_the_limit_of_a_message(kinds: Kinds) -> None:
    nested: Any = kinds.codecs["Nested"].upb
    inner = nested(children=[nested()] * 999)
    message = nested(children=[inner] * 1_000)
    counted = []

    class Elements(list[Any]):
        """Counts its elements as they are read."""

        def __iter__(self) -> Any:
            for each in super().__iter__():
                counted.append(each)
                yield each

    [in_list] = [
        bounds._in_list(field)[2] for field in nested.DESCRIPTOR.fields if field.name == "children"
    ]
    assert in_list is not None
    with pytest.raises(OverBoundError):
        in_list(Elements(message.children))

    assert len(counted) == 21


def test_all_lists_of_a_message_together_have_a_limit(kinds: Kinds) -> None:
    nested: Any = kinds.codecs["Nested"].upb
    child = nested(nothings=[{}] * 1_000)
    half = nested(children=[child] * 11)

    assert count_elements(half) == 11_011
    with pytest.raises(OverBoundError, match="max_values"):
        count_elements(nested(children=[child] * 11, inner={"nested": half}))


def test_member_that_is_given_twice_is_refused() -> None:
    error, _ = refused(lambda: read_json(b'{"a": {"b": 1, "c": 2, "b": 3}}'))

    assert [(each.field, each.rule) for each in error.violations] == [("a.b", "duplicate")]
