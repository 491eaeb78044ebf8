"""Write gen/postbus from proto/, without network, and reproducibly.

A document that changes is validated first; this installs the npm packages of tools/npm once.

`python -m tools.contracts.generate --check` writes nothing and fails if gen/postbus is not up to
date. The hand-written gen/postbus_runtime beside it is left alone.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from postbus_runtime.contract import ContractError
from tools.contracts.gen import remember
from tools.contracts.generate.asyncapi import asyncapi
from tools.contracts.generate.contract_checks import check_contracts
from tools.contracts.generate.described import described_source
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.document_validators import DOCUMENTS, invalid_documents
from tools.contracts.generate.language_options import add_options
from tools.contracts.generate.message_classes import message_classes
from tools.contracts.generate.openapi import openapi
from tools.contracts.generate.package_modules import write_package_modules
from tools.contracts.generate.protos_zip import protos_zip
from tools.contracts.generate.reasons import reasons_source
from tools.contracts.generate.rest_models import rest_models_source
from tools.contracts.generate.rule_checks import require_consistent_rules
from tools.contracts.generate.third_party import lay_out
from tools.paths import DEV, ROOT, VENV

_TARGET = ROOT / "gen" / "postbus"


def main(arguments: list[str]) -> int:
    """Generate into a temporary folder, and replace gen/postbus only if the output is valid.

    Return 1 if the contracts or documents are not valid, or if `just check` refuses the contracts.
    """
    check = arguments == ["--check"]
    with tempfile.TemporaryDirectory(dir=DEV) as name:
        fresh = Path(name) / "postbus"
        try:
            if not check:
                _run("buf", "format", "-w", "proto", cwd=ROOT)
            generate(ROOT, fresh)
        except subprocess.CalledProcessError as error:
            return error.returncode
        if check:
            return _report(_differences(fresh, _TARGET))
        if errors := replace(fresh, _TARGET):
            print("gen: nothing was written:", *errors, sep="\n", file=sys.stderr)
            return 1
    return _finish()


def replace(fresh: Path, target: Path) -> list[str]:
    """Replace a package if it differs and its changed documents are valid; return their errors."""
    differences = _differences(fresh, target)
    changed = tuple(name for name in DOCUMENTS if name in differences)
    if errors := list(invalid_documents(fresh, changed)):
        return errors
    if differences:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(fresh, target)
    return []


def _finish() -> int:
    """Lint the contracts, and remember that gen/ is up to date if they pass."""
    try:
        _run("buf", "lint", cwd=ROOT)
    except subprocess.CalledProcessError as error:
        print("gen: gen/ is written, but just check refuses the contracts", file=sys.stderr)
        return error.returncode
    remember()
    print("gen: gen/ is up to date")
    return 0


def generate(project: Path, target: Path, further: Collection[str] = ()) -> None:
    """Write the package `postbus` from `project`/proto into `target`, which must not exist.

    The packages with the roots `further` are written beside it. The documents do not have them.
    Raises CalledProcessError, after buf's errors are printed, and SystemExit with the file, line
    and reason if the contract is not supported.
    """
    lay_out(project / ".dev/third_party", project / "third_party")
    documented = target.with_name("documented.binpb")
    _run("buf", "build", "proto", "-o", str(documented), cwd=project)
    contracts = Contracts(documented.read_bytes())
    for name in contracts.file_names:
        if not name.isascii():
            sys.exit(f"gen: proto/{name}: tools need a file name in ASCII")
    require_consistent_rules(contracts, project)
    roots = tuple(f"{root}/" for root in ("postbus", *further))
    for name in contracts.file_names:
        if (project / "proto" / name).exists() and not name.startswith(roots):
            sys.exit(f"gen: proto/{name}: every contract belongs in proto/postbus")
    try:
        check_contracts(contracts)
        _write(contracts, project, target, further)
    except ContractError as error:
        sys.exit(f"gen: {contracts.explain(error)}")


def _write(contracts: Contracts, project: Path, target: Path, further: Collection[str]) -> None:
    for name, source in message_classes(contracts, further).items():
        module = target.parent / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(source)
    (target / "py.typed").touch()
    lean = target / "contracts.binpb"
    _run("buf", "build", "proto", "--exclude-source-info", "-o", str(lean), cwd=project)
    lean.write_bytes(add_options(lean.read_bytes()))
    (target / "protos.zip").write_bytes(protos_zip(contracts.protos, project))
    write_package_modules(target)
    (target / "reasons.py").write_text(reasons_source(contracts))
    (target / "described.py").write_text(described_source(contracts))
    for name, document in (("openapi", openapi), ("asyncapi", asyncapi)):
        text = json.dumps(document(contracts), indent=2)
        (target / f"{name}.json").write_text(text + "\n")
    (target / "rest.py").write_text(rest_models_source(contracts))
    _run("ruff", "format", "--isolated", "--line-length=100", "--quiet", str(target), cwd=ROOT)


def _run(*command: str, cwd: Path) -> None:
    """Run a program of the development environment; print its output only if it fails."""
    path = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, cwd=cwd, env=os.environ | {"PATH": path}, capture_output=True, check=False
    )
    if result.returncode:
        sys.stderr.buffer.write(result.stdout + result.stderr)
        result.check_returncode()


def _differences(fresh: Path, present: Path) -> list[str]:
    """Return the names of the files that differ between two trees, without Python's caches."""
    trees = [
        {
            path.relative_to(tree)
            for path in tree.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        for tree in (fresh, present)
    ]
    changed = {
        path
        for path in trees[0] & trees[1]
        if not filecmp.cmp(fresh / path, present / path, shallow=False)
    }
    return sorted(map(str, changed | (trees[0] ^ trees[1])))


def _report(differences: list[str]) -> int:
    for name in differences:
        print(f"gen/postbus/{name} is not up to date with proto/: run just gen", file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
