"""Build the images: root, layers, archive."""

from __future__ import annotations

import json
import platform
import shutil
import time
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path

import attrs

from deploy.image import ROOT, ImageError, bom, environment, oci
from deploy.image import root as roots
from deploy.image.debian import Apt, Package, check_names, for_architecture, read_lock
from proxy.process.version import VERSION

FOLDER = ROOT / "deploy" / "image"
BILL = "usr/share/sbom/hawse.cdx.json"
ARCHITECTURES = ("amd64", "arm64")
TARGETS = ("relay", "hub")
_DATA = "var/lib/hawse"
_HOSTS = {"x86_64": "amd64", "aarch64": "arm64"}
# What runtimes make of a name without a registry, such as the manifests' `hawse-relay:0.1.0`.
_REPOSITORY = "docker.io/library/"
# The same base and the same wheels have the same digests in every version of Hawse.
_NO_TIME = 0


@attrs.frozen
class Settings:
    """What is removed from and kept of Debian's packages (packages.toml)."""

    release: str
    packages: Sequence[str]
    left_out: Sequence[str]
    remove: Sequence[str]
    keep_doc: Sequence[str]
    keep_programs: Sequence[str]


def read_settings() -> Settings:
    table = tomllib.loads((FOLDER / "packages.toml").read_text())
    return Settings(table["release"], table["packages"], list(table["left_out"]), **table["files"])


@attrs.frozen
class Base:
    """Debian's part of the images, and the root whose Python runs on this machine."""

    root: Path
    packages: Sequence[Package]
    python: Path
    paths: frozenset[str]
    layer: oci.Layer


@attrs.frozen
class Built:
    """An image that was made."""

    file: Path
    image: oci.Image
    packages: int
    distributions: int


@attrs.frozen
class Builder:
    """Builds images for an architecture in a folder of work.

    `epoch` is the time of Hawse's own files, in seconds.
    """

    work: Path
    output: Path
    architecture: str
    epoch: int
    say: Callable[[str], None]

    def base(self, architecture: str) -> tuple[Path, list[Package]]:
        """Debian's part of a root, removals done. It is the same in both images."""
        settings = read_settings()
        locked = for_architecture(read_lock((FOLDER / "packages.lock").read_text()), architecture)
        check_names(locked, settings.packages)
        self.say(f"fetching {len(locked)} packages of Debian {settings.release} for {architecture} ...")
        debs = Apt(self.work, architecture, settings.release).fetch(locked)
        root = self.work / f"base-{architecture}"
        _fresh(root)
        roots.unpack(root, locked, debs, settings.left_out)
        roots.remove(root, settings.remove, settings.keep_doc, settings.keep_programs)
        roots.add_files(root)
        if (found := roots.programs(root)) != list(settings.keep_programs):
            raise ImageError(f"the root has other programs than {settings.keep_programs}: {found}")
        return root, locked

    def build(self, targets: Sequence[str]) -> list[Built]:
        """Build the images of these targets."""
        host = _HOSTS.get(platform.machine())
        if host is None:
            machine = platform.machine()
            raise ImageError(
                f"images are built on x86_64 or aarch64, not on {machine}: use deploy/Containerfile"
            )
        base, packages = self.base(self.architecture)
        # Bytecode is the same on all machines, and only this machine's Python runs here.
        python = base if host == self.architecture else self.base(host)[0]
        roots.compile_python(python, base, "usr/lib/python3.13")
        paths = list(roots.walk(base))
        debian = Base(base, packages, python, frozenset(paths), oci.layer(base, paths, _NO_TIME))
        return [self._build(target, debian) for target in targets]

    def _build(self, target: str, base: Base) -> Built:
        name = f"hawse-{target}"
        root, work = self.work / f"root-{target}-{self.architecture}", self.work / f"work-{target}"
        _fresh(root)
        _fresh(work)
        shutil.copytree(base.root, root, symlinks=True)
        self.say(f"installing the locked wheels and Hawse {VERSION} into {name} ...")
        environment.install(root, target, self.architecture, work, self.epoch)
        roots.compile_python(base.python, root, environment.SITE)
        installed = list(distributions(path=[str(root / environment.SITE)]))
        bill = bom.bom(
            [attrs.asdict(package) for package in base.packages],
            installed,
            name=name,
            version=VERSION,
            timestamp=self.epoch,
        )
        (root / BILL).parent.mkdir(parents=True)
        (root / BILL).write_text(json.dumps(bill, indent=1) + "\n")
        owned = {}
        if target == "hub":
            (root / _DATA).mkdir()
            owned[_DATA] = oci.Owned(roots.USER, 0o700)
        layers = self._layers(root, base, owned)
        made = oci.image(layers, self.architecture, self._created, self._config(target))
        self.output.mkdir(parents=True, exist_ok=True)
        file = self.output / f"{name}-{VERSION}-{self.architecture}.oci.tar"
        oci.write(made, file, f"{_REPOSITORY}{name}:{VERSION}", self.architecture, self.epoch)
        shutil.copy(root / BILL, file.with_name(f"{name}-{VERSION}-{self.architecture}.cdx.json"))
        return Built(file, made, len(base.packages), len(installed))

    def _layers(self, root: Path, base: Base, owned: dict[str, oci.Owned]) -> list[tuple[str, oci.Layer]]:
        """What seldom changes comes first: Debian's files, the wheels, Hawse."""
        own = (f"{environment.SITE}/hawse/", f"{environment.SITE}/hawse-")
        wheels, hawse = [], []
        for path in roots.walk(root):
            if path in base.paths:
                continue
            shared = f"{environment.SITE}/".startswith(f"{path}/") or path.startswith(f"{environment.SITE}/")
            if shared and not f"{path}/".startswith(own):
                wheels.append(path)
            else:
                hawse.append(path)
        return [
            ("Debian's packages", base.layer),
            ("locked wheels", oci.layer(root, wheels, _NO_TIME)),
            ("Hawse", oci.layer(root, hawse, self.epoch, owned)),
        ]

    @property
    def _created(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.epoch))

    def _config(self, target: str) -> dict[str, object]:
        variables = {
            "PATH": "/usr/local/bin:/usr/bin",
            "HOME": "/nonexistent",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        ports = ["8080/tcp"]
        if target == "hub":
            variables["HAWSE_HUB_DATA_DIR"] = f"/{_DATA}/hub"
            ports = ["8443/tcp"]
        return {
            "User": f"{roots.USER}:{roots.USER}",
            "WorkingDir": "/",
            "Entrypoint": ["hawse"],
            "Cmd": [target],
            "StopSignal": "SIGTERM",
            "Env": [f"{key}={value}" for key, value in variables.items()],
            "ExposedPorts": {port: {} for port in ports},
            "Labels": {
                "org.opencontainers.image.title": f"hawse-{target}",
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.created": self._created,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        }


def _fresh(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
