from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from audit.record import Event
from proxy.hub.approvals.request import Request, State
from proxy.hub.approvals.requests import follower, service
from proxy.hub.approvals.requests.errors import NotOpenError
from proxy.hub.approvals.requests.service import Requests, open_requests
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.entities import Snapshot
from tests.fakes.databases import full_disk, run
from tests.fakes.hub_rows import add_hub
from tests.proxy.hub.approvals.requests.bench import new_request, opened, populate, wait

# Polls come each second, on a machine that may be busy.
SOON_S = 10.0


@asynccontextmanager
async def served(
    location: Location,
    snapshot: Snapshot,
    boot: str = "boot-a",
    *,
    runs_here: Callable[[str], bool] = lambda boot: True,
    record: Callable[[Event], None] = lambda event: None,
) -> AsyncIterator[Requests]:
    opening = open_requests(
        location, org="acme", boot=boot, snapshot=lambda: snapshot, record=record, runs_here=runs_here
    )
    async with opening as requests:
        yield requests


async def approve(requests: Requests, request: Request) -> Request:
    return await requests.decide(
        request.id, approve=True, by="ann@example.com", answer="", shown=request.new.shown
    )


async def until(requests: Requests, request: Request, state: State) -> Request:
    """Wait as a held call does."""
    with trio.fail_after(SOON_S):
        while request.state is not state:
            await requests.changed(request).wait()
            request = await requests.get(request.id)
    return request


async def polled(requests: Requests) -> None:
    """Wait for a whole round of the follower that begins from now on."""
    for _ in range(3):
        requests.poll_soon()
        with trio.fail_after(SOON_S):
            while requests._poll_wanted.is_set():  # noqa: ASYNC110 - the follower resets it as it begins
                await trio.sleep(0.01)


async def test_a_decision_at_another_hub_wakes_a_call_within_two_seconds(database: Location) -> None:
    snapshot = populate(database)
    if isinstance(database, PostgresAddress):
        # Without a row, the hub that uses the grant counts as ended.
        add_hub(database, "boot-a")
    changed: set[str] = set()
    async with served(database, snapshot) as here, served(database, snapshot, "boot-b") as there:
        here.on_change(changed.update)
        request = await here.open(new_request(snapshot))
        assert here.open_states[State.PENDING] == 1
        assert here.oldest_pending == request.created_at
        async with trio.open_nursery() as nursery:
            nursery.start_soon(approve, there, request)
            approved = await until(here, request, State.APPROVED)
        assert changed == {request.id}
        assert await here.use(request.id)
        assert not await there.use(request.id)
        await until(there, approved, State.USING)
        await here.spend(request.id)
        assert (await there.get(request.id)).state is State.USED
        used = await here.get(request.id)
        await there.revoke(request.id, by="bob@example.com")
        await until(here, used, State.REVOKED)
        assert here.revoked(request.id)


async def test_what_expires_wakes_a_call(database: Location) -> None:
    snapshot = populate(database)
    async with served(database, snapshot) as requests:
        request = await requests.open(new_request(snapshot))
        await trio.to_thread.run_sync(wait, database, 4000)
        await until(requests, request, State.EXPIRED)
        assert run(database, "select state from requests") == [("expired",)]


async def test_the_trail_says_what_became_of_a_request(database: Location) -> None:
    snapshot = populate(database)
    events: list[Event] = []
    async with served(database, snapshot, record=events.append) as requests:
        request = await requests.open(new_request(snapshot), eid="the-call")
        assert await requests.open(new_request(snapshot), eid="another") == request
        await approve(requests, request)
        assert await requests.use(request.id)
        assert await requests.give_back(request.id)
        assert await requests.use(request.id)
        await requests.spend(request.id)
        await requests.revoke(request.id, by="bob@example.com")
        denied = await requests.open(new_request(snapshot, 1))
        await requests.decide(denied.id, approve=False, by="ann", answer="not\0 today", shown="")
    which = f"request {request.id}"
    assert [(event.kind, event.note) for event in events] == [
        ("request.opened", f"{which} asks to delete deployments.apps shop/web"),
        ("request.decided", f"{which} approved by ann@example.com: delete deployments.apps shop/web"),
        ("request.used", f"{which} taken for a call"),
        ("request.used", f"{which} returned: the API server did nothing"),
        ("request.used", f"{which} taken for a call"),
        ("request.ended", f"{which} revoked: revoked by bob@example.com"),
        ("request.opened", f"request {denied.id} asks to delete deployments.apps shop/web"),
        ("request.decided", f"request {denied.id} denied by ann: not\\x00 today"),
    ]
    first, decided, *_ = events
    assert (first.agent, first.cluster_name, first.actor.owner) == ("robot0", "prod", "ann@example.com")
    assert first.decision is not None
    assert (first.decision.effect, first.decision.policy, first.decision.rule) == ("ask", "shop", "risky")
    assert [event.serves for event in events if event.serves] == ["the-call"]
    assert decided.approval is not None
    assert (decided.approval.request, decided.approval.by) == (request.id, "ann@example.com")
    assert decided.approval.shown == request.new.shown
    # A short secret in a body could be guessed from its digests.
    assert not any(text in repr(events) for text in (request.new.plan, request.new.effect))


