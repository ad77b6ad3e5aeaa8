"""Hub instances hold locks, so these tests use real processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from audit.reader import AuditReader
from audit.recording.opening import open_recorder
from audit.store import AuditStore
from proxy.hub.home import hub_instances as hub_instances_module
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.home.hub_instances import HubInstances, close_calls_of_ended_hubs, close_unknown
from tests.audit.events import call

# A hub with an open call, which ends when its stdin closes.
CHILD = """
import sys
from pathlib import Path
from audit.store import AuditStore
from proxy.hub.home.hub_instances import HubInstances
from tests.audit.events import call

folder, boot = Path(sys.argv[1]), sys.argv[2]
with HubInstances(folder / "boots").registered(boot):
    store = AuditStore(folder / "audit.db")
    store.append([event := call()], boot=boot)
    print(event.eid, flush=True)
    sys.stdin.read()
    store.append([event.completed(event.ts)], boot=boot)
"""


@contextmanager
def other_hub(folder: Path, boot: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with an open call; closing its stdin ends both in order."""
    argv = [sys.executable, "-c", CHILD, str(folder), boot]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield child, child.stdout.readline().strip()


@attrs.frozen
class Counted(HubInstances):
    """Counts the calls of `running`."""

    asked: list[None] = attrs.Factory(list)

    @property
    def looks(self) -> int:
        return len(self.asked)

    def running(self) -> set[str]:
        self.asked.append(None)
        # Not super(): attrs replaces the class by one with slots.
        return HubInstances.running(self)


def closing_in(file: Path, instances: HubInstances) -> Callable[[], int]:
    return partial(close_unknown, partial(AuditStore, file, make=False), "new", instances.is_running)


def phases(path: Path, eid: str) -> list[str]:
    reader = AuditReader(path)
    try:
        events = [json.loads(row.body) for row in reader.query()]
    finally:
        reader.close()
    return [event["phase"] for event in events if event["eid"] == eid]


def kill(child: subprocess.Popen[str]) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_a_boot_runs_for_its_block_and_leaves_no_file(tmp_path: Path) -> None:
    instances = HubInstances(tmp_path / "boots")
    assert not instances.is_running("one")
    with instances.registered("one"):
        assert instances.is_running("one")
        assert instances.running() == {"one"}
        [file] = (tmp_path / "boots").iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with instances.registered("two"):
            assert instances.running() == {"one", "two"}
    assert instances.running() == set()
    assert list((tmp_path / "boots").iterdir()) == []


def test_a_full_disk_is_named_when_a_boot_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    instances = HubInstances(tmp_path / "boots")
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(DataDirError, match=r"^cannot write in .*/boots: No space left .*: free some"):
        with instances.registered("one"):
            pass
    assert list((tmp_path / "boots").iterdir()) == []


def test_a_killed_process_counts_as_ended_and_its_file_is_removed(tmp_path: Path) -> None:
    instances = HubInstances(tmp_path / "boots")
    with other_hub(tmp_path, "old") as (child, _):
        assert instances.running() == {"old"}
        kill(child)
        assert not instances.is_running("old")
        assert (tmp_path / "boots" / "old").exists()
        assert instances.running() == set()
        assert not (tmp_path / "boots" / "old").exists()


def test_a_boot_that_cannot_be_checked_counts_as_running(tmp_path: Path) -> None:
    instances = HubInstances(tmp_path / "boots")
    (tmp_path / "boots").mkdir()
    # A symlink to itself: an error other than a missing file.
    (tmp_path / "boots" / "loop").symlink_to("loop")
    assert instances.is_running("loop")
    assert not instances.is_running("never")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_file_locks_every_boot_counts_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    instances = HubInstances(tmp_path / "boots")
    with other_hub(tmp_path, "old") as (child, _):
        kill(child)
    with monkeypatch.context() as without:
        without.setattr(fcntl, "flock", fail)
        assert instances.running() == {"old"}
        with pytest.raises(
            DataDirError, match=r"^cannot write in .*/boots: .*: choose a data_dir on .* locks and sockets$"
        ):
            with instances.registered("one"):
                pass
    assert instances.running() == set()
    assert list((tmp_path / "boots").iterdir()) == []


