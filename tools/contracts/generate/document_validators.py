"""Validate the documents of the API with the official validators of their formats.

`python -m tools.contracts.generate.document_validators` validates those of gen/postbus.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from tools.node import node_environment, node_modules
from tools.paths import ROOT

__all__ = ["DOCUMENTS", "asyncapi_errors", "invalid_documents", "openapi_errors"]

_MAX_ERRORS: Final = 5
"""Errors shown of one document."""
_PARSE: Final = """
import { Parser } from "@asyncapi/parser";
import { readFileSync } from "node:fs";
const { diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
for (const each of diagnostics.filter((each) => each.severity < 2)) {
  console.log(`${each.path.join("/")}: ${each.message}`);
}
"""


def openapi_errors(text: str) -> list[str]:
    """Return the first error that openapi-spec-validator finds in a document, if there is one.

    After an error of the structure, the validator cannot check the names.
    """
    from openapi_spec_validator import OpenAPIV31SpecValidator  # takes half a second of CPU

    errors = islice(OpenAPIV31SpecValidator(json.loads(text)).iter_errors(), 1)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def asyncapi_errors(text: str) -> list[str]:
    """Return the errors that the parser of AsyncAPI finds in a document, a second or more later.

    Its npm packages are installed first if they are missing.
    """
    completed = subprocess.run(
        ["node", "--input-type=module", "-e", _PARSE],
        input=text,
        cwd=node_modules().parent,
        env=node_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return completed.stdout.splitlines()


_VALIDATORS: Final[Mapping[str, Callable[[str], list[str]]]] = {
    "openapi.json": openapi_errors,
    "asyncapi.json": asyncapi_errors,
}
DOCUMENTS: Final = tuple(_VALIDATORS)
"""The names of the documents."""


def invalid_documents(folder: Path, names: tuple[str, ...] = DOCUMENTS) -> Iterator[str]:
    """Yield the errors of the documents in a folder, a line each."""
    for name in names:
        errors = _VALIDATORS[name]((folder / name).read_text())
        yield from (f"{name}: {error}" for error in errors[:_MAX_ERRORS])


def main() -> int:
    """Print the errors of the documents in gen/postbus; return 1 if there are any."""
    errors = list(invalid_documents(ROOT / "gen/postbus"))
    print("\n".join(errors), file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
