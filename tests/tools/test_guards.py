"""The lists of guards in tests/guards are complete, and fit the sources."""

import re
from functools import cache

from tools import mutate
from tools.paths import ROOT

numbers = cache(lambda: frozenset(mutate.numbers()))
listed = cache(mutate.listed)
_ASSIGNED = re.compile(r"\s*(\w+)(?:: [^=\n]*)? = ")


def test_every_number_of_the_sources_is_a_listed_guard_or_marked_as_none() -> None:
    guards, no_guards = listed()
    known = {(guard.file, guard.name) for guard in guards}
    known |= {(each.file, of[1]) for each in guards if (of := _ASSIGNED.match(each.old))}
    known |= {(file, name) for file, names in no_guards.items() for name in names}

    assert sorted(numbers() - known) == []


def test_numbers_that_are_no_guards_exist_and_have_a_reason() -> None:
    existing = numbers()
    _, no_guards = listed()

    for file, reasons in no_guards.items():
        for name, reason in reasons.items():
            assert (file, name) in existing
            assert len(reason) > 5


def test_tests_of_the_guards_exist() -> None:
    for guard in listed()[0]:
        assert guard.tests
        for test in guard.tests:
            file, _, name = test.partition("::")
            assert (ROOT / file).exists(), test
            function = re.sub(r"\[.*\]$", "", name.rpartition("::")[2])
            assert not name or f"def {function}(" in (ROOT / file).read_text(), test
