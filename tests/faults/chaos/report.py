"""The results of the fault matrix as a table."""

import math
from typing import Final

from tests.faults.chaos.matrix import Row
from tests.faults.chaos.rows import NOT_HERE, ROWS
from tests.faults.chaos.run import Outcome, Result

__all__ = ["late", "page", "table"]

_REASONS: Final = 3
"""Errors of a fault in the table, the most frequent ones."""
_NOISE: Final = 5
"""Multiple of the promised time that is accepted: other processes of the machine delay a run."""

_HEAD: Final = """\
# Faults

What happens to clients when a part of the system fails. `./just chaos` injects faults into a
running system with two processes of each service, under a load whose writes are recorded with all
their responses. At the end it compares this history with both databases, all queues, sockets, logs
and `just repair`. `./just chaos --all` injects every fault, then pairs of faults at the same time,
and writes this page; `./just chaos NAME...` injects some. `POSTBUS_SEED=N` repeats the choices of a
run. A fault that is not possible, for example because the servers are not processes of this clone,
is skipped with its reason.

“Errors” are responses to requests between the begin of the fault and the return of the system, with
the most frequent status and reason; each write with an error was repeated with its
`Idempotency-Key`. “Back” is the time from the end of the fault until a read and a write of each
service succeed, and “promised” its bound. The numbers are those of one run on a machine with two
processors: the errors and times vary, the bounds and the last table do not.
"""


def late(outcome: Outcome) -> list[str]:
    """Return the faults after which the system came back too late, or that did not end."""
    return [
        f"{' + '.join(result.names)}: {result.error or f'{result.back:.1f} s'}"
        for result in outcome.results
        if not result.not_possible
        and (
            result.error or result.back > _NOISE * max(ROWS[name].allowed for name in result.names)
        )
    ]


def page(outcome: Outcome, seed: int) -> str:
    """Return docs/faults.md."""
    single = [each for each in outcome.results if len(each.names) == 1]
    several = [each for each in outcome.results if len(each.names) > 1]
    lines = [_HEAD, "## One fault", "", *_table(single), ""]
    lines += ["## Two faults at the same time", "", *_table(several), ""] if several else []
    lines += ["## Not in this table", ""]
    lines += [f"- {number}: {reason}." for number, reason in NOT_HERE.items()]
    lines += [
        f"- {each.number}: {each.title}, only by its name: `./just chaos {each.name}`."
        for each in ROWS.values()
        if each.when == "by name"
    ]
    measured = {name for each in outcome.results for name in each.names}
    lines += [
        f"- {each.number}: {each.title} (`{each.name}`), not measured in this run."
        for each in ROWS.values()
        if each.when != "by name" and each.name not in measured
    ]
    lines += ["", "## Comparison at the end", "", *_summary(outcome, seed)]
    return "\n".join(lines) + "\n"


def table(outcome: Outcome, seed: int) -> str:
    """Return the results for a terminal."""
    lines = [*_table(outcome.results), "", *_summary(outcome, seed)]
    lines += [f"not run, as no time was left: {' + '.join(each)}" for each in outcome.omitted]
    return "\n".join(lines)


def _table(results: list[Result]) -> list[str]:
    head = "| fault | name | errors that clients saw | back (s) | promised (s) |"
    return [head, "| --- | --- | --- | --- | --- |", *(_line(each) for each in results)]


def _line(result: Result) -> str:
    rows: list[Row] = [ROWS[name] for name in result.names]
    title = " and ".join(f"{row.title} ({row.number})" for row in rows)
    names = " ".join(f"`{row.name}`" for row in rows)
    if result.not_possible:
        return f"| {title} | {names} | not possible: {result.not_possible} | | |"
    back = "not within 60" if math.isinf(result.back) else f"{result.back:.1f}"
    allowed = max(row.allowed for row in rows)
    return f"| {title} | {names} | {_errors(result)} | {back} | {allowed:g} |"


def _errors(result: Result) -> str:
    if not result.failed:
        return f"none in {result.responses}"
    reasons = [f"{reason} ({n})" for reason, n in result.failed.most_common(_REASONS)]
    return f"{result.failed.total()} of {result.responses}: {', '.join(reasons)}"


def _summary(outcome: Outcome, seed: int) -> list[str]:
    if outcome.findings is None:
        return [f"Interrupted before the comparison. Seed {seed}."]
    return [
        f"{outcome.requests} requests with {outcome.writes} writes; every event had its effect"
        f" {outcome.settled:.0f} s after the last fault. Seed {seed}.",
        "",
        "| found by the comparison | count | required |",
        "| --- | --- | --- |",
        *(
            f"| {name.replace('_', ' ')} | {count} | 0 |"
            for name, count in outcome.findings.summary().items()
        ),
    ]
