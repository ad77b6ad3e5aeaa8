from __future__ import annotations

import attrs
import trio

from audit.events import new_event
from audit.record import Actor, ActorType, Event, Kind, Response
from proxy.hub.admin.trail import reads as module
from proxy.hub.admin.trail.reads import ITEMS_MAX, OTHERS_MERGED_S, TRAIL_MERGED_S, MergedReads
from proxy.hub.admin.verbs.callers import Caller
from proxy.hub.admin.verbs.verb import Verb
from proxy.hub.store.roles import Role

ADA = Actor(ActorType.OPERATOR, "ada", credential="console:1")
LIST = Verb("GET", "/v1/audit/events", "list", "audit", Role.AUDITOR)
SHOW = Verb("GET", "/v1/audit/events/{id}", "get", "audit", Role.AUDITOR)
EXPORT = Verb("GET", "/v1/audit/export", "export", "audit", Role.AUDITOR)
OVERVIEW = Verb("GET", "/v1/overview", "get", "overview", Role.VIEWER)


class Reader:
    """Reads of one caller, and what they become."""

    def __init__(self, person: str = "session-1") -> None:
        self.events: list[Event] = []
        self.reads = MergedReads(self.events.append, lambda: 1_790_000_000.0)
        self.caller = Caller(
            actor=ADA, role=Role.AUDITOR, mode="console", session=person, still_valid=lambda: None
        )

    def read(self, verb: Verb, note: str = "", status: int = 200) -> None:
        event = new_event(Kind.ADMIN, ADA, org="main", at=1_790_000_000.0, resp=Response(status), note=note)
        self.reads.read(self.caller, verb, event)

    def told(self) -> list[tuple[str, int, str]]:
        told = [(str(event.kind), event.count, event.note) for event in self.events]
        self.events.clear()
        return told


async def test_the_first_read_is_told_at_once_and_further_ones_every_ten_minutes(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    reader = Reader()
    nursery.start_soon(reader.reads.run)
    reader.read(LIST, "audit list agent=a")
    assert reader.told() == [("audit.read", 1, "audit list agent=a")]
    reader.read(LIST, "audit list agent=b")
    reader.read(SHOW, "audit show eid=1")
    reader.read(LIST, "audit list agent=b")
    reader.read(SHOW, "no event has the id 2", 404)
    assert reader.told() == []
    await trio.sleep(TRAIL_MERGED_S + module.CHECK_EVERY_S)
    note = "2 times audit list agent=b; audit show eid=1; get audit: 404"
    assert reader.told() == [("audit.read", 4, note)]
    # The session goes on: nothing is told at once.
    reader.read(LIST, "audit list agent=c")
    assert reader.told() == []
    await trio.sleep(TRAIL_MERGED_S)
    assert reader.told() == [("audit.read", 1, "audit list agent=c")]
    await trio.sleep(2 * TRAIL_MERGED_S)
    reader.read(LIST, "audit list agent=d")
    assert reader.told() == [("audit.read", 1, "audit list agent=d")]
    nursery.cancel_scope.cancel()


async def test_a_merged_event_lists_a_bounded_number_of_reads(autojump_clock: object) -> None:
    reader = Reader()
    for number in range(2 * ITEMS_MAX):
        reader.read(LIST, f"audit list q={number}" + "x" * 10_000)
    reader.told()
    reader.reads.ended("session-1")
    [(_, count, note)] = reader.told()
    assert (count, note.count("audit list")) == (2 * ITEMS_MAX - 1, ITEMS_MAX)
    assert note.endswith(f"and {ITEMS_MAX - 1} more")
    assert len(note) < 64 * 1024


async def test_refusals_exports_and_reads_by_a_token_are_events_of_their_own(autojump_clock: object) -> None:
    reader = Reader()
    for _ in range(3):
        reader.read(EXPORT, "audit export format=csv")
        reader.read(OVERVIEW, status=403)
    assert len(reader.told()) == 6
    reader = Reader(person="")
    for _ in range(3):
        reader.read(LIST, "audit list")
        reader.read(OVERVIEW)
    assert [kind for kind, *_ in reader.told()] == ["audit.read", "admin.action"] * 3


async def test_beyond_the_bound_of_sessions_each_read_is_an_event(autojump_clock: object) -> None:
    reader = Reader()
    for number in range(module.WINDOWS_MAX + 3):
        reader.caller = attrs.evolve(reader.caller, session=f"session-{number}")
        reader.read(OVERVIEW)
    assert len(reader.told()) == 3


async def test_an_hour_of_an_operator_is_at_most_20_events(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    reader = Reader()
    nursery.start_soon(reader.reads.run)
    # The overview each 5 s, a search each 20, and an event each 30.
    for second in range(3600):
        for every, verb in ((5, OVERVIEW), (20, LIST), (30, SHOW)):
            if second % every == 0:
                reader.read(verb, f"audit {second}")
        await trio.sleep(1)
    await trio.sleep(OTHERS_MERGED_S - 3600 + 2 * module.CHECK_EVERY_S)
    told = reader.told()
    assert len(told) <= 20 - 1, "console.opened is one more"
    reads = 3600 // 5 + 3600 // 20 + 3600 // 30
    assert sum(count for _, count, _ in told) == reads
    assert [note for kind, _, note in told if kind == "console.read"] == ["720 times get overview"]
    nursery.cancel_scope.cancel()


async def test_the_end_of_the_hub_writes_what_is_merged(autojump_clock: object) -> None:
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.reads.run)
        reader.read(OVERVIEW)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert reader.told() == [("console.read", 1, "get overview")]
