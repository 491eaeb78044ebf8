"""The breaking changes of the contracts by audience: `buf breaking` and the compatibility check.

`python -m tools.contracts.breaking REVISION` compares proto/ with that of a git revision,
`python -m tools.contracts.breaking BEFORE AFTER` compares two descriptor sets (`contracts.binpb`).
Each finding has its file and line (those of AFTER), its audiences, and what to do instead;
docs/compatibility.md lists all kinds. The exit code is 1 if a change breaks an audience, 2 if the
comparison fails.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Final
from zipfile import ZipFile

from google.protobuf.message import DecodeError

from tools.contracts.compatibility import Audience, Finding, Kind, compare
from tools.contracts.generate.third_party import lay_out
from tools.paths import DEV, ROOT

_BUF = Path(sys.executable).with_name("buf")
_BUF_FOUND = 100
"""Exit code of buf if it has found breaking changes."""
_OWN_RULES: Final = frozenset({"RPC_SAME_IDEMPOTENCY_LEVEL"})
"""Rules of buf that our own replace: a stronger promise breaks no audience."""


class BreakingError(Exception):
    """The comparison failed; the message is the reason."""


def main(arguments: Sequence[str]) -> int:
    """Print the changes by audience; return the exit code."""
    try:
        match arguments:
            case [revision]:
                found = _since(revision)
            case [before, after]:
                found = _between(Path(before), Path(after))
            case _:
                raise BreakingError("give a git revision, or two descriptor sets")
    except BreakingError as error:
        print(f"breaking: {error}", file=sys.stderr)
        return 2
    print(_report(found))
    return exit_code(found)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 if a change breaks an audience, 0 if all are notices."""
    return 1 if any(not finding.notice for finding in findings) else 0


def _since(revision: str) -> list[Finding]:
    """Compare a revision with the working tree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, after = folder / "before.binpb", folder / "after.binpb"
        _extract(revision, folder)
        if not (DEV / "third_party").exists():
            lay_out(DEV / "third_party", ROOT / "third_party")
        shutil.copytree(DEV / "third_party", folder / ".dev" / "third_party")
        _buf("build", "proto", "-o", str(before), cwd=folder)
        _buf("build", "proto", "-o", str(after), cwd=ROOT)
        return _between(before, after, source="proto")


def _extract(revision: str, target: Path) -> None:
    archive = subprocess.run(
        ["git", "archive", "--format=zip", "--end-of-options", revision, "proto", "buf.yaml"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        raise BreakingError(f"no contracts in revision {revision}: {_last_line(archive.stderr)}")
    with ZipFile(BytesIO(archive.stdout)) as files:
        files.extractall(target)


def _between(before: Path, after: Path, *, source: str = "") -> list[Finding]:
    """Compare two descriptor sets; with `source`, buf reads that, by the rules of buf.yaml."""
    sets = [_read(before), _read(after)]
    try:
        own = compare(*sets)
    except (DecodeError, TypeError, ValueError) as error:
        raise BreakingError(f"cannot compare {before} with {after}: {error}") from None
    return own + list(from_buf(_input(before), source or _input(after)))


def _input(path: Path) -> str:
    """Return a descriptor set as an input for buf, independent of its file extension."""
    return f"{path.resolve()}#format=binpb"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BreakingError(f"{path}: {error.strerror}") from None


def from_buf(before: str, after: str) -> Iterable[Finding]:
    """Yield the changes that break code generated from the contracts."""
    options = ("--exclude-imports", "--error-format", "json")
    lines = _buf("breaking", after, "--against", before, *options)
    for found in map(json.loads, lines):
        path = found["path"].removeprefix("proto/")
        imported = not path.startswith("postbus/")  # the output of protoc does not mark imports
        if not imported and found["type"] not in _OWN_RULES:
            yield Finding(
                where=f"proto/{path}:{found['start_line']}",
                text=f"{found['message'].removesuffix('.')} ({found['type']})",
                kind=Kind.GENERATED_CODE,
                audiences=frozenset({Audience.CODE}),
            )


def _buf(*arguments: str, cwd: Path = ROOT) -> list[str]:
    result = subprocess.run([_BUF, *arguments], cwd=cwd, capture_output=True, check=False)
    if result.returncode not in (0, _BUF_FOUND if arguments[0] == "breaking" else 0):
        raise BreakingError(f"buf {arguments[0]}: {_last_line(result.stderr)}")
    return result.stdout.decode().splitlines()


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]


def _report(findings: Iterable[Finding]) -> str:
    """Return a line for each finding, grouped by audiences, and a summary."""
    ordered = sorted(findings, key=lambda each: (*_heading(each), *_position(each), each.text))
    lines: list[str] = []
    for (notice, audiences), group in groupby(ordered, key=_heading):
        lines.append(f"{'notices for' if notice else 'breaks'} {audiences}:")
        lines += [f"  {_line(finding)}" for finding in group]
    breaks = [finding for finding in ordered if not finding.notice]
    broken = frozenset(audience for finding in breaks for audience in finding.audiences)
    counts = f"{len(breaks)} breaking, {len(ordered) - len(breaks)} notices"
    return "\n".join([*lines, f"breaking: {counts}; breaks {_names_of(broken) or 'no audience'}"])


def _heading(finding: Finding) -> tuple[bool, str]:
    return finding.notice, _names_of(finding.audiences)


def _names_of(audiences: frozenset[Audience]) -> str:
    return ", ".join(audience for audience in Audience if audience in audiences)


def _position(finding: Finding) -> tuple[str, int]:
    file, _, line = finding.where.partition(":")
    return file, int(line or 0)


def _line(finding: Finding) -> str:
    where = f"{finding.where}: " if finding.where else ""
    return f"{where}{finding.text}. {finding.kind.advice}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