async def test_a_use_that_cannot_be_written_is_refused_and_its_end_is_written_later(
    tmp_path: Path, empty_file: Path
) -> None:
    database = Path(shutil.copy(empty_file, tmp_path / "hub.db"))
    snapshot = populate(database)
    settled = trio.Event()
    async with served(database, snapshot) as requests:
        rows = [await approve(requests, await requests.open(new_request(snapshot, n))) for n in range(4)]
        used, spent, returned, revoked = [row.id for row in rows]
        for request_id in (spent, returned):
            assert await requests.use(request_id)
        with full_disk():
            with pytest.raises(StoreUnavailableError):
                await requests.use(used)
            await requests.spend(spent)
            assert not await requests.give_back(returned)
            with pytest.raises(StoreUnavailableError):
                await requests.revoke(revoked, by="bob")
            requests.revoke_in_memory(revoked, by="bob", settled=settled.set)
            assert requests.revoked(revoked)
        with trio.fail_after(SOON_S):
            await settled.wait()
        await until(requests, await requests.get(spent), State.USED)
        await until(requests, await requests.get(returned), State.USED)
        assert (await requests.get(revoked)).state is State.REVOKED
        # Nothing was written of it, so it is not lost.
        assert (await requests.get(used)).state is State.APPROVED
        with pytest.raises(NotOpenError):
            await requests.revoke(revoked, by="bob")


async def test_a_revocation_that_the_store_has_already_is_settled(database: Location) -> None:
    snapshot = populate(database)
    settled = trio.Event()
    async with served(database, snapshot) as requests:
        request = await requests.open(new_request(snapshot))
        await requests.revoke(request.id, by="ann")
        requests.revoke_in_memory(request.id, by="bob", settled=settled.set)
        with trio.fail_after(SOON_S):
            await settled.wait()
        assert (await requests.get(request.id)).because == "revoked by ann"


async def test_revocations_that_wait_have_a_bound(
    database: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PENDING_MAX", 0)
    snapshot = populate(database)
    async with served(database, snapshot) as requests:
        with pytest.raises(StoreUnavailableError, match="0 revocations wait for the store already"):
            requests.revoke_in_memory("any", by="bob", settled=lambda: None)


async def test_the_grant_of_a_hub_that_was_killed_is_spent(database: Location) -> None:
    snapshot = populate(database)
    if isinstance(database, PostgresAddress):
        add_hub(database, "boot-b", state="dead")
    with opened(database, "boot-b") as other:
        request = other.open(new_request(snapshot), serves="")
        other.decide(request.id, approve=True, by="ann", answer="", shown=request.new.shown)
        assert other.use(request.id, 0)
    async with served(database, snapshot, runs_here=lambda boot: False) as requests:
        used = await until(requests, request, State.USED)
        assert used.because == "the hub that used it has ended"


async def test_the_grant_of_a_hub_that_drains_stays_its_own(database: Location) -> None:
    snapshot = populate(database)
    if isinstance(database, PostgresAddress):
        add_hub(database, "boot-b", state="leaving")
    async with served(database, snapshot) as requests:
        with opened(database, "boot-b") as other:
            request = await approve(requests, await requests.open(new_request(snapshot)))
            assert other.use(request.id, 0)
            await until(requests, request, State.USING)
            # It has looked for hubs that have ended.
            await polled(requests)
            assert other.give_back(request.id)


async def test_a_database_that_lost_a_use_serves_no_grant(database: Location) -> None:
    snapshot = populate(database)
    async with served(database, snapshot) as requests:
        request = await approve(requests, await requests.open(new_request(snapshot)))
        pending = await requests.open(new_request(snapshot, 1))
        assert await requests.use(request.id)
        await requests.spend(request.id)
        run(
            database, "update requests set state = 'approved', changes = 1, ended_at = null where changes > 0"
        )
        assert not await requests.use(request.id)
        await until(requests, pending, State.CANCELLED)
        assert run(database, "select distinct state from requests") == [("cancelled",)]
        # And that is the end of it: new requests are not cancelled.
        again = await requests.open(new_request(snapshot, 2))
        await polled(requests)
        assert (await requests.get(again.id)).state is State.PENDING


async def test_a_use_that_is_cancelled_has_happened_or_not(
    database: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = populate(database)
    begun, goes_on = threading.Event(), threading.Event()
    async with served(database, snapshot) as requests:
        request = await approve(requests, await requests.open(new_request(snapshot)))
        use = requests._table.use

        def slow(request_id: str, known_changes: int) -> bool:
            begun.set()
            goes_on.wait()
            return use(request_id, known_changes)

        monkeypatch.setattr(requests._table, "use", slow)
        used: list[bool] = []

        async def call() -> None:
            used.append(await requests.use(request.id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.to_thread.run_sync(begun.wait)
            # This one still waits for the thread.
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            goes_on.set()
        assert used == [True]
        assert await requests.give_back(request.id)


async def test_too_many_that_wait_for_the_store_are_refused(
    database: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "WAITING_MAX", 0)
    snapshot = populate(database)
    async with served(database, snapshot) as requests:
        with pytest.raises(StoreUnavailableError, match="0 requests wait for the store already"):
            await requests.find("agent", "plan")
