"""A rule that cannot be applied to the values of a request is a violation of that rule."""

from typing import Any, Final

import pytest
from google.protobuf.message_factory import GetMessageClass

from shared.wire import find_violations
from tests.contract.odd import build, compile_text, new_project
from tools.contracts.generate.descriptors import Contracts

EXPRESSIONS: Final = {
    "division": "10 / this.n > 1",
    "modulus": "10 % this.n > 1",
    "index": "this.words[3] == ''",
    "negative_index": "this.words[this.low] == 'a'",
    "key": "this.counts['zz'] == 1",
    "sum": "this.big + 9223372036854775807 > 0",
    "product": "this.big * 9223372036854775807 > 0",
    "negation": "-this.low > 0",
    "time": "timestamp(this.name) > timestamp('2020-01-01T00:00:00Z')",
    "late": "timestamp('9999-12-31T23:59:59Z') + duration('100000h') > timestamp(0)",
    "span": "duration(this.name) > duration('1s')",
    "number": "int(this.name) > 5",
    "nan": "int(double('NaN')) > 0",
    "unsigned": "uint(this.low) > 0u",
    "pattern": "this.text.matches(this.bad)",
    "part": "this.text.substring(50) == ''",
    "character": "this.text.charAt(100) == 'a'",
    "format": "'%d'.format([this.text]) == ''",
    "bytes": "string(this.raw) == 'a'",
    "types": "dyn(this.n) + dyn(this.name) == 1",
}


@pytest.fixture(scope="module")
def contracts(tmp_path_factory: pytest.TempPathFactory) -> Contracts:
    project = new_project(tmp_path_factory.mktemp("errors"))
    messages = "".join(
        f"""message {name.title()} {{
          option (buf.validate.message).cel = {{
            id: "{name} of a rule" message: "m" expression: "{expression}"
          }};
          repeated string words = 1; int32 n = 2; map<string, int32> counts = 3; int64 big = 4;
          int64 low = 5; string name = 6; string text = 7; string bad = 8; bytes raw = 9;
        }}
        """
        for name, expression in EXPRESSIONS.items()
    )
    compile_text(project, messages)
    return build(project)


@pytest.mark.parametrize("words", [1, 300])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_error_in_the_evaluation_of_a_rule_is_its_violation(
    contracts: Contracts, name: str, words: int
) -> None:
    found: Any = contracts.pool.FindMessageTypeByName(f"postbus.odd.v1.{name.title()}")
    message = GetMessageClass(found)(
        words=["a"] * (words if "index" not in name else 1),
        big=5,
        low=-(2**63),
        name="x",
        text="abc",
        bad="([",
        raw=b"\xff",
    )

    [violation], more = find_violations(message)

    assert (violation.field, violation.rule) == ("", f"{name} of a rule")
    assert violation.message == "the rule cannot be applied to these values"
    assert more
