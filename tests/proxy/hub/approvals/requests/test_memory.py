from __future__ import annotations

import attrs
import trio
from trio.testing import MockClock

from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.requests.memory import KNOWN_S, RequestsMemory
from proxy.hub.approvals.requests.table import Seen
from proxy.hub.approvals.view import View

NEW = NewRequest("a", "c", "p", "e", "w", "r", "shop", "risky", "1", ("any",), 60, False, View())


def row(request_id: str, state: State = State.PENDING, changes: int = 0) -> Request:
    return Request(request_id, NEW, state, 0, 1000.0, 4600.0, changes=changes)


def seen(request: Request, *, overdue: bool = False) -> Seen:
    return Seen(request.id, request.state, request.changes, request.created_at, overdue, None)


async def read(memory: RequestsMemory, *found: Request) -> set[str]:
    """Read some time after whatever was noted before."""
    await trio.sleep(1)
    return memory.read([seen(each) for each in found], trio.current_time())


async def test_a_change_at_another_hub_wakes_those_that_wait_and_no_others(autojump_clock: MockClock) -> None:
    memory, told = RequestsMemory(), list[frozenset[str]]()
    memory.on_change(told.append)
    first, other = row("first"), row("other")
    await read(memory, first, other)
    assert told == [frozenset({"first", "other"})]
    event, waits = memory.event_of(first), memory.event_of(other)
    await read(memory, first, other)
    assert (event.is_set(), len(told)) == (False, 1)
    await read(memory, row("first", State.APPROVED, 1), other)
    assert (event.is_set(), waits.is_set(), told[1:]) == (True, False, [frozenset({"first"})])


async def test_a_change_before_the_wait_is_not_missed(autojump_clock: MockClock) -> None:
    memory = RequestsMemory()
    pending = row("a")
    memory.moved(pending)
    memory.moved(row("a", State.APPROVED, 1))
    assert memory.event_of(pending).is_set()
    assert not memory.event_of(row("a", State.APPROVED, 1)).is_set()


async def test_a_request_that_is_removed_wakes_those_that_wait(autojump_clock: MockClock) -> None:
    memory = RequestsMemory()
    await read(memory, row("a"))
    event = memory.event_of(row("a"))
    await read(memory)
    assert event.is_set()
    assert memory.open_states[State.PENDING] == 0


async def test_open_requests_are_counted_and_the_oldest_is_known(autojump_clock: MockClock) -> None:
    memory = RequestsMemory()
    none = {State.PENDING: 0, State.APPROVED: 0, State.USING: 0}
    assert (memory.open_states, memory.oldest_pending) == (none, None)
    later = attrs.evolve(row("b"), created_at=2000.0)
    await read(memory, row("a"), later, row("c", State.USING, 2), row("d", State.DENIED, 1))
    assert memory.open_states == {State.PENDING: 2, State.APPROVED: 0, State.USING: 1}
    assert memory.oldest_pending == 1000.0
    mark = memory.mark
    await read(memory, row("a", State.APPROVED, 1), later)
    assert (memory.oldest_pending, memory.mark != mark) == (2000.0, True)


async def test_a_revocation_is_known_from_any_hub_and_without_the_store(autojump_clock: MockClock) -> None:
    memory, told = RequestsMemory(), list[frozenset[str]]()
    await read(memory, row("a", State.USED, 3))
    memory.on_change(told.append)
    assert not memory.is_revoked("a")
    await read(memory, row("a", State.REVOKED, 4))
    memory.revoke("b")
    assert memory.is_revoked("a")
    assert memory.is_revoked("b")
    assert told == [frozenset("a"), frozenset("b")]


async def test_a_reading_that_this_hub_was_faster_than_is_no_loss(autojump_clock: MockClock) -> None:
    memory = RequestsMemory()
    await read(memory, row("a"))
    began_s = trio.current_time()
    await trio.sleep(1)
    # Committed while the reading was under way.
    memory.moved(row("a", State.APPROVED, 1))
    memory.moved(row("new"))
    assert memory.read([seen(row("a"))], began_s) == set()
    assert memory.open_states == {State.PENDING: 1, State.APPROVED: 1, State.USING: 0}
    assert memory.changes_of("a") == 1


async def test_a_loss_is_told_until_it_is_accepted(autojump_clock: MockClock) -> None:
    memory = RequestsMemory()
    await read(memory, row("a", State.USED, 3), row("b", State.PENDING))
    back = row("a", State.APPROVED, 1)
    assert await read(memory, back, row("b")) == {"a"}
    assert memory.changes_of("a") == 3
    assert await read(memory, back, row("b")) == {"a"}
    memory.accept({"a"})
    cancelled = row("a", State.CANCELLED, 2)
    assert await read(memory, cancelled, row("b")) == set()
    assert await read(memory, cancelled, row("b")) == set()


async def test_what_cannot_be_used_any_more_is_forgotten(autojump_clock: MockClock) -> None:
    memory = RequestsMemory()
    await read(memory, row("a", State.USED, 3), row("b", State.REVOKED, 1), row("c"))
    await trio.sleep(KNOWN_S)
    await read(memory, row("c"))
    assert [memory.changes_of(each) for each in "ab"] == [0, 0]
    assert not memory.is_revoked("b")
    assert memory.open_states[State.PENDING] == 1
