"""Paths of the repository."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"  # tools, servers, data and secrets of this machine
SECRETS = Path(os.environ.get("POSTBUS_SECRETS_FILE") or DEV / "secrets.env")  # of this machine
LOGS = ROOT / "logs"  # output of `just dev`, by service
VENV = ROOT / ".venv"
# A service is a package that can be run: NAME/src/NAME/__main__.py.
SERVICES = tuple(sorted(main.parent.name for main in ROOT.glob("*/src/*/__main__.py")))


def python_of(service: str) -> Path:
    """Return the Python interpreter of a service's virtual environment."""
    return ROOT / service / ".venv" / "bin" / "python"
