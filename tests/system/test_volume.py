"""Gigabytes through every way, byte-exact, in constant memory."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.load import resident_kib
from tests.system.world import POD, WAYS, World

pytestmark = [pytest.mark.kubectl, pytest.mark.long, pytest.mark.timeout(1800)]

GIB = 1 << 30
BLOCK = bytes(range(256)) * 4096
# A stream's window (4 MiB), the tunnel's ledger (8 MiB), sockets' buffers, each way, and some slack.
GROWTH_KIB_MAX = 64 * 1024


@pytest.fixture(scope="session")
def gibibyte(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file of 1 GiB and its sha256."""
    path = tmp_path_factory.mktemp("volume") / "gibibyte"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(GIB // len(BLOCK)):
            block = number.to_bytes(8, "big") + BLOCK[8:]
            file.write(block)
            digest.update(block)
    return path, digest.hexdigest()


@pytest.fixture
def constant_memory(world: World) -> Iterator[None]:
    """Neither the hub nor a relay has grown by more than its windows at any time of the test."""
    assert world.hub is not None
    pids = [world.hub.process.pid, *(relay.process.pid for relay in world.relays.values())]
    before = {pid: resident_kib(pid) for pid in pids}
    most = dict(before)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            for pid in pids:
                most[pid] = max(most[pid], resident_kib(pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    yield
    done.set()
    sampler.join()
    grown = {pid: most[pid] - before[pid] for pid in pids}
    assert max(grown.values()) < GROWTH_KIB_MAX, f"grew by {grown} KiB"


@pytest.mark.usefixtures("constant_memory")
@pytest.mark.parametrize("way", WAYS)
def test_cp_of_a_gibibyte_both_ways(
    world: World, way: str, gibibyte: tuple[Path, str], tmp_path: Path
) -> None:
    path, digest = gibibyte
    back = tmp_path / "back"
    there = world.kubectl(way, "cp", str(path), f"{POD}:big-{way}", deadline_s=900)
    assert there.code == 0, there.err
    again = world.kubectl(way, "cp", f"{POD}:big-{way}", str(back), deadline_s=900)
    assert again.code == 0, again.err
    world.kubectl(way, "exec", POD, "--", "rm", f"big-{way}")
    with back.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    back.unlink()


@pytest.mark.usefixtures("constant_memory")
@pytest.mark.parametrize("spdy", [False, True], ids=["ws", "spdy"])
@pytest.mark.parametrize("way", WAYS)
def test_a_gibibyte_through_stdin(world: World, way: str, spdy: bool, gibibyte: tuple[Path, str]) -> None:
    path, digest = gibibyte
    with path.open("rb") as file:
        process = world.popen(way, "exec", "-i", POD, "--", "sha256sum", spdy=spdy, stdin=file)
        try:
            out, err = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, err
    assert out.split()[0].decode() == digest
