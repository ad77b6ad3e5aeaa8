"""Make a release's files out of the commit, and the list of their hashes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import attrs
from packaging.version import Version

from deploy import bom, checkout
from deploy.release import ReleaseError, bill, changelog, stated

SUMS = "SHA256SUMS"
_CHANGELOG = "CHANGELOG.md"


@attrs.frozen
class Made:
    """A file, its bytes and its SHA-256."""

    file: Path
    size: int
    sha256: str


@attrs.frozen
class Release:
    """What was made of a commit. `note` says why it is none to publish, if it is none."""

    version: str
    commit: str
    files: Sequence[Made]
    note: str


def check(root: Path) -> tuple[str, str]:
    """The version, and why it is none to publish, empty if it is one.

    Raises ReleaseError with a line for each fault: places that state another version, the changelog's form,
    and a changelog without the version.
    """
    try:
        version = stated.source(root)
    except ValueError as error:
        raise ReleaseError(str(error)) from error
    faults = [
        f"{place.file}:{place.line} has {place.found} for {place.expected}: "
        f"run `python -m deploy.release --set {version}`"
        for place in stated.wrong(root, version)
    ]
    log = changelog.read((root / _CHANGELOG).read_text())
    faults += [f"{_CHANGELOG}:{fault}" for fault in log.faults]
    section, fault = changelog.entry(log, version)
    if fault:
        faults.append(f"{_CHANGELOG}: {fault}")
    if faults:
        raise ReleaseError("\n".join(faults))
    if Version(version).is_prerelease:
        return version, f"{version} is no release: its number says so"
    if section is not None and section.date == changelog.PENDING:
        return version, f"{version} is no release: {_CHANGELOG}:{section.line} has no date"
    return version, ""


def make(root: Path, output: Path) -> Release:
    """Build all files from the commit into a folder, and replace what is there of this version.

    Raises CheckoutError when the files differ from the commit, ReleaseError when check() or hatchling fails.
    """
    commit = checkout.commit(root)
    epoch = checkout.source_epoch(root)
    version, note = check(root)
    with tempfile.TemporaryDirectory() as work:
        source, built = Path(work, "source"), Path(work, "built")
        checkout.export(root, source)
        build(source, built, epoch)
        wheel = built / f"hawse-{version}-py3-none-any.whl"
        archive = built / f"hawse-{version}.tar.gz"
        if sorted(built.iterdir()) != sorted([wheel, archive]):
            names = ", ".join(sorted(path.name for path in built.iterdir())) or "nothing"
            raise ReleaseError(f"hatchling made {names}: expected the version {version}")
        project = tomllib.loads((source / "pyproject.toml").read_text())
        found = bill.requirements((source / "requirements.lock").read_text(), project)
        text = bom.text(bill.bill(wheel, version, commit, epoch, found, bill.licences()))
        bill.validate(text)
        materials = built / f"hawse-{version}.cdx.json"
        materials.write_text(text)
        output.mkdir(parents=True, exist_ok=True)
        for path in (wheel, archive, materials):
            # Beside its place first: a copy that fails leaves what was there before.
            part = output / f"{path.name}.part"
            shutil.copyfile(path, part)
            part.replace(output / path.name)
    files = [describe(output / path.name) for path in (wheel, archive, materials)]
    return Release(version, commit, [*files, write_sums(output, version)], note)


def build(source: Path, output: Path, epoch: int) -> None:
    """Build wheel and source distribution. Raises ReleaseError with hatchling's last line."""
    argv = [sys.executable, "-m", "hatchling", "build", "--directory", str(output)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(argv, cwd=source, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise ReleaseError(f"hatchling: {lines[-1]}")


def of_version(folder: Path, version: str) -> list[Path]:
    """The files of a version: wheel, source, bills, images and charts."""
    name = re.compile(rf"hawse[a-z-]*-{re.escape(version)}(?:-|\.(?!part$|dev))[\w.-]+(?<!\.part)")
    return sorted(path for path in folder.iterdir() if path.is_file() and name.fullmatch(path.name))


def write_sums(folder: Path, version: str) -> Made:
    """Write the hashes of a version's files, as `sha256sum -c` reads them."""
    lines = [f"{_sha256(path)}  {path.name}\n" for path in of_version(folder, version)]
    part = folder / f"{SUMS}.part"
    part.write_text("".join(lines))
    part.replace(folder / SUMS)
    return describe(folder / SUMS)


def describe(file: Path) -> Made:
    return Made(file, file.stat().st_size, _sha256(file))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
