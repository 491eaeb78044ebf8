"""Generate the contracts of another package root beside those of Postbus, outside gen/.

The folder that is written precedes `gen` on PYTHONPATH: gateways and workers that are started so
serve both contracts over the Connect protocol and the bus. The documents have Postbus' own only.
"""

import shutil
import tempfile
from pathlib import Path

from postbus_runtime.contract import Contract
from postbus_runtime.options import Access
from tools.contracts.generate.__main__ import generate
from tools.contracts.generate.package_modules import write_further_contract
from tools.paths import DEV, ROOT

__all__ = ["generate_further"]


def generate_further(folder: Path, root: str, access: Access, target: Path) -> list[str]:
    """Write the packages `postbus` and `root` into `target`, which must not contain them.

    `folder` contains the .proto files of packages that begin with `root`, which must be one name.
    `access` is that of methods that state none. Returns the full names of the methods that are not
    served, because they have a stream of requests. Raises like `generate`.
    """
    with tempfile.TemporaryDirectory(dir=DEV) as name:
        project = Path(name)
        shutil.copytree(ROOT / "proto", project / "proto")
        shutil.copytree(folder, project / "proto", dirs_exist_ok=True)
        shutil.copy(ROOT / "buf.yaml", project)
        fresh = project / "generated"
        fresh.mkdir()
        generate(project, fresh / "postbus", (root,))
        for package in ("postbus", root):
            shutil.copytree(fresh / package, target / package)
    write_further_contract(target / "postbus", {root: access})
    descriptors = (target / "postbus" / "contracts.binpb").read_bytes()
    contract = Contract(descriptors, further={root: access})
    return [method.full_name for method in contract.unserved]
