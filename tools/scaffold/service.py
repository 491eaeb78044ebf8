"""Create and remove a service, all of it or nothing."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

from tools.lock import lock_service
from tools.paths import DEV, ROOT, SERVICES, VENV
from tools.scaffold.listings import (
    add_to_compose,
    add_to_pyproject,
    remove_from_compose,
    remove_from_pyproject,
)
from tools.scaffold.service_names import Names, names_of
from tools.servers.signals import deferred_signals

_TEMPLATES = Path(__file__).parent / "templates"
_PYPROJECT, _COMPOSE = ROOT / "pyproject.toml", ROOT / "compose.yaml"


def new_service(name: str, *, thing: str, database: str) -> None:
    """Write the service, lock its dependencies and run `just gen`; SystemExit on failure."""
    names = names_of(name, thing, database)
    with _all_or_nothing(name):
        written = [_write(template, names) for template in _templates(database)]
        _PYPROJECT.write_text(add_to_pyproject(_PYPROJECT.read_text(), name))
        _COMPOSE.write_text(add_to_compose(_COMPOSE.read_text(), name, database))
        lock_service(name)
        _run("python", "-m", "tools.contracts.generate")
        ours = [str(folder) for folder in _folders(name)]
        _run("ruff", "check", "--quiet", "--select=I", "--fix", *ours)
        _run("ruff", "format", "--quiet", *ours)
        _run("ruff", "check", "--quiet", *ours)
    files = sorted([*written, ROOT / name / "requirements.txt"])
    print("\n".join(f"  {file.relative_to(ROOT)}" for file in files))
    print(
        "  and its entries in pyproject.toml, compose.yaml and gen/\n"
        f"new-service: {name} works: try ./just test tests/{name}\n"
        f"  Make it yours in proto/postbus/{name}/v1, run ./just gen, and write the handlers in\n"
        f"  {name}/src/{name}/handlers.py. Restart a running ./just dev to include it."
    )


def remove_service(name: str, *, yes: bool) -> None:
    """Remove the service after a confirmation; SystemExit if another one depends on it."""
    if name not in SERVICES or name == "gateway":
        raise SystemExit(f"There is no service {name}.")
    if users := _users(name):
        raise SystemExit(f"{name} can't be removed: it is used by\n  " + "\n  ".join(users))
    _confirm(name, yes=yes)
    with _all_or_nothing(name):
        for folder in _folders(name):
            shutil.rmtree(folder, ignore_errors=True)
        _PYPROJECT.write_text(remove_from_pyproject(_PYPROJECT.read_text(), name))
        _COMPOSE.write_text(remove_from_compose(_COMPOSE.read_text(), name))
        _run("python", "-m", "tools.contracts.generate")
    print(f"remove-service: {name} is removed; its database with its data and its accounts stay")


def _folders(name: str) -> tuple[Path, ...]:
    """Return the folders of the service."""
    return (ROOT / name, ROOT / "proto" / "postbus" / name, ROOT / "tests" / name)


def _templates(database: str) -> Iterator[tuple[Path, str]]:
    """Return each template with the path of the file to write."""
    for base in (_TEMPLATES / "every", _TEMPLATES / database):
        for template in sorted(base.rglob("*.tmpl")):
            yield template, str(template.relative_to(base)).removesuffix(".tmpl")


def _write(template: tuple[Path, str], names: Names) -> Path:
    source, path = template
    target = ROOT / path.replace("NAME", names.service)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(Template(source.read_text()).substitute(names.placeholders()))
    return target


@contextmanager
def _all_or_nothing(name: str) -> Iterator[None]:
    """Restore all files if the block fails or is interrupted."""
    touched = [*_folders(name), _PYPROJECT, _COMPOSE, ROOT / "gen" / "postbus"]
    DEV.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEV) as kept:
        copies = {path: Path(kept) / str(number) for number, path in enumerate(touched)}
        for path, copy in copies.items():
            _copy(path, copy)
        try:
            yield
        except BaseException:
            with deferred_signals():
                for path, copy in copies.items():
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                    _copy(copy, path)
            raise


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder if it exists, without environments and caches."""
    if source.is_dir():
        ignored = shutil.ignore_patterns(".venv", "__pycache__")
        shutil.copytree(source, target, ignore=ignored)
    elif source.exists():
        shutil.copy2(source, target)


def _users(name: str) -> list[str]:
    """Return files outside the service that use its contracts or import its package."""
    uses = rf'postbus\.{name}\.|^import "postbus/{name}/|^(from|import) {name}\b'
    ours = [f":!{folder.relative_to(ROOT)}" for folder in _folders(name)]
    return _git("grep", "--untracked", "-lE", uses, "--", "*.py", "*.proto", ":!gen", *ours)


def _confirm(name: str, *, yes: bool) -> None:
    """Print the files to remove and the ones that git cannot restore; SystemExit after a no."""
    ours = [str(folder.relative_to(ROOT)) for folder in _folders(name)]
    print(f"remove-service: removes {', '.join(ours)} and the entries of {name} in other files")
    if lost := _git("status", "--porcelain", "--untracked-files=all", "--", *ours):
        print("  These changes were never committed and will be lost:")
        print("\n".join(f"  {line}" for line in lost))
    if yes:
        return
    if not sys.stdin.isatty():
        raise SystemExit("Nothing is removed without a yes: answer with --yes.")
    if input("Remove it? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise SystemExit("Nothing is removed.")


def _git(*arguments: str) -> list[str]:
    """Return the output lines of git; SystemExit if it fails, such as outside a repository."""
    completed = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if completed.returncode > 1:  # 1: git grep without a match
        raise SystemExit(completed.stderr.strip())
    return completed.stdout.splitlines()


def _run(program: str, *arguments: str) -> None:
    """Run a program of the workspace; SystemExit if it fails; its output gives the cause."""
    command = [str(VENV / "bin" / program), *arguments]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"{program} {' '.join(arguments[:2])} failed: nothing is changed.")
