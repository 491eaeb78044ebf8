"""The module `reasons` of the npm package: a constant for each reason of errors."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from google.rpc.code_pb2 import Code

from postbus_runtime.reasons import Reason

__all__ = ["write_npm_reasons"]

_TYPES: Final = """\
/** What the contract states about a reason. */
export interface ReasonRules {
  readonly code: string;
  readonly httpStatus: number;
  readonly meaning: string;
}
/** The rules of each reason, by its name. */
export declare const REASONS: Readonly<Record<string, ReasonRules>>;
"""


def write_npm_reasons(folder: Path, reasons: Iterable[Reason]) -> None:
    """Write reasons.js and reasons.d.ts into a folder."""
    code, types, rules = [], [_TYPES], {}
    for reason in reasons:
        name = Code.Name(reason.code)
        code.append(f'export const {reason} = "{reason}";\n')
        types.append(f"/** {reason.meaning} ({name}, HTTP status {reason.http_status}) */\n")
        types.append(f'export declare const {reason}: "{reason}";\n')
        rules[str(reason)] = {
            "code": name,
            "httpStatus": reason.http_status,
            "meaning": reason.meaning,
        }
    code.append(f"export const REASONS = {json.dumps(rules, indent=2)};\n")
    (folder / "reasons.js").write_text("".join(code))
    (folder / "reasons.d.ts").write_text("".join(types))
