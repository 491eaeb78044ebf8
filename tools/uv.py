"""Where uv is: on PATH (as under ./just), else where ./just keeps it."""

import shutil

from tools.paths import DEV


def uv() -> str:
    """The path of uv; without any, the program ends with what to do."""
    private = DEV / "just" / "bin" / "uv"
    if found := shutil.which("uv"):
        return found
    if private.exists():
        return str(private)
    raise SystemExit("uv is not on PATH: run this through ./just, which brings it.")
