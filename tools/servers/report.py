"""The table of `just status`."""

from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One server: `how` is process, docker or environment; pid is None if unknown."""

    server: str
    how: str
    address: str
    state: str
    pid: int | None


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table with headings."""
    lines = [[name.upper() for name in Row._fields]]
    lines += [[str("-" if cell in (None, "") else cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
