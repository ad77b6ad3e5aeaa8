"""Packages the charts for a release. It needs no helm: a packaged chart is a tar file of its folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CHARTS = ("hawse-relay",)


def files(chart: str) -> Iterator[tuple[str, bytes]]:
    """Yield the chart's files with their paths, in an order that is the same everywhere."""
    folder = FOLDER / chart
    for path in sorted(folder.rglob("*"), key=lambda each: each.relative_to(folder).as_posix()):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def digest(chart: str) -> str:
    """Return a digest of all that Helm renders a chart from: every file but its README."""
    hashed = hashlib.sha256()
    for name, content in files(chart):
        if name != "README.md":
            hashed.update(f"{name}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()


def package(chart: str) -> bytes:
    """Return the packaged chart. Its bytes depend on the files' names and contents alone."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files(chart):
            member = tarfile.TarInfo(f"{chart}/{name}")
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)
