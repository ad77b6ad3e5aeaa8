"""Processes of the images: a read-only root, no shell, kubectl through a hub and a relay that run in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import pytest

from proxy.process.version import VERSION
from sandbox.demo.processes import Daemon, Daemons
from tests.deploy.image.built.unpacked import Unpacked
from tests.system.world import World, connect, make_world, prepare_cluster, start_and_enrol

USER = 65532
VOLUME = "/var/lib/hawse"


def test_hawse_says_its_version(image: Unpacked) -> None:
    done = image.run("hawse", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{VERSION}\n", "")


def test_it_runs_as_the_user_and_can_write_nothing(image: Unpacked) -> None:
    code = (
        "import os, sys; print(os.getuid(), os.getgid())\n"
        "for folder, folders, files in os.walk('/'):\n"
        "    folders[:] = [each for each in folders if folder != '/' or each not in ('proc', 'dev')]\n"
        "    for name in [folder, *(os.path.join(folder, each) for each in files)]:\n"
        "        if os.access(name, os.W_OK): print(name)\n"
        "try: open('/tmp/file', 'w')\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = image.run("/usr/bin/python3.13", "-c", code)
    assert (done.stdout, done.stderr) == (f"{USER} {USER}\nRead-only file system\n", "")


def test_every_library_finds_those_that_it_needs(image: Unpacked) -> None:
    libraries = [name for name, entry in image.entries.items() if entry.isreg() and ".so" in Path(name).name]
    assert len(libraries) > 50
    code = (
        "import subprocess, sys\n"
        "for name in sys.stdin.read().split():\n"
        "    done = subprocess.run(['/lib64/ld-linux-x86-64.so.2', '--list', '/' + name],\n"
        "        capture_output=True, text=True)\n"
        "    if 'not found' in done.stdout + done.stderr: print(name, done.stdout, done.stderr)\n"
    )
    argv = image.argv(["/usr/bin/python3.13", "-c", code])
    done = subprocess.run(argv, input="\n".join(libraries), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_python_has_every_module_that_is_not_left_out(hub_image: Unpacked) -> None:
    code = (
        "import sqlite3, ssl, zoneinfo, hashlib, bz2, lzma, zlib, ctypes, uuid, decimal, pyexpat\n"
        "import cryptography.hazmat.bindings._rust, re2, psycopg, msgspec, websockets.speedups\n"
        "print(len(ssl.create_default_context().get_ca_certs()) > 100, ssl.OPENSSL_VERSION.split()[0])\n"
        "print(zoneinfo.ZoneInfo('Europe/Berlin'))\n"
    )
    done = hub_image.run("/usr/bin/python3.13", "-c", code)
    assert (done.stdout, done.stderr) == ("True OpenSSL\nEurope/Berlin\n", "")


def test_the_relays_image_says_that_it_has_no_hub(relay_image: Unpacked) -> None:
    done = relay_image.run("hawse", "hub")
    assert done.returncode == 1
    assert "not in the relay's image" in done.stderr


class ImageDaemons(Daemons):
    """Starts hub and relay as processes of their images, and all else as it is."""

    def __init__(self, folder: Path, images: Mapping[str, Unpacked]) -> None:
        super().__init__(folder)
        self.folder = folder
        self._images = images

    def start(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
    ) -> Daemon:
        if argv[0] == "hawse":
            argv, environment = self.argv(argv, environment or {}), None
        return super().start(name, argv, environment, cwd=cwd)

    def argv(self, argv: Sequence[str], variables: Mapping[str, str], mode: str = "ro") -> list[str]:
        """The command of a process in its image. It reads the folder, and writes to the hub's volume."""
        for folder in (self.folder, *self.folder.glob("relay-*"), self.folder / "cluster"):
            for path in (folder, *folder.glob("*")):
                os.chown(path, USER, USER, follow_symlinks=False)
        image = self._images["relay" if argv[1] == "relay" else "hub"]
        volumes = {self.folder: f"{self.folder}:{mode}"}
        if image.target == "hub":
            volumes[self.folder / "volume"] = VOLUME
        return image.argv(argv, volumes=volumes, variables=variables)


