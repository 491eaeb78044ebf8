"""Where things are in a clone."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"  # everything a developer's machine keeps: tools, servers, data, secrets
LOGS = ROOT / "logs"  # what `just dev` prints, by service
VENV = ROOT / ".venv"
# A service is a package that can be run: NAME/src/NAME/__main__.py.
SERVICES = tuple(sorted(main.parent.name for main in ROOT.glob("*/src/*/__main__.py")))


def python_of(service: str) -> Path:
    """The interpreter of a service's own environment."""
    return ROOT / service / ".venv" / "bin" / "python"
