"""Hawse and the locked wheels in the image's root."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.markers import Marker

from deploy import lock_subset
from deploy.image import ROOT, ImageError, last_words

# Debian's Python has it on its path.
SITE = "usr/local/lib/python3.13/dist-packages"
PROGRAM = "usr/local/bin/hawse"
# In the relay's image, Hawse itself lacks these.
NOT_IN_RELAY = ("audit", "proxy/hub")
EXTRAS = {
    "relay": ("guardrails", "speed"),
    "hub": ("guardrails", "hub", "mask", "postgres", "speed"),
}
# Hawse loads only its extension module; its requirements are a terminal toolkit.
LEAVES = {"common-expression-language"}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# Debian 13's glibc.
_GLIBC_MINOR = 41
_PROGRAM = """\
#!/usr/bin/python3.13 -P
from hawse.__main__ import main

main()
"""
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "deploy/package_page.py")


def requirements(target: str, architecture: str) -> str:
    """The lines of requirements.lock for an image, with hashes.

    pip evaluates markers for the Python that it runs on, so here they are evaluated for the image's.
    """
    packages = lock_subset.read_lock((ROOT / "requirements.lock").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = lock_subset.subset(packages, lock_subset.roots(project, EXTRAS[target]), LEAVES)
    chosen = []
    for name in names:
        pin, *hashes = packages[name][0].rstrip(" \\\n").splitlines()
        requirement, _, marker = pin.rstrip(" \\").partition(" ; ")
        if not marker or applies(marker, architecture):
            chosen.append("\n".join([f"{requirement} \\", *hashes]))
    return "\n".join(chosen) + "\n"


def applies(marker: str, architecture: str) -> bool:
    """Whether a requirement with this marker is for the image's Python."""
    python = {
        "implementation_name": "cpython",
        "implementation_version": "3.13.5",
        "os_name": "posix",
        "platform_machine": _MACHINES[architecture],
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": "3.13.5",
        "python_version": "3.13",
        "sys_platform": "linux",
    }
    return Marker(marker).evaluate(python)


def install(root: Path, target: str, architecture: str, work: Path, epoch: int) -> None:
    """Install the locked wheels, and Hawse's own, built from the checkout.

    Raises ImageError when pip cannot: a wheel is missing, or its hash is another.
    """
    work.mkdir(parents=True)
    lock = work / "requirements.lock"
    lock.write_text(requirements(target, architecture))
    machine = _MACHINES[architecture]
    # pip takes each of these literally, and the oldest that a wheel names may be any of them.
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, 4, -1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    chosen = ["--python-version=3.13", "--implementation=cp", "--abi=cp313", "--abi=abi3", "--abi=none"]
    chosen += ["--only-binary=:all:", *(f"--platform={each}" for each in platforms)]
    site = root / SITE
    pip_install(site, *chosen, "--require-hashes", "--requirement", str(lock))
    wheel = build_wheel(work, target, epoch)
    pip_install(site, "--no-index", "--find-links", str(wheel.parent), "hawse", "--upgrade")
    _remove_scripts(site)
    program = root / PROGRAM
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(_PROGRAM)
    program.chmod(0o755)


def pip_install(site: Path, *args: str) -> None:
    """Install what the arguments name and nothing that it requires. Raises ImageError with pip's reason."""
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--no-compile", "--target", str(site), *args]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        # With the lines after it: they name the package whose hash is another.
        raise ImageError(f"pip: {done.stderr.rpartition('ERROR: ')[2].strip()}")


def build_wheel(work: Path, target: str, epoch: int) -> Path:
    """Build Hawse's wheel from a copy of the sources that the image has."""
    source = work / "source"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    for name in packages:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _SOURCES:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in NOT_IN_RELAY if target == "relay" else ():
        shutil.rmtree(source / name)
    folder = str(work / "wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(argv, cwd=source, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise ImageError(f"hatchling: {last_words(done)}")
    [wheel] = Path(folder).iterdir()
    return wheel


def _remove_scripts(site: Path) -> None:
    """Remove the programs of all wheels, which name this machine's Python, from disk and from the records."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    for path in site.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    for record in site.glob("*.dist-info/RECORD"):
        rows = [row for row in csv.reader(io.StringIO(record.read_text())) if not is_script(row[0])]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        record.write_text(text.getvalue())


def is_script(path: str) -> bool:
    """Whether a path in a wheel's record is a program."""
    return "bin" in Path(path).parts[:3] and path.startswith(("../", "bin/"))
