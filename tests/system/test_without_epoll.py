"""Hub, relays and `hawse connect` as on a system without epoll."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.connecting import connected
from tests.system.world import POD, Result, World, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

# Python imports it at the start of each process.
SITECUSTOMIZE = """
from tunnel.net import readiness
from tunnel.net.task_poll import TaskPoll

readiness.open_poll = TaskPoll
"""
# More than the sockets' buffers and a stream's window hold.
LARGE_BYTES = 900_000


@pytest.fixture
def world_without_epoll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(hook))
    (tmp_path / "world").mkdir()
    with running_world(tmp_path / "world") as running:
        yield running


def epolls(pid: int) -> int:
    """Return how many epoll descriptors the process has; trio's is one of them."""
    found = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        # A file that is closed meanwhile is gone.
        with suppress(FileNotFoundError):
            found += os.readlink(each) == "anon_inode:[eventpoll]"
    return found


def test_requests_streams_and_large_answers_pass(world_without_epoll: World) -> None:
    world = world_without_epoll

    def passes(way: str) -> None:
        def kubectl(*args: str) -> Result:
            return world.kubectl(way, *args)

        name = f"large-{way}"
        done = kubectl("create", "configmap", name, f"--from-file=data={large}")
        assert done.code == 0, done.err
        for _ in range(3):
            read = json.loads(kubectl("get", "configmap", name, "-o", "json").out)
            assert len(read["data"]["data"]) == LARGE_BYTES
        done = kubectl("exec", POD, "--", "sh", "-c", "echo out; exit 3")
        assert (done.code, done.out) == (3, b"out\n"), done.err
        assert kubectl("delete", "configmap", name).code == 0

    large = world.folder / "large"
    large.write_text("x" * LARGE_BYTES)
    with ThreadPoolExecutor() as threads:
        for each in [threads.submit(passes, way) for way in ("tunnel", "direct")]:
            each.result()
    assert world.hub is not None
    with connected(world.agent, "tunnel") as running:
        assert running.kubectl("get", "pods", "-o", "name").out == f"pod/{POD}\n".encode()
        done = running.kubectl("exec", POD, "--", "sh", "-c", "echo out; exit 3")
        assert (done.code, done.out) == (3, b"out\n"), done.err
        relays = [relay.process.pid for relay in world.relays.values()]
        assert [epolls(pid) for pid in (world.hub.process.pid, *relays, running.process.pid)] == [1] * 4
