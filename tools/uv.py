"""The path of uv: from PATH (as under ./just), or from the folder of ./just."""

import shutil

from tools.paths import DEV


def uv() -> str:
    """Return the path of uv; SystemExit with instructions if there is none."""
    private = DEV / "just" / "bin" / "uv"
    if found := shutil.which("uv"):
        return found
    if private.exists():
        return str(private)
    raise SystemExit("uv is not on PATH: run this through ./just, which brings it.")
