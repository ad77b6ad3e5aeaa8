"""The trail's file is taken from under the hub: another one, or an older copy, takes no event unseen."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from sandbox.demo.processes import Daemons, DemoError
from tests.system.world import DEADLINE_S, POLL_S, Result, World, make_world

pytestmark = pytest.mark.timeout(120)


@attrs.define
class Lone:
    """A hub by itself."""

    world: World

    @property
    def data(self) -> Path:
        return self.world.folder / "hub"

    @property
    def trail(self) -> Path:
        return self.data / "audit.db"

    def admin(self, *args: str) -> Result:
        return self.world.try_admin(*args)

    def start(self) -> None:
        self.world.start_hub()

    def stop(self) -> None:
        assert self.world.hub is not None
        self.world.hub.stop()

    def copy(self, target: Path) -> None:
        """Copy the trail as it is now."""
        with (
            closing(sqlite3.connect(self.trail, timeout=5)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)

    def put(self, source: Path) -> None:
        """Put a file in the trail's place."""
        for name in ("audit.db-wal", "audit.db-shm"):
            (self.data / name).unlink(missing_ok=True)
        os.replace(source, self.trail)

    def gaps(self) -> list[str]:
        return [str(event["note"]) for event in self.world.audit_rows("--kind", "audit.gap")]

    def fails_to_start(self) -> str:
        with pytest.raises(DemoError) as failed:
            self.start()
        return str(failed.value)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lone]:
    with Daemons(tmp_path) as daemons:
        hub = Lone(make_world(tmp_path, daemons, tmp_path / "relay.kubeconfig"))
        hub.start()
        yield hub


def test_an_older_copy_under_a_running_hub_stops_writes_until_it_is_accepted(
    lone: Lone, tmp_path: Path
) -> None:
    lone.world.admin("team", "add", "first")
    lone.copy(tmp_path / "older.db")
    lone.world.admin("agent", "add", "robot", "--team", "first", "--owner", "tests")
    lone.put(tmp_path / "older.db")
    for _ in range(2):
        refused = lone.admin("team", "add", "third")
        assert refused.code == 1
        assert b"nothing was changed: " in refused.err
        assert b"is an older copy of the trail, which ends at event " in refused.err
        assert b"or run `hawse admin audit accept`, which records the gap" in refused.err
    # What takes something back acts all the same.
    assert lone.admin("agent", "lock", "robot").code == 0
    assert lone.admin("audit", "accept", "--yes").code == 0
    deadline = time.monotonic() + DEADLINE_S
    while lone.admin("team", "add", "third").code:
        assert time.monotonic() < deadline, "the hub does not write on"
        time.sleep(POLL_S)
    told = [note for note in lone.gaps() if note.startswith("accepted as trail ")]
    assert len(told) == 1
    assert "the hub had written trail " in told[0]
    actions = [event["req"]["verb"] for event in lone.world.audit_rows("--kind", "admin.action")]
    assert actions.count("lock") == 1
    # The next start takes it as well.
    lone.stop()
    lone.start()


def test_a_hub_does_not_start_on_another_trail_or_an_older_copy_or_without_one(
    lone: Lone, tmp_path: Path
) -> None:
    lone.copy(tmp_path / "older.db")
    lone.world.admin("team", "add", "first")
    lone.stop()
    shutil.copy(lone.trail, tmp_path / "newest.db")
    lone.put(tmp_path / "older.db")
    said = lone.fails_to_start()
    assert "the hub cannot run: " in said
    assert "audit.db is an older copy of the trail, which ends at event " in said
    assert "put the newest back, or run `hawse admin audit accept`, which records the gap" in said
    # It is the right one that is put back.
    lone.put(tmp_path / "newest.db")
    lone.start()
    lone.stop()
    lone.trail.rename(tmp_path / "newest.db")
    said = lone.fails_to_start()
    assert "audit.db is missing: put it back, or run `hawse admin audit accept`" in said
    assert not lone.trail.exists()
    accepted = lone.admin("audit", "accept", "--yes")
    assert accepted.code == 0, accepted.err
    lone.start()
    [gap] = lone.gaps()
    assert "another trail (" in gap
    assert "up to event 0; the hub had written trail " in gap
    lone.stop()
    # The former one is another now.
    lone.put(tmp_path / "newest.db")
    assert "audit.db is another trail than the one that was written until now" in lone.fails_to_start()


def test_a_hub_that_was_killed_knows_its_trail_again(lone: Lone) -> None:
    for number in range(3):
        lone.world.admin("team", "add", f"team-{number}")
        assert lone.world.hub is not None
        lone.world.hub.process.kill()
        lone.world.hub.process.wait()
        lone.start()
    assert lone.gaps() == []


def test_a_restored_backup_takes_the_trail_that_is_there_or_begins_one(lone: Lone, tmp_path: Path) -> None:
    backup = tmp_path / "hub.tar"
    assert lone.admin("backup", str(backup)).code == 0
    lone.world.admin("team", "add", "later")
    lone.stop()
    assert lone.admin("restore", str(backup), "--overwrite").code == 0
    lone.start()
    lone.stop()
    # On another machine.
    lone.data.rename(tmp_path / "former")
    assert lone.admin("restore", str(backup)).code == 0
    lone.start()
    assert lone.gaps() == []
    lone.stop()
    # With the trail of before beside it, which is of no store there.
    lone.data.rename(tmp_path / "begun")
    lone.data.mkdir(mode=0o700)
    shutil.copy(tmp_path / "former" / "audit.db", lone.trail)
    assert lone.admin("restore", str(backup)).code == 0
    lone.start()
