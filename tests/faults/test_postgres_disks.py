"""Disks that are full: PostgreSQL's, by its tables and by its log, and that of a hub on SQLite."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from proxy.hub.home.files.reserve import ReserveError, open_reserve
from tests.faults.figures import note
from tests.faults.hub_on_postgres import GRACE_S, HubOnPostgres, hub_on_postgres
from tests.faults.traffic import Traffic, traffic
from tests.system.disk import SmallDisk, hold, needs_root, open_small_disk
from tests.system.raw import V5, RawClient, Talk
from tests.system.victims import ENDS_WITHIN_S
from tests.system.waiting import wait_until
from tests.system.world import TEAM, Result, World

pytestmark = [needs_root, pytest.mark.long, pytest.mark.timeout(300)]

WAIT_S = 5.0
FULL_WITHIN_S = 60.0
LOCK_WITHIN_S = 20.0
BACK_WITHIN_S = 30.0
DOWN_GRACE_S = 60.0
REFUSES_WITHIN_S = 10.0


def add_agent(world: World, name: str) -> RawClient:
    body = {"name": name, "owner": "tests", "teams": [TEAM]}
    made = world.administration.post("agents", body=body)
    return RawClient(world, "tunnel", str(made["api_key"]))


def lock(world: World, name: str) -> tuple[Result, float]:
    """Run the command, and return how long it took."""
    began = time.monotonic()
    done = world.try_admin("agent", "lock", name)
    return done, time.monotonic() - began


@contextmanager
def full_disk(hub: HubOnPostgres, calls: Traffic) -> Iterator[None]:
    """The server's disk is full for the block, and writes are refused."""
    disk = hub.server.disk
    assert disk is not None
    disk.fill()
    try:
        # What the server has allocated takes some events more.
        filled = time.monotonic()
        wait_until(lambda: bool(calls.failed()), FULL_WITHIN_S)
        wait_until(lambda: all(c.status != 200 for c in calls.since(time.monotonic() - 1)), FULL_WITHIN_S)
        assert time.monotonic() - filled < FULL_WITHIN_S
        yield
    finally:
        disk.free()


@pytest.mark.parametrize("small", ["data", "wal"])
def test_a_full_disk_of_the_database_refuses_writes_and_takes_a_lock_or_refuses_it(
    tmp_path: Path, small: str
) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(hub_on_postgres(tmp_path, small=small))
        victim = add_agent(hub.world, "victim")
        path, _ = hub.chain.exec_path(hold)
        talk = stack.enter_context(victim.talk(victim.upgrade(path, V5)))
        assert talk.answer(body=False).status == 101
        calls = stack.enter_context(traffic(hub.client, writes_per_s=200))
        with full_disk(hub, calls):
            done, took_s = lock(hub.world, "victim")
            if done.code == 0:
                talk.rest(ENDS_WITHIN_S)
        process = hub.server.process
        assert process is not None
        if process.poll() is not None:
            # Without room for its log it ends. A supervisor starts it again.
            hub.server.start()
        back_s = calls.until_good(time.monotonic(), BACK_WITHIN_S)
        calls.stop()
        assert took_s < LOCK_WITHIN_S
        # With full tables the directory can be read, and the lock is kept in the reserve. With a full log the
        # server has ended.
        assert done.code == (0 if small == "data" else 1), done.err
        said = b"in force, and kept in the hub's reserve" if done.code == 0 else b"the store failed"
        assert said in done.err
        state = "locked" if done.code == 0 else "active"
        wait_until(lambda: hub.server.execute(STATE) == [(state,)])
        assert {call.status for call in calls.failed()} == {503}
        assert calls.longest_s() < WAIT_S + 3
        hub.check_trail(calls)
    note(
        "PostgreSQL's disk is full",
        {"data": "its tables", "wal": "its log"}[small],
        writes=len(calls.calls),
        refused=len(calls.failed()),
        longest_s=round(calls.longest_s(), 2),
        lock="in force" if done.code == 0 else "refused",
        lock_s=round(took_s, 2),
        serves_again_s=round(back_s, 2),
    )


STATE = "SELECT state FROM agents WHERE name = 'victim'"


def test_a_full_data_folder_of_a_hub_on_sqlite_locks_at_once_and_ends_upgrades_after_their_grace(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        small = stack.enter_context(open_small_disk(tmp_path))
        talks = [_open_exec(small, stack, name) for name in ("kept", "last-resort", "left")]
        calls = stack.enter_context(traffic(small.chain.client("tunnel"), reads_per_s=20, writes_per_s=20))
        time.sleep(1)
        with small.full():
            full = time.monotonic()
            kept_s = _locked_in(small, "kept", talks[0], 0)
            reserve = open_reserve(small.data / "reserve")
            try:
                with suppress(ReserveError):
                    while True:
                        reserve.add(b"another hub's revocation")
                in_memory_s = _locked_in(small, "last-resort", talks[1], 1)
            finally:
                reserve.clear(lambda payload: True)
                reserve.close()
            # Without a lock.
            talks[2].rest(DOWN_GRACE_S + GRACE_S)
            left_s = time.monotonic() - full
            refused_s = max(call.began for call in calls.calls if call.status == 200) - full
        back_s = calls.until_good(time.monotonic(), BACK_WITHIN_S)
    assert max(kept_s, in_memory_s) < ENDS_WITHIN_S
    assert refused_s < REFUSES_WITHIN_S
    assert DOWN_GRACE_S - REFUSES_WITHIN_S < left_s < DOWN_GRACE_S + GRACE_S
    note(
        "the data folder of a hub on SQLite is full",
        lock_to_end_of_an_exec_s=round(kept_s, 2),
        with_a_full_reserve_s=round(in_memory_s, 2),
        last_call_s=round(max(0.0, refused_s), 2),
        an_exec_without_a_lock_s=round(left_s, 2),
        serves_again_s=round(back_s, 2),
    )


def _open_exec(small: SmallDisk, stack: ExitStack, name: str) -> Talk:
    return stack.enter_context(small.open_exec(add_agent(small.world, name)))


def _locked_in(small: SmallDisk, name: str, talk: Talk, code: int) -> float:
    """Lock an agent by the hub's API; returns the seconds until its exec has ended."""
    began = time.monotonic()
    done, _ = lock(small.world, name)
    assert done.code == code, done.err
    talk.rest(ENDS_WITHIN_S)
    return time.monotonic() - began
