"""Revocations while trail, store, both, or even the reserve cannot be written."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
import trio
from starlette.applications import Starlette

from audit.errors import AuditUnavailable
from audit.reader import AuditReader
from audit.record import Actor, ActorType, Event, Kind, Phase, utc
from audit.recording import recorder as recorder_module
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.store import AuditStore
from auth.apikey import hash as hash_key
from proxy.hub.admin.administration import ACTIONS, Action, Administration
from proxy.hub.admin.api import admin_app
from proxy.hub.admin.data.streamed import Backups
from proxy.hub.admin.metrics.hub import hub_metrics
from proxy.hub.admin.revocations import Revocation, Revocations, Where, repeat_revocations
from proxy.hub.admin.simulation.simulations import Simulations
from proxy.hub.admin.verbs.call import Call
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.reserve import Reserve, ReserveError, open_reserve
from proxy.hub.home.keyring import FolderKeyring, KeyRing
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.sqlite import SqliteEngine
from proxy.hub.store.store import Store
from tests.audit.events import call as audited_call
from tests.fakes.admin import PEPPER, TOKEN, FakeOperations, FakeSessions, FakeWork
from tests.fakes.asgi import Reply, call
from tests.fakes.requests import FakeRequests

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.02)


SMALLEST = Event(eid="", kind=Kind.CALL, phase=Phase.COMPLETE, ts=utc(0), actor=Actor(ActorType.HUB))


@attrs.define
class Hub:
    """What of a hub stands behind the admin API, on files in a folder."""

    folder: Path
    app: Starlette
    administration: Administration
    directory: Directory
    trail: AuditStore
    recorder: Recorder
    reserve: Reserve
    sessions: FakeSessions

    async def ask(self, method: str, target: str, body: object = None, *, token: str = TOKEN) -> Reply:
        chunks = [json.dumps(body).encode()] if body is not None else None
        headers = {"authorization": f"Bearer {token}"}
        return await call(self.app, method, target, headers=headers, chunks=chunks)

    async def ok(self, method: str, target: str, body: object = None) -> Any:
        reply = await self.ask(method, target, body)
        assert reply.status in {200, 201}, reply.body
        return reply.json

    def state(self, agent: str = "robot") -> str:
        """In force."""
        return str(self.directory.current.agents_by_name[agent].state)

    def stored_state(self, agent: str = "robot") -> str:
        with closing(sqlite3.connect(self.folder / "hub.db")) as connection:
            return str(connection.execute("SELECT state FROM agents WHERE name = ?", (agent,)).fetchone()[0])

    def stored_tokens(self) -> set[str]:
        with closing(sqlite3.connect(self.folder / "hub.db")) as connection:
            return {name for (name,) in connection.execute("SELECT name FROM admin_tokens")}

    def rows(self) -> list[dict[str, Any]]:
        """The trail's rows of admin actions that revoke."""
        with closing(AuditReader(self.trail.path)) as reader:
            rows = [json.loads(each.body) for each in reader.query(limit=10_000)]
        return [
            row for row in rows if row["kind"] == "admin.action" and row["req"]["verb"] in {"lock", "kill"}
        ]

    async def trail_down(self) -> None:
        """Let the trail's file reach its bound, `bytes_max`."""
        self.trail._bytes_max = 1
        self.trail.close()
        # Until not even the smallest event fits into a page that is there already.
        with closing(AuditStore(self.trail.path, bytes_max=1)) as filler, suppress(AuditUnavailable):
            while True:
                filler.append([SMALLEST])
        self.recorder.complete(audited_call())
        await self.until(lambda: not self.recorder.healthy)

    def trail_up(self) -> None:
        self.trail._bytes_max = None

    @contextmanager
    def store_down(self) -> Iterator[None]:
        """Let another process keep the store's file to itself."""
        with self.directory._store._engine._engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.execute("PRAGMA busy_timeout = 0")
        with closing(sqlite3.connect(self.folder / "hub.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not done():  # noqa: ASYNC110 - what changes has no event
                await trio.sleep(0.01)


def administration_of(
    directory: Directory, folder: Path, sessions: FakeSessions | None = None
) -> Administration:
    ring = KeyRing(
        FolderKeyring(DataDir.open(folder / "of-its-own").keys),
        issuer="https://hub.example",
        clock=lambda: NOW,
        on_rotation=lambda: None,
    )
    return Administration.of(
        directory=directory,
        ring=ring,
        pepper=PEPPER,
        public_url="https://hub.example",
        hub_ca=lambda: None,
        version="0.1.0",
        operations=FakeOperations(),
        live_sessions=sessions or FakeSessions(),
        simulations=Simulations(FakeWork().run, lambda: NOW),
        backups=Backups(folder),
        requests=FakeRequests(),
        clock=lambda: NOW,
    )


@asynccontextmanager
async def open_hub(folder: Path, clock: Callable[[], float] = lambda: NOW) -> AsyncIterator[Hub]:
    trail = AuditStore(DataDir.open(folder).audit_file)
    reserve = open_reserve(folder / "reserve")
    revocations = Revocations(reserve)
    operations, sessions = FakeOperations(), FakeSessions()
    async with (
        open_recorder(trail, org="main") as recorder,
        open_directory(folder / "hub.db", org="main", clock=clock) as directory,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(directory.run_poll)
        if not directory.current.admin_tokens_by_hash:
            await directory.change(lambda store: store.put_local_token(hash_key(TOKEN, PEPPER)))
        administration = administration_of(directory, folder, sessions)
        await repeat_revocations(revocations, revocations.left(), administration, recorder, clock)
        app = admin_app(administration, recorder, hub_metrics(directory, operations), clock, revocations)
        yield Hub(folder, app, administration, directory, trail, recorder, reserve, sessions)
        nursery.cancel_scope.cancel()
    trail.close()
    reserve.close()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with open_hub(tmp_path / "hub") as hub:
        await enrol(hub)
        yield hub


async def enrol(hub: Hub) -> None:
    await hub.ok("POST", "/v1/teams", {"name": "sre"})
    await hub.ok("POST", "/v1/agents", {"name": "robot", "owner": "ada", "teams": ["sre"]})


POLICY = """
kind: Policy
metadata: {name: mixed}
spec:
  bind: {agents: [robot]}
  rules:
    - {id: out, effect: deny, enabled: false, verbs: ["*"]}
    - {id: also, effect: deny, enabled: false, verbs: [get]}
    - {id: in, effect: allow, enabled: false, verbs: ["*"], resources: ["*"]}
    - {id: look, effect: ask, enabled: false, verbs: ["*"], ask: {approvers: [any]}}
"""


async def test_exactly_these_actions_act_without_the_trail(hub: Hub) -> None:
    await hub.ok("POST", "/v1/policies", {"files": [{"text": POLICY}]})
    bodies: dict[str, list[object]] = {
        "agents/teams": [{"remove": ["sre"]}, {"remove": ["sre"], "add": ["web"]}, {"add": ["web"]}],
        "policies/rules": [
            {"rules": rules, "enabled": enabled}
            for rules in (
                ["out"],
                ["out", "also"],
                ["in"],
                ["out", "in"],
                ["look"],
                ["out", "look"],
                ["unknown"],
            )
            for enabled in (True, False)
        ],
    }

    def acts(action: Action, body: object) -> bool:
        asked = Call({"name": "mixed"}, {}, json.dumps(body).encode(), "local")
        return action.only_revokes(hub.administration, asked)

    found = {
        (action.verb, action.resource, json.dumps(body) if body else "")
        for action in ACTIONS
        for body in bodies.get(action.resource, [None])
        if acts(action, body)
    }
    assert found == {
        ("lock", "agents", ""),
        ("delete", "agents", ""),
        ("delete", "agents/keys", ""),
        ("delete", "tokens", ""),
        ("delete", "console sessions", ""),
        ("revoke", "clusters/teams", ""),
        ("delete", "clusters", ""),
        ("delete", "federation", ""),
        ("kill", "sessions", ""),
        ("deny", "requests", ""),
        ("revoke", "requests", ""),
        ("update", "agents/teams", '{"remove": ["sre"]}'),
        ("switch", "policies/rules", '{"rules": ["out"], "enabled": true}'),
        ("switch", "policies/rules", '{"rules": ["out", "also"], "enabled": true}'),
    }


async def test_at_the_trails_own_bound_a_lock_acts_and_its_row_comes_once(hub: Hub) -> None:
    await hub.trail_down()
    told = await hub.ok("POST", "/v1/agents/robot/lock")
    assert told["state"] == hub.state() == hub.stored_state() == "locked"
    assert "kept in the hub's reserve until the trail can take it" in told["notice"]
    assert len(hub.reserve.entries()) == 1
    assert hub.rows() == []
    refused = await hub.ask("POST", "/v1/agents/robot/unlock")
    assert (refused.status, refused.json["error"]["code"]) == (503, "audit_unavailable")
    hub.trail_up()
    await hub.until(lambda: hub.recorder.healthy)
    assert hub.reserve.entries() == []
    [row] = hub.rows()
    assert (row["phase"], row["resp"]["status"], row["req"]["verb"]) == ("complete", 200, "lock")
    assert "state=locked" in row["note"]
    assert row["actor"]["name"] == "local"
    await hub.ok("POST", "/v1/agents/robot/unlock")
    assert hub.state() == "active"


async def test_a_store_that_cannot_be_written_has_a_lock_in_memory_and_takes_it_first(hub: Hub) -> None:
    with hub.store_down():
        told = await hub.ok("POST", "/v1/agents/robot/lock")
        assert "kept in the hub's reserve until the store can take it" in told["notice"]
        assert (hub.state(), hub.stored_state()) == ("locked", "active")
        assert len(hub.reserve.entries()) == 1
        assert (await hub.ask("POST", "/v1/agents/robot/unlock")).status == 503
    await hub.until(lambda: hub.stored_state() == "locked")
    await hub.until(lambda: hub.reserve.entries() == [])
    await hub.recorder.flush()
    assert [row["phase"] for row in hub.rows()] == ["intent", "complete"]
    await hub.ok("POST", "/v1/agents/robot/unlock")


async def test_with_both_down_the_entry_stays_until_both_have_it(hub: Hub) -> None:
    await hub.trail_down()
    with hub.store_down():
        told = await hub.ok("POST", "/v1/agents/robot/lock")
        assert "until the trail and store can take it" in told["notice"]
        hub.trail_up()
        await hub.until(lambda: hub.recorder.healthy)
        await hub.until(lambda: len(hub.rows()) == 1)
        # The store has no other change either.
        assert (await hub.ask("POST", "/v1/agents/robot/unlock")).status == 503
        assert len(hub.reserve.entries()) == 1
    await hub.until(lambda: hub.reserve.entries() == [])
    assert hub.stored_state() == "locked"
    assert len(hub.rows()) == 1


async def test_without_the_trail_a_role_revokes_what_it_may_and_nothing_else(hub: Hub) -> None:
    tokens = {}
    for role in ("operator", "auditor", "viewer", "metrics"):
        tokens[role] = (await hub.ok("POST", "/v1/tokens", {"name": role, "role": role}))["token"]
    await hub.trail_down()
    for role, method, target in (
        ("metrics", "POST", "/v1/agents/robot/lock"),
        ("viewer", "POST", "/v1/agents/robot/lock"),
        ("auditor", "POST", "/v1/sessions/kill"),
        ("operator", "DELETE", "/v1/agents/robot"),
        ("operator", "DELETE", "/v1/tokens/local"),
    ):
        refused = await hub.ask(method, target, token=tokens[role])
        assert (refused.status, refused.json["error"]["code"]) == (403, "forbidden")
    assert hub.reserve.entries() == []
    assert hub.state() == "active"
    locked = await hub.ask("POST", "/v1/agents/robot/lock", token=tokens["operator"])
    assert "kept in the hub's reserve" in locked.json["notice"]
    assert hub.state() == "locked"
    assert len(hub.reserve.entries()) == 1
    refused = await hub.ask("POST", "/v1/agents/robot/unlock", token=tokens["operator"])
    assert (refused.status, refused.json["error"]["code"]) == (503, "audit_unavailable")


@pytest.mark.parametrize("died", [False, True])
async def test_a_removed_admin_stays_removed_when_the_other_expires_before_the_store_has_it(
    tmp_path: Path, died: bool
) -> None:
    """Of two admins one is removed. Checked a second time, it would count as the last admin."""
    now = NOW

    def clock() -> float:
        return now

    folder = tmp_path / "hub"
    async with open_hub(folder, clock) as hub:
        await hub.ok("POST", "/v1/tokens", {"name": "stolen", "role": "admin"})
        other = await hub.ok("POST", "/v1/tokens", {"name": "other", "role": "admin", "expires_s": 60})
        await hub.ok("DELETE", "/v1/tokens/local")
        with hub.store_down():
            reply = await hub.ask("DELETE", "/v1/tokens/stolen", token=other["token"])
            assert reply.status == 200
            assert hub.stored_tokens() == {"stolen", "other"}
            now += 61
            if died:
                hub.directory._pending.clear()
                kept = (folder / "reserve").read_bytes()
        if not died:
            await hub.until(lambda: hub.stored_tokens() == {"other"})
            await hub.until(lambda: hub.reserve.entries() == [])
    if died:
        (folder / "reserve").write_bytes(kept)
        assert hub.stored_tokens() == {"stolen", "other"}
        async with open_hub(folder, clock) as hub:
            assert hub.stored_tokens() == {"other"}
            assert {token.name for token in hub.directory.current.admin_tokens_by_hash.values()} == {"other"}


async def test_a_lock_waits_for_no_thread_that_others_hold(hub: Hub) -> None:
    """Those of names, say, that a resolver does not answer."""
    await hub.trail_down()
    shared = trio.to_thread.current_default_thread_limiter()
    holders = [object() for _ in range(int(shared.available_tokens))]
    for holder in holders:
        shared.acquire_on_behalf_of_nowait(holder)
    answered = trio.Event()

    async def lock() -> None:
        await hub.ok("POST", "/v1/agents/robot/lock")
        answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lock)
        with trio.move_on_after(5):
            await answered.wait()
        in_time = answered.is_set()
        for holder in holders:
            shared.release_on_behalf_of(holder)
    assert in_time
    assert hub.state() == "locked"


async def test_what_is_refused_leaves_no_entry_that_is_carried_out_later(hub: Hub) -> None:
    await hub.trail_down()
    assert (await hub.ask("POST", "/v1/agents/nobody/lock")).status == 404
    hub.trail_up()
    await hub.until(lambda: hub.recorder.healthy)
    await hub.until(lambda: hub.reserve.entries() == [] != hub.rows())
    [row] = hub.rows()
    assert (row["resp"]["status"], row["phase"]) == (404, "complete")


@pytest.mark.parametrize("store_down", [False, True])
async def test_without_the_reserve_a_lock_is_in_force_and_the_answer_an_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, store_down: bool
) -> None:
    def fail(descriptor: int, data: bytes, at: int) -> int:
        raise OSError(5, "Input/output error")

    await hub.trail_down()
    monkeypatch.setattr(os, "pwrite", fail)
    if store_down:
        with hub.store_down():
            reply = await hub.ask("POST", "/v1/agents/robot/lock")
            assert (hub.state(), hub.stored_state()) == ("locked", "active")
    else:
        reply = await hub.ask("POST", "/v1/agents/robot/lock")
        assert (hub.state(), hub.stored_state()) == ("locked", "locked")
    assert (reply.status, reply.json["error"]["code"]) == (507, "not_recorded")
    told = "in force until the hub restarts, not recorded: " if store_down else "in force, not recorded: "
    assert reply.json["error"]["message"].startswith(told)
    assert "Input/output error" in reply.json["error"]["message"]
    logged = [record.message for record in caplog.records if record.name == "hawse.hub.admin"]
    assert any(line.startswith(f"lock agents robot by local: {told}") for line in logged)


async def test_what_is_refused_without_the_reserve_is_not_logged_as_in_force(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(descriptor: int, data: bytes, at: int) -> int:
        raise OSError(5, "Input/output error")

    await hub.trail_down()
    monkeypatch.setattr(os, "pwrite", fail)
    assert (await hub.ask("POST", "/v1/agents/nobody/lock")).status == 404
    assert not any("in force" in record.message for record in caplog.records)


async def test_a_lock_that_a_store_out_of_reach_refuses_is_neither_kept_nor_logged_as_kept(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(engine: SqliteEngine) -> NoReturn:
        raise StoreUnavailableError("the store failed: the database does not answer")

    with hub.store_down(), monkeypatch.context() as patched:
        # It cannot be read either.
        patched.setattr(SqliteEngine, "copy_in_memory", away)
        reply = await hub.ask("POST", "/v1/agents/robot/lock")
        assert (reply.status, reply.json["error"]["code"]) == (503, "store_unavailable")
        assert hub.state() == "active"
        assert hub.reserve.entries() == []
        assert not any("kept in the reserve" in record.message for record in caplog.records)
        patched.undo()
        await hub.ok("POST", "/v1/agents/robot/lock")
        assert len(hub.reserve.entries()) == 1
        assert any("kept in the reserve" in record.message for record in caplog.records)


@pytest.mark.parametrize("died", ["before it acted", "after it acted", "after the trail had it"])
async def test_a_hub_that_died_carries_it_out_at_its_start_and_the_trail_has_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    folder = tmp_path / "hub"
    async with open_hub(folder) as hub:
        await enrol(hub)
        await hub.trail_down()
        await hub.ok("POST", "/v1/agents/robot/lock")
        await hub.ok("POST", "/v1/sessions/kill", {"agent": "robot", "reason": "incident"})
        kept = (folder / "reserve").read_bytes()
        if died == "after the trail had it":
            hub.trail_up()
            await hub.until(lambda: hub.recorder.healthy)
        # Else the trail is down until the end, and what the recorder has in memory is lost with it.
    (folder / "reserve").write_bytes(kept)
    if died == "before it acted":
        with closing(sqlite3.connect(folder / "hub.db")) as connection, connection:
            connection.execute("UPDATE agents SET state = 'active'")
    async with open_hub(folder) as hub:
        assert hub.state() == hub.stored_state() == "locked"
        await hub.until(lambda: hub.reserve.entries() == [])
        rows = hub.rows()
        assert [row["req"]["verb"] for row in rows] == ["lock", "kill"]
        assert len({row["eid"] for row in rows}) == 2
        assert all(row["phase"] == "complete" for row in rows)
        if died != "after the trail had it":
            assert rows[0]["note"].startswith("carried out at the hub's start: ")
        await hub.ok("POST", "/v1/agents/robot/unlock")
    async with open_hub(folder) as hub:
        assert hub.state() == "active"


async def test_a_start_on_a_store_that_cannot_be_written_honours_it_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub"
    async with open_hub(folder) as hub:
        await enrol(hub)
        with hub.store_down():
            await hub.ok("POST", "/v1/agents/robot/lock")
            hub.directory._pending.clear()
            kept = (folder / "reserve").read_bytes()
    (folder / "reserve").write_bytes(kept)
    assert hub.stored_state() == "active"

    full = True

    def lock_agent(store: Store, name: str) -> str:
        if full and store is not hub.directory._copy:
            raise StoreUnavailableError("the store failed: database or disk is full")
        return lock(store, name)

    lock = Store.lock_agent
    monkeypatch.setattr(Store, "lock_agent", lock_agent)
    with closing(open_reserve(folder / "reserve")) as reserve:
        async with open_directory(folder / "hub.db", org="main", clock=lambda: NOW) as directory:
            hub.directory = directory
            revocations = Revocations(reserve)
            administration = administration_of(directory, folder)
            left = revocations.left()
            await repeat_revocations(revocations, left, administration, hub.recorder, lambda: NOW)
            assert hub.state() == "locked"
            assert hub.stored_state() == "active"
            assert len(reserve.entries()) == 1
            full = False
            await directory.change(Store.close_relays)
            assert hub.stored_state() == "locked"
            assert reserve.entries() == []


async def test_a_start_that_can_put_a_revocation_in_force_nowhere_fails_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub"
    async with open_hub(folder) as hub:
        await enrol(hub)
        await hub.trail_down()
        await hub.ok("POST", "/v1/agents/robot/lock")
        hub.recorder._kept.clear()
        hub.trail_up()
        kept = (folder / "reserve").read_bytes()
    (folder / "reserve").write_bytes(kept)

    def fail(*_: object) -> str:
        raise StoreUnavailableError("the store failed: disk I/O error")

    monkeypatch.setattr(Store, "lock_agent", fail)
    monkeypatch.setattr(Store, "copy_in_memory", fail)
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreUnavailableError, match="disk I/O error"), flatten_subgroups=True
    ):
        async with open_hub(folder):
            raise AssertionError("it has started")
    with closing(open_reserve(folder / "reserve")) as reserve:
        assert len(reserve.entries()) == 1


async def test_an_entry_that_this_version_cannot_read_keeps_the_hub_from_starting(tmp_path: Path) -> None:
    reserve = open_reserve(tmp_path / "reserve")
    reserve.add(b"of another version")
    revocations = Revocations(reserve)
    with pytest.raises(
        ReserveError, match=r"holds an entry that this version cannot read .* start the version that"
    ):
        revocations.left()
    reserve.close()


def test_entries_of_another_hub_are_not_cleared(tmp_path: Path) -> None:
    """Of one that was replaced, say, and finishes beside this one."""
    with closing(open_reserve(tmp_path / "reserve")) as reserve:
        ours, theirs = Revocations(reserve), Revocations(reserve)
        kept = []
        for hub in (ours, theirs):
            event = audited_call()
            kept.append(event.eid)
            asked = Call({"name": "robot"}, {}, b"", "local")
            hub.keep(Revocation(event, True, "POST", "/v1/agents/{name}/lock", asked))
        ours.settled(kept[0], Where.STORE)
        assert len(reserve.entries()) == 2
        # What is not awaited here changes nothing here.
        ours.settled(kept[1], Where.STORE)
        assert len(reserve.entries()) == 2
        successor = Revocations(reserve)
        assert [each.event.eid for each in successor.left()] == kept
        for eid in kept:
            successor.settled(eid, Where.STORE)
        assert reserve.entries() == []
