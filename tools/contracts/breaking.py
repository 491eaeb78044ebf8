"""What a change of the contracts breaks, and for whom: `buf breaking`, and our own check.

`python -m tools.contracts.breaking REVISION` compares proto/ with that of a git revision,
`python -m tools.contracts.breaking BEFORE AFTER` compares two descriptor sets (`contracts.binpb`).
Exit code 1 if anything breaks, 2 if that can't be found out. Places are those of AFTER.
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
from zipfile import ZipFile

from google.protobuf.message import DecodeError

from tools.contracts.compatibility import Audience, Finding, compare
from tools.contracts.generate.third_party import lay_out
from tools.paths import DEV, ROOT

_BUF = Path(sys.executable).with_name("buf")
_BUF_FOUND = 100
"""Exit code of buf where it has something to say of the contracts."""


class BreakingError(Exception):
    """The comparison can't be made; says why."""


def main(arguments: Sequence[str]) -> int:
    """Print what breaks for whom; return the exit code."""
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
    return 1 if any(not finding.notice for finding in found) else 0


def _since(revision: str) -> list[Finding]:
    """Compare a revision with the working tree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, after = folder / "before.binpb", folder / "after.binpb"
        _extract(revision, folder)
        if not (DEV / "third_party").exists():
            lay_out(DEV / "third_party")
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
    """Compare two descriptor sets; buf.yaml has a say only where buf reads the source."""
    sets = [_read(before), _read(after)]
    try:
        own = compare(*sets)
    except (DecodeError, TypeError, ValueError) as error:
        raise BreakingError(f"can't compare {before} with {after}: {error}") from None
    return own + list(_from_buf(_input(before), source or _input(after)))


def _input(path: Path) -> str:
    """A descriptor set for buf, which otherwise goes by the file's ending."""
    return f"{path.resolve()}#format=binpb"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BreakingError(f"{path}: {error.strerror}") from None


def _from_buf(before: str, after: str) -> Iterable[Finding]:
    """What breaks those who generate code from the contracts."""
    options = ("--exclude-imports", "--error-format", "json")
    lines = _buf("breaking", after, "--against", before, *options)
    for found in map(json.loads, lines):
        path = found["path"].removeprefix("proto/")
        if path.startswith("postbus/"):  # protoc does not say which files are imports
            yield Finding(
                where=f"proto/{path}:{found['start_line']}",
                text=f"{found['message']} ({found['type']})",
                audiences=frozenset({Audience.CODE}),
            )


def _buf(*arguments: str, cwd: Path = ROOT) -> list[str]:
    answer = subprocess.run([_BUF, *arguments], cwd=cwd, capture_output=True, check=False)
    if answer.returncode not in (0, _BUF_FOUND if arguments[0] == "breaking" else 0):
        raise BreakingError(f"buf {arguments[0]}: {_last_line(answer.stderr)}")
    return answer.stdout.decode().splitlines()


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]


def _report(findings: Iterable[Finding]) -> str:
    """One line for each finding below those whom it breaks, and a summary."""
    ordered = sorted(findings, key=lambda each: (*_heading(each), *_place(each), each.text))
    lines: list[str] = []
    for (notice, people), group in groupby(ordered, key=_heading):
        lines.append(f"{'to be known by' if notice else 'breaks'} {people}:")
        lines += [f"  {_line(finding)}" for finding in group]
    breaks = [finding for finding in ordered if not finding.notice]
    everyone = frozenset(who for finding in breaks for who in finding.audiences)
    counts = f"{len(breaks)} breaking, {len(ordered) - len(breaks)} to be known"
    return "\n".join([*lines, f"breaking: {counts}; breaks {_people(everyone) or 'nobody'}"])


def _heading(finding: Finding) -> tuple[bool, str]:
    return finding.notice, _people(finding.audiences)


def _people(audiences: frozenset[Audience]) -> str:
    return ", ".join(audience for audience in Audience if audience in audiences)


def _place(finding: Finding) -> tuple[str, int]:
    file, _, line = finding.where.partition(":")
    return file, int(line or 0)


def _line(finding: Finding) -> str:
    return f"{finding.where}: {finding.text}" if finding.where else finding.text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