class ImageWorld(World):
    """A world whose hub is administered by commands in the hub's image, as by `podman exec`."""

    @property
    def images(self) -> ImageDaemons:
        assert isinstance(self.daemons, ImageDaemons)
        return self.daemons

    def run_in_image(self, *args: str, variables: Mapping[str, str], mode: str = "ro") -> bytes:
        """Run `hawse …` in the image to its success; returns what it prints."""
        done = subprocess.run(self.images.argv(["hawse", *args], variables, mode), capture_output=True)
        assert done.returncode == 0, f"hawse {' '.join(args)}: {done.stderr.decode()}"
        return done.stdout

    def admin(self, *args: str) -> bytes:
        # `cluster add` writes the relay's keys into the folder.
        return self.run_in_image("admin", *args, variables=self.operator, mode="rw")

    def relay_rows(self) -> list[dict[str, object]]:
        rows = json.loads(self.admin("relay", "list", "--json"))
        assert isinstance(rows, list)
        return rows


@pytest.fixture(scope="module")
def world(
    relay_image: Unpacked, hub_image: Unpacked, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImageWorld]:
    folder = tmp_path_factory.mktemp("world")
    volume = folder / "volume"
    volume.mkdir()
    # Where the test reads the hub's data; the image has the hub write to its volume.
    (folder / "hub").symlink_to(volume / "hub")
    with ImageDaemons(folder, {"relay": relay_image, "hub": hub_image}) as daemons:
        made = make_world(folder, daemons, folder / "cluster" / "relay.kubeconfig")
        world = ImageWorld(**attrs.asdict(made, recurse=False))
        world.sandbox = daemons.start(
            "sandbox", [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
        )
        world.sandbox.wait_for("ready ")
        start_and_enrol(world)
        prepare_cluster(world)
        connect(world)
        yield world


def test_kubectl_works_through_a_hub_and_a_relay_of_the_images(world: World) -> None:
    got = world.kubectl("tunnel", "get", "pods", "--output=name")
    assert (got.code, got.out) == (0, b"pod/workbench\n"), got.err
    done = world.kubectl("tunnel", "exec", "--stdin", "workbench", "--", "cat", stdin=b"through both")
    assert (done.code, done.out) == (0, b"through both"), done.err
    logs = world.kubectl("direct", "logs", "workbench")
    assert (logs.code, logs.out) == (0, b"workbench is up\n"), logs.err
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}, "data": {"by": "us"}}
    applied = world.kubectl("tunnel", "apply", "--filename=-", stdin=json.dumps(manifest).encode())
    assert (applied.code, applied.out) == (0, b"configmap/made created\n"), applied.err


def test_the_processes_are_those_of_the_images(world: World) -> None:
    daemons = [world.hub, *world.relays.values()]
    assert len(daemons) == 3
    for daemon in daemons:
        assert daemon is not None
        process = Path(f"/proc/{daemon.process.pid}")
        assert (process / "exe").readlink().name == "python3.13"
        assert (process / "root").readlink() != Path("/")
        lines = (process / "status").read_text().splitlines()
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in lines
        assert f"CapEff:\t{0:016}" in lines


def test_the_checks_of_hub_and_relay_pass_in_their_images(world: ImageWorld) -> None:
    relay = {"HAWSE_RELAY_KUBECONFIG": str(world.relay_kubeconfig)}
    config = f"{world.folder}/relay-tunnel/relay.toml"
    world.run_in_image("relay", "--check", "--config", config, variables=relay)
    world.run_in_image("hub", "--check", "--config", f"{world.folder}/hub.toml", variables={})


def test_sigterm_ends_hub_and_relay_in_order(world: World) -> None:
    relay = world.relays["tunnel"]
    assert world.hub is not None
    for daemon in (relay, world.hub):
        daemon.stop()
        assert daemon.process.returncode == 0, daemon.last_words()
