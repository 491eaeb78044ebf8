"""Measure the language of docstrings: `python -m tools.language`.

A docstring whose first paragraph has one of the words below usually describes a thing instead of
naming it. The glossary (docs/glossary.md) has the names. The docstrings of modules, classes and
functions are measured.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.paths import ROOT, SERVICES

__all__ = ["main", "vague_docstrings"]

MAX_SHARE: Final = 0.03
"""Largest share of docstrings of a package with one of the words."""
_VAGUE: Final = re.compile(
    r"\b(what|who|whom|whose|those|others|nobody|anybody|meanwhile|for ever|it is so)\b",
    re.IGNORECASE,
)
_FOLDERS: Final = {
    "postbus_runtime": "gen/postbus_runtime",
    "shared": "shared/src",
    **{service: f"{service}/src" for service in SERVICES},
    **{name: name for name in ("tools", "tests", "bench")},
}


def vague_docstrings(source: str) -> tuple[list[tuple[int, str]], int]:
    """Return line and first line of each vague docstring, and the number of docstrings."""
    found, count = [], 0
    for line, docstring in _docstrings(ast.parse(source)):
        count += 1
        if _VAGUE.search(docstring.partition("\n\n")[0]):
            found.append((line, docstring.partition("\n")[0]))
    return found, count


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line of each module, class and function, and its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "lineno", 1), docstring


def main() -> int:
    """Print the share of vague docstrings per package; return 1 if a share is above 3 %."""
    failed = False
    for package, folder in _FOLDERS.items():
        lines, count = _measure(ROOT / folder)
        share = len(lines) / max(count, 1)
        print(f"{package}: {len(lines)} of {count} docstrings are vague ({share:.1%})")
        if share > MAX_SHARE:
            failed = True
            print(*lines, sep="\n")
    return int(failed)


def _measure(folder: Path) -> tuple[list[str], int]:
    lines, count = [], 0
    for file in sorted(folder.rglob("*.py")):
        found, docstrings = vague_docstrings(file.read_text())
        count += docstrings
        lines += [f"  {file.relative_to(ROOT)}:{line}: {text}" for line, text in found]
    return lines, count


if __name__ == "__main__":
    sys.exit(main())
