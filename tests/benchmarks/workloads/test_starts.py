from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.processes import Daemons
from benchmarks.system import Endpoint, System
from benchmarks.systems.hawse import Enrolled, Installation
from benchmarks.workload import RunFailed
from benchmarks.workloads.starts import compiled, start_once


def enrolled_with(folder: Path, program: str) -> Enrolled:
    """An installation whose relay is that program."""
    path = folder / "hawse"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o700)
    installation = Installation(folder, Daemons(folder), str(path), 1, 1, {})
    return Enrolled(System("hawse", Endpoint("127.0.0.1", 1, folder)), installation, "key")


def test_a_start_lasts_until_the_tunnel_is_up(tmp_path: Path) -> None:
    up = "echo 'the tunnel to hub:443 is up, session s' >&2"
    took_ns, _ = start_once(enrolled_with(tmp_path, f"sleep 0.05; echo begins >&2; {up}; exec sleep 60"))
    assert 50_000_000 < took_ns < 30_000_000_000


def test_a_relay_that_ends_without_a_tunnel_is_a_failed_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no cluster of that id"):
        start_once(enrolled_with(tmp_path, "echo 'no cluster of that id' >&2"))


def test_a_relay_starts_with_its_bytecode() -> None:
    assert compiled({"PATH": "/bin", "PYTHONDONTWRITEBYTECODE": "1"}) == {"PATH": "/bin"}
