"""A foreign package with the same short names at the top level of site-packages."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

NAMES = ("auth", "audit", "proxy", "tunnel")


def neighbour(folder: Path) -> Path:
    """Write its wheel. Each of its packages fails on import."""
    info = "neighbour-1.0.dist-info"
    files = {f"{name}/__init__.py": f'raise RuntimeError("the neighbour\'s {name}")\n' for name in NAMES}
    files[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: neighbour\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    recorded = [f"{name},{_hash(text)},{len(text)}\n" for name, text in files.items()]
    files[f"{info}/RECORD"] = "".join([*recorded, f"{info}/RECORD,,\n"])
    wheel = folder / "neighbour-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def _hash(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return f"sha256={digest.decode().rstrip('=')}"
