"""The page about operations: its tests exist, and its numbers are those of the sources."""

import re
from pathlib import Path
from typing import Final

from shared.bus.amqp.topology import all_events, dead_letters
from shared.outbox.inbox import KEEP_SECONDS

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "docs/operations.md").read_text()


def test_named_tests_exist() -> None:
    named = re.findall(r"`(tests/[a-z0-9_/]+\.py)`", TEXT)

    assert len(named) > 10
    assert [each for each in named if not (ROOT / each).exists()] == []


def test_retention_in_the_page_is_that_of_the_sources() -> None:
    dead_letter_days = int(dead_letters("x", "x.y").arguments["x-message-ttl"]) // 86_400_000
    rows = {
        "stored replies (inbox)": f"{KEEP_SECONDS // 3600} hours",
        "dead letters": f"{dead_letter_days} days",
        "stream of all events": "seven days, 1 GiB at most",
    }
    assert (all_events().arguments["x-max-age"], all_events().arguments["x-max-length-bytes"]) == (
        "7D",
        2**30,
    )

    for data, kept in rows.items():
        assert re.search(rf"^\| {re.escape(data)} \| {kept}", TEXT, re.MULTILINE), data
