"""Installations of Hawse, all offline: wheels, virtual environments, and the contents of the images."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)
_LOCK_SUBSET = re.compile(r"(?:RUN|&&) python3 (deploy/lock_subset\.py --extra .*) > /tmp/(\w+)\.lock")
_REMOVED = re.compile(r"^RUN rm -r (.*) \\$", re.MULTILINE)


def build(target: str, folder: Path, root: Path = ROOT) -> Path:
    """Build the `wheel` or the `sdist` of a source tree into an empty folder."""
    argv = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(argv, cwd=root, check=True, capture_output=True)
    [built] = folder.iterdir()
    return built


@attrs.frozen
class Environment:
    """A virtual environment with its own programs."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    @property
    def site(self) -> Path:
        [found] = (self.folder / "lib").glob("python*/site-packages")
        return found

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process: this installation's programs first, none of the checkout's."""
        checkouts = str(Path(sys.executable).parent)
        others = [each for each in os.environ.get("PATH", os.defpath).split(os.pathsep) if each != checkouts]
        return {**os.environ, "PATH": os.pathsep.join([str(self.programs), *others])}

    def pip(self, *args: str) -> None:
        python = str(self.programs / "python")
        argv = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *args]
        subprocess.run(argv, check=True, capture_output=True)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--no-compile", str(wheel))

    def top_level(self) -> set[str]:
        """The files in site-packages."""
        return {each.name for each in self.site.iterdir() if each.name != "packages.pth"}

    def damaged(self, name: str) -> list[str]:
        """The files of a distribution that are missing or changed."""
        [record] = self.site.glob(f"{name}-*.dist-info/RECORD")
        rows = csv.reader(io.StringIO(record.read_text()))
        return [path for path, recorded, _ in rows if recorded and _digest(self.site / path) != recorded]

    def run(
        self, *argv: str, variables: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            env={**self.variables, **(variables or {})},
            cwd=cwd or self.folder,
        )


def _digest(path: Path) -> str:
    if not path.is_file():
        return "missing"
    digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
    return f"sha256={digest.decode().rstrip('=')}"


def make_environment(folder: Path, packages: Iterable[str]) -> Environment:
    """Create an environment that finds only these of the installed packages."""
    venv.create(folder, symlinks=True)
    environment = Environment(folder)
    links = folder / "packages"
    links.mkdir()
    for name in packages:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform or Python than this one
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (links / top).symlink_to(Path(str(found.locate_file(top))))
    (environment.site / "packages.pth").write_text(f"{links}\n")
    return environment


def image_packages(target: str) -> list[str]:
    """The Containerfile's selection from the lock for an image: the relay's, or also the hub's."""
    commands = {name: command for command, name in _LOCK_SUBSET.findall(CONTAINERFILE)}
    argv = [sys.executable, *commands[target].split()]
    done = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True)
    return _PINNED.findall(done.stdout)


def relay_source(folder: Path) -> Path:
    """The source tree that the relay's image is built from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    ignored = shutil.ignore_patterns("__pycache__")
    for name in packages:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "deploy/package_page.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    [removed] = _REMOVED.findall(CONTAINERFILE)
    for name in removed.split():
        shutil.rmtree(folder / name)
    return folder


def relay_image(folder: Path) -> Environment:
    """The contents of /opt/hawse in the relay's image."""
    environment = make_environment(folder / "opt", image_packages("relay"))
    environment.install(build("wheel", folder / "wheel", relay_source(folder / "source")))
    return environment
