"""`just mutate`: remove one guard at a time, and see its tests fail.

tests/guards/*.toml list every bound, expiry, cache size, budget, poll, retry rule and constant-time
rule with its change and the tests that fail under it. A guard is removed in a copy of the tree.
"""

import ast
import compileall
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tools.paths import DEV, ROOT, SERVICES
from tools.servers import servers

__all__ = ["listed", "mutate", "numbers"]

_LISTS: Final = ROOT / "tests" / "guards"
_PACKAGES: Final = ("shared", *SERVICES)
_COPY: Final = DEV / "mutate"
_TEST_SECONDS: Final = 180
_TESTS_FAILED: Final = 1
"""Exit code of pytest, also for an error in a fixture."""
_FAILED: Final = re.compile(r"^\d+ failed", re.MULTILINE)


class MutationError(Exception):
    """The list of guards does not fit the sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """One guard: the text that is replaced in `file`, and the tests that must fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @classmethod
    def from_entry(cls, file: str, entry: Mapping[str, Any]) -> Self:
        """Return the guard of a TOML table: `name` and `value` of a constant, or `old` and `new`.

        Raises MutationError unless the constant, or the text, occurs exactly once.
        """
        source = (ROOT / file).read_text()
        name = entry.get("name", "")
        old, new = entry.get("old", ""), entry.get("new", "")
        if name:
            old = _assignment(source, name)
            new = f"{old.partition('=')[0]}= {entry['value']}"
        if not old or source.count(old) != 1:
            raise MutationError(f"{file}: {name or old!r} must occur exactly once")
        label = name or entry.get("rule") or old.strip().splitlines()[0]
        return cls(name=label, file=file, old=old, new=new, tests=tuple(entry["tests"]))


def listed() -> tuple[list[Guard], dict[str, Mapping[str, str]]]:
    """Return all guards, and by file the numbers that are no guards, with the reason."""
    guards: list[Guard] = []
    no_guards: dict[str, Mapping[str, str]] = {}
    for file in sorted(_LISTS.glob("*.toml")):
        document = tomllib.loads(file.read_text())
        no_guards |= document.get("no_guard", {})
        for source, entries in document.get("guards", {}).items():
            guards += (Guard.from_entry(source, entry) for entry in entries)
    return guards, no_guards


def numbers() -> Iterator[tuple[str, str]]:
    """Yield file and name of each numeric constant and setting of the services and of shared."""
    for package in _PACKAGES:
        for file in sorted((ROOT / package / "src").rglob("*.py")):
            if "migrations/versions" not in file.as_posix():
                for name, _ in _numbers(ast.parse(file.read_text())):
                    yield file.relative_to(ROOT).as_posix(), name


def _numbers(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for statement in (statement for body in bodies for statement in body):
        target = None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        if isinstance(target, ast.Name) and _is_number(statement.value):  # type: ignore[attr-defined]  # of both
            yield target.id, statement


def _is_number(value: ast.expr | None) -> bool:
    """Return whether a value is made of numbers only; 0 and booleans are initial values."""
    match value:
        case ast.Constant():
            number = value.value
            return type(number) in (int, float) and number != 0
        case ast.BinOp():
            return _is_number(value.left) and _is_number(value.right)
        case ast.UnaryOp():
            return _is_number(value.operand)
        case ast.Tuple():
            return bool(value.elts) and all(map(_is_number, value.elts))
        case ast.Call(func=ast.Name(id="timedelta")):
            return any(map(_is_number, [*value.args, *(word.value for word in value.keywords)]))
        case ast.Call(func=ast.Name(id="Field")):
            given = [word.value for word in value.keywords if word.arg not in ("ge", "gt")]
            return any(map(_is_number, [*value.args, *given]))
    return False


def _assignment(source: str, name: str) -> str:
    found = [
        ast.get_source_segment(source, statement) or ""
        for known, statement in _numbers(ast.parse(source))
        if known == name
    ]
    return found[0] if len(found) == 1 else ""


def mutate(words: Sequence[str]) -> int:
    """Remove, one at a time, the guards whose file or name contains one of `words`, or all guards.

    Each guard takes a run of its tests: all of them take about three hours.
    """
    guards = [
        guard
        for guard in listed()[0]
        if not words or any(word in f"{guard.file} {guard.name}" for word in words)
    ]
    if not guards:
        raise SystemExit(f"No guard has {' or '.join(words)} in its file or name.")
    survived = []
    with servers("mutate") as addresses:
        _copy_tree()
        programs = {"PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"}  # buf, just
        environment = {**os.environ, **addresses.as_environment(), **programs}
        for number, guard in enumerate(guards, 1):
            outcome = _remove(guard, environment)
            print(
                f"mutate: {number}/{len(guards)} {guard.file} {guard.name}: {outcome}", flush=True
            )
            if outcome != "noticed":
                survived.append(guard)
    for guard in survived:
        print(f"mutate: no test fails without {guard.file} {guard.name}: {' '.join(guard.tests)}")
    return int(bool(survived))


def _remove(guard: Guard, environment: Mapping[str, str]) -> str:
    """Run the tests of a guard without it; return the outcome."""
    file = _COPY / guard.file
    source = file.read_text()
    file.write_text(source.replace(guard.old, guard.new))
    try:
        completed = subprocess.run(
            [_COPY / ".venv/bin/python", "-m", "pytest", "-x", "-q", "--no-header", *guard.tests],
            cwd=_COPY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not noticed (no result within {_TEST_SECONDS} seconds)"
    finally:
        file.write_text(source)
    if completed.returncode == _TESTS_FAILED and _FAILED.search(completed.stdout):
        return "noticed"
    last = completed.stdout.strip().splitlines()[-1:] or completed.stderr.strip().splitlines()[-1:]
    return f"not noticed ({''.join(last)})"


def _copy_tree() -> None:
    """Copy the tracked files, with environments that import the copy instead of the original."""
    shutil.rmtree(_COPY, ignore_errors=True)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listing.stdout.split("\0")):
        target = _COPY / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    sources = [_COPY / "gen", *(_COPY / package / "src" for package in _PACKAGES)]
    for source in sources:  # a source that is replaced is newer than its compiled file
        compileall.compile_dir(source, quiet=2)
    for folder in (".venv", *(f"{service}/.venv" for service in SERVICES)):
        _environment(_COPY / folder, ROOT / folder, sources)


def _environment(folder: Path, original: Path, sources: Sequence[Path]) -> None:
    """Make a virtual environment with the packages of `original`, in which `sources` come first.

    It never writes compiled files: the sources of a guard change within a second.
    """
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    [known] = original.glob("lib/python*/site-packages")
    (packages / "postbus.pth").write_text(
        "".join(f"{source}\n" for source in sources)
        + "import sys; sys.dont_write_bytecode = True\n"
        + f"import site; site.addsitedir({str(known)!r})\n"
    )


if __name__ == "__main__":
    sys.exit(mutate(sys.argv[1:]))
