"""Debian's packages: the lock, apt with a state of its own, and what a package depends on."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from deploy.image import ImageError

# One of `apt-get download --print-uris`: the address, the file's name, its size and its hash.
_URI = re.compile(r"^'[^']+' ([^_ ]+)_([^_ ]+)_([^_ ]+)\.deb \d+ SHA256:([0-9a-f]{64})$", re.MULTILINE)
_LOCKED = re.compile(r"(?P<name>\S+) (?P<version>\S+) (?P<architecture>\S+) (?P<sha256>[0-9a-f]{64})")
# Other sources of the machine, such as a folder of its own packages, are no part of the image.
_PREFERENCES = """\
Package: *
Pin: release o=Debian,n={release}*
Pin-Priority: 500

Package: *
Pin: release *
Pin-Priority: -1
"""
_HEADER = """\
# Debian's packages in the images: name, version, architecture, SHA-256 of the .deb.
# Written by `make image-lock`.
"""


@attrs.frozen(order=True)
class Package:
    """A locked package. `architecture` is of the file: `all` for one that every machine shares."""

    name: str
    version: str
    architecture: str
    sha256: str

    @property
    def file(self) -> str:
        """The name that apt gives the file. A colon of an epoch is escaped in it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def read_lock(text: str) -> list[Package]:
    """Read a lock. Raises ImageError for a line that is none, and for a package that is listed twice."""
    packages = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#"):
            continue
        if not (match := _LOCKED.fullmatch(line)):
            raise ImageError(f"packages.lock, line {number}: expected 'name version architecture sha256'")
        packages.append(Package(**match.groupdict()))
    keys = [(package.name, package.architecture) for package in packages]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ImageError(f"packages.lock: {twice[0][0]} is listed twice for {twice[0][1]}")
    return packages


def write_lock(packages: Iterable[Package]) -> str:
    """The text of a lock, one package a line, in order."""
    lines = (
        f"{each.name} {each.version} {each.architecture} {each.sha256}\n" for each in sorted(set(packages))
    )
    return _HEADER + "".join(lines)


def for_architecture(packages: Iterable[Package], architecture: str) -> list[Package]:
    """The packages of an image for `amd64` or `arm64`."""
    return [each for each in packages if each.architecture in {architecture, "all"}]


def check_names(packages: Sequence[Package], wanted: Sequence[str]) -> None:
    """Raise ImageError unless the lock holds the wanted packages and no others."""
    names = {package.name for package in packages}
    if names != set(wanted):
        differing = ", ".join(sorted(names ^ set(wanted)))
        raise ImageError(f"packages.lock and packages.toml differ in: {differing}. Run `make image-lock`.")


def unmet(depends: Mapping[str, str], left_out: Iterable[str]) -> list[tuple[str, str]]:
    """The dependencies that neither a package nor an entry of `left_out` meets: (package, dependency).

    `depends` holds for each package the values of its Depends and Pre-Depends.
    """
    there = {*depends, *left_out}
    missing = []
    for name, text in depends.items():
        for clause in filter(None, map(str.strip, text.split(","))):
            options = {re.split(r"[ (:]", option.strip(), maxsplit=1)[0] for option in clause.split("|")}
            if not options & there:
                missing.append((name, clause))
    return missing


class Apt:
    """apt-get for one architecture, with the machine's sources and keys, and a state in a folder of ours.

    It needs no root, and what is installed on the machine does not matter to it.
    """

    def __init__(self, folder: Path, architecture: str, release: str) -> None:
        self._debs = folder / "debs"
        state = folder / f"apt-{architecture}"
        for each in (self._debs, state / "lists" / "partial", state / "cache" / "archives" / "partial"):
            each.mkdir(parents=True, exist_ok=True)
        (state / "status").write_text("")
        (state / "preferences").write_text(_PREFERENCES.format(release=release))
        (state / "preferences.d").mkdir(exist_ok=True)
        settings = {
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "Dir::Etc::preferences": state / "preferences",
            "Dir::Etc::preferencesparts": state / "preferences.d",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "root",
        }
        self._argv = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
        self._updated = False

    def latest(self, names: Sequence[str]) -> list[Package]:
        """The mirror's present versions. Raises ImageError when it lacks one."""
        self._update()
        found = [Package(*match) for match in _URI.findall(self._run("download", "--print-uris", *names))]
        found = [attrs.evolve(each, version=each.version.replace("%3a", ":")) for each in found]
        check = {package.name for package in found}
        if missing := [name for name in names if name not in check]:
            raise ImageError(f"apt's sources have no {missing[0]}: add those of Debian 13 (trixie)")
        return found

    def fetch(self, packages: Sequence[Package]) -> list[Path]:
        """The files of the packages, downloaded if need be, each with its locked hash.

        Raises ImageError for a version that the mirror has no longer, and for another hash.
        """
        missing = []
        for package in packages:
            file = self._debs / package.file
            if not file.exists() or _sha256(file) != package.sha256:
                # It may be a part of a download that was killed.
                file.unlink(missing_ok=True)
                missing.append(package)
        if missing:
            self._update()
            wanted = [f"{package.name}={package.version}" for package in missing]
            try:
                self._run("download", *wanted, cwd=self._debs)
            except ImageError as error:
                advice = "If the mirror has newer versions than packages.lock, `make image-lock` takes them."
                raise ImageError(f"{error}. {advice}") from error
        for package in missing:
            found = _sha256(self._debs / package.file)
            if found != package.sha256:
                raise ImageError(f"{package.file}: SHA-256 is {found}, packages.lock has {package.sha256}")
        return [self._debs / package.file for package in packages]

    def _update(self) -> None:
        if not self._updated:
            self._run("update")
            self._updated = True

    def _run(self, *args: str, cwd: Path | None = None) -> str:
        if shutil.which("apt-get") is None:
            raise ImageError("apt-get is not there: build the images on Debian, or use deploy/Containerfile")
        done = subprocess.run([*self._argv, *args], cwd=cwd, capture_output=True, text=True)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            reason = errors[-1].removeprefix("E: ").rstrip(".") if errors else f"exit code {done.returncode}"
            raise ImageError(f"apt-get {args[0]}: {reason}")
        return done.stdout


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def control(deb: Path) -> dict[str, str]:
    """The fields of a package, each on one line."""
    text = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout
    return read_control(text)


def read_control(text: str) -> dict[str, str]:
    """Read a stanza of a control file; lines that continue a field are joined by a newline."""
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            fields[key] += f"\n{line}"
        elif line:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return fields