async def test_a_wait_for_an_uncheckable_boot_logs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    instances = HubInstances(tmp_path / "boots")
    (tmp_path / "boots").mkdir()
    (tmp_path / "boots" / "loop").symlink_to("loop")
    with trio.move_on_after(60) as waiting:
        await instances.wait_ended("loop")
    assert waiting.cancelled_caught
    (told,) = caplog.messages
    assert told.startswith("cannot see whether the hub of boot loop still runs: ")


def test_a_file_that_cannot_be_removed_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    instances = HubInstances(tmp_path / "boots")
    (instances.folder / "dead").mkdir(parents=True)
    with instances.registered("new"):
        for _ in range(2):
            assert instances.running() == {"new"}
    (told,) = caplog.messages
    assert told.startswith("cannot remove the file of a hub that has ended: ")


async def test_a_new_hub_does_not_close_the_calls_of_a_running_one(tmp_path: Path) -> None:
    instances = HubInstances(tmp_path / "boots")
    with other_hub(tmp_path, "old") as (child, eid):
        store = AuditStore(tmp_path / "audit.db")
        async with open_recorder(store, boot="new", is_running=instances.is_running):
            pass
        store.close()
        assert phases(tmp_path / "audit.db", eid) == ["intent"]
        child.communicate("")
    assert phases(tmp_path / "audit.db", eid) == ["intent", "complete"]


async def wait_for(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while True:
            if condition():
                return
            await trio.sleep(0.005)


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    # Real time: each round runs in a thread, which virtual time does not wait for.
    monkeypatch.setattr(hub_instances_module, "LOOK_EVERY_S", 0.01)


@pytest.mark.usefixtures("_looks_often")
async def test_a_running_hub_closes_the_calls_of_a_killed_one(
    tmp_path: Path,
) -> None:
    instances, file = Counted(tmp_path / "boots"), tmp_path / "audit.db"
    store = AuditStore(file)
    with instances.registered("new"), other_hub(tmp_path, "old") as (child, theirs):
        async with open_recorder(store, boot="new", is_running=instances.is_running) as recorder:
            ours = call()
            await recorder.intent(ours)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(close_calls_of_ended_hubs, instances, "new", closing_in(file, instances))
                await wait_for(lambda: instances.looks > 2)
                assert phases(file, theirs) == ["intent"]
                kill(child)
            # It returned: no other hub runs.
            assert phases(file, theirs) == ["intent", "unknown"]
            assert phases(file, ours.eid) == ["intent"]
            recorder.complete(ours.completed(ours.ts))
        assert phases(file, ours.eid) == ["intent", "complete"]
    store.close()


async def test_a_hub_that_was_killed_before_the_first_round_is_closed_too(tmp_path: Path) -> None:
    instances, file = HubInstances(tmp_path / "boots"), tmp_path / "audit.db"
    with instances.registered("new"), other_hub(tmp_path, "old") as (child, theirs):
        kill(child)
        with trio.fail_after(10):
            await close_calls_of_ended_hubs(instances, "new", closing_in(file, instances))
    assert phases(file, theirs) == ["intent", "unknown"]


@pytest.mark.usefixtures("_looks_often")
async def test_a_trail_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    instances, file = Counted(tmp_path / "boots"), tmp_path / "audit.db"
    with instances.registered("new"), other_hub(tmp_path, "old") as (child, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_calls_of_ended_hubs, instances, "new", closing_in(file, instances))
            await wait_for(lambda: instances.looks > 1)
            away = tmp_path / "away"
            away.mkdir()
            trail = ("audit.db", "audit.db-wal", "audit.db-shm")
            for name in trail:
                (tmp_path / name).rename(away / name)
            kill(child)
            looks = instances.looks
            await wait_for(lambda: instances.looks > looks + 2)
            # No new trail is made meanwhile.
            assert not file.exists()
            for name in reversed(trail):
                (away / name).rename(tmp_path / name)
    assert phases(file, theirs) == ["intent", "unknown"]
