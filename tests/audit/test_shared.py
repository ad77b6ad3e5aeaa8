from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from audit import retention, schema, shared
from audit.errors import AuditUnavailable
from audit.mask import Masks
from audit.reader import StoredEvent
from audit.record import Actor, ActorType, Approval, Event, Kind, Phase, Relay, Stream, Tunnel, encode, utc
from audit.retention import PrunableStore, Removal
from audit.schema import SPAN_EVENTS
from audit.shared import CommonParts, common_part, own_part, whole
from audit.store import AuditStore
from tests.audit.events import NOW_S, call, failure, with_user_agent
from tests.audit.trails import bodies

DAY_S = 86_400.0
SPAN = 6


def parts(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM common_parts")]


def joined(event: Event) -> bytes:
    return whole(
        own_part(event),
        common_part(event),
        eid=event.eid,
        kind=event.kind,
        phase=event.phase,
        ts=event.ts,
    )


@st.composite
def any_events(draw: st.DrawFn) -> Event:
    event = draw(st.sampled_from([call(), call(phase=Phase.COMPLETE), failure()]))
    changed: dict[str, object] = {}
    for name in ("client", "cluster", "relay", "req", "impersonated", "decision", "resp", "dur_ms"):
        if draw(st.booleans()):
            changed[name] = None
    event = replace(event, **changed)
    return replace(
        event,
        ts=event.ts + timedelta(microseconds=draw(st.integers(-(10**15), 10**15))),
        stream=draw(
            st.sampled_from([None, Stream("http"), Stream("websocket", ("sh", "-c", "ü"), tty=True)])
        ),
        tunnel=draw(st.sampled_from([None, Tunnel(1, 0.5, 3)])),
        approval=draw(st.sampled_from([None, Approval("0f" * 8, "ab" * 32, "ann@example.com")])),
        serves=draw(st.sampled_from(["", "01a22e87-d308-7059-90bb-09f80b601f9a"])),
        relay=draw(st.sampled_from([None, Relay("r-1", "hawse/1")])),
        count=draw(st.integers(1, 3)),
        note=draw(st.text(max_size=5)),
    )


@given(any_events())
def test_the_parts_of_an_event_make_its_json_again(event: Event) -> None:
    assert joined(event) == encode(event)


def test_what_a_newer_version_adds_to_either_part_is_kept() -> None:
    event = call()
    body = whole(
        own_part(event)[:-1] + b',"new":{"a":1}}',
        common_part(event)[:-1] + b',"newer":[2]}',
        eid=event.eid,
        kind=event.kind,
        phase=event.phase,
        ts=event.ts,
    )
    assert json.loads(body) == {**json.loads(encode(event)), "new": {"a": 1}, "newer": [2]}


def test_what_events_have_in_common_is_in_the_file_once(path: Path) -> None:
    batch = [call(target=f"/api/v1/pods/{number}") for number in range(100)]
    with closing(AuditStore(path)) as store:
        store.append(batch[:50])
        store.append(batch[50:])
    assert bodies(path) == [encode(event) for event in batch]
    assert parts(path) == [1]
    with closing(sqlite3.connect(path)) as connection:
        (longest,) = connection.execute("SELECT max(length(body)) FROM events").fetchone()
    assert longest < len(encode(batch[0])) / 2


def test_a_writer_relies_on_nothing_when_another_has_written(path: Path) -> None:
    batch = [call() for _ in range(4)]
    with closing(AuditStore(path)) as one, closing(AuditStore(path)) as other:
        for event, writer in zip(batch, (one, other, one, other), strict=True):
            writer.append([event])
    assert bodies(path) == [encode(event) for event in batch]
    assert parts(path) == [1, 2, 3, 4]


def test_an_older_copy_in_the_files_place_gives_no_event_the_part_of_another(path: Path) -> None:
    first, lost, others, last = (call(agent=agent) for agent in ("robot", "lost", "others", "lost"))
    with closing(AuditStore(path)) as store, closing(AuditStore(path)) as other:
        store.append([first])
        with closing(sqlite3.connect(path)) as file, closing(sqlite3.connect(":memory:")) as copy:
            file.backup(copy)
            store.append([lost])
            copy.backup(file)
        # It gets the number that the lost part had.
        other.append([others])
        store.append([last])
    assert bodies(path) == [encode(event) for event in (first, others, last)]


@pytest.mark.parametrize("name", shared._Common.__struct_fields__)
def test_events_that_differ_in_it_have_none_in_common(path: Path, name: str) -> None:
    event = replace(call(phase=Phase.COMPLETE), relay=Relay("r-1", "hawse/1"))
    other: dict[str, object] = {"org": "another", "actor": Actor(ActorType.HUB)}
    batch = [event, replace(event, **{name: other.get(name)})]
    with closing(AuditStore(path)) as store:
        store.append(batch)
    assert bodies(path) == [encode(event) for event in batch]


def test_a_secret_in_it_is_masked(path: Path) -> None:
    event = with_user_agent(call(), "curl hws_abcdefgh0123456789")
    with closing(AuditStore(path)) as store:
        store.append([event, event.completed(event.ts)])
    assert bodies(path)[0] == encode(Masks().apply(event))
    assert parts(path) == [1]
    assert b"hws_" not in b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_a_batch_that_was_not_written_leaves_nothing_to_rely_on(path: Path) -> None:
    with closing(AuditStore(path, bytes_max=128 * 1024)) as store:
        with pytest.raises(AuditUnavailable):
            store.append([call() for _ in range(2000)])
        event = call()
        store.append([event])
    assert bodies(path) == [encode(event)]


def test_a_part_that_is_lost_is_told(path: Path) -> None:
    with closing(AuditStore(path)) as store:
        store.append([call()])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER common_parts_never_delete")
        connection.execute("DELETE FROM common_parts")
        connection.commit()
    with pytest.raises(
        AuditUnavailable, match=r"audit\.db is damaged: the common part of event 1 is missing"
    ):
        bodies(path)


def test_what_has_ended_unknown_is_whole(path: Path) -> None:
    begun = call()
    with closing(AuditStore(path)) as store:
        store.append([begun], boot="first")
        assert store.close_unknown("second", utc(NOW_S + 60)) == 1
    ended = json.loads(bodies(path)[1])
    told = {"phase": "unknown", "ts": "2026-09-21T14:14:20Z", "note": ended["note"]}
    assert ended == {**json.loads(encode(begun)), **told}


def shorten_span(patch: pytest.MonkeyPatch) -> None:
    """Makes a short run reach limits that normally take thousands of events."""
    patch.setattr(shared, "SPAN_EVENTS", SPAN)
    patch.setattr(retention, "SPAN_EVENTS", SPAN)
    triggers = [each.replace(str(SPAN_EVENTS), str(SPAN)) for each in schema._NEVER_CHANGED]
    patch.setattr(schema, "_NEVER_CHANGED", triggers)


def test_a_reader_of_before_takes_no_part_for_the_whole(path: Path) -> None:
    with closing(AuditStore(path)) as store:
        store.append([call(), failure(note="")])
    with closing(sqlite3.connect(path)) as connection:
        for seq, body in connection.execute("SELECT seq, body FROM events"):
            with pytest.raises(ValueError, match="Expecting"):
                json.loads(StoredEvent(seq, body).line)


def test_what_is_remembered_is_bounded() -> None:
    common = CommonParts()
    for number in range(5000):
        common.begin(number, number, 1, 1)
        common.number(call(agent=f"agent-{number}"))
    assert len(common._by_json) <= shared._MEMO_MAX + 1
    assert len(common._by_sections) <= shared._MEMO_MAX + 1
    for number in range(5000):
        common.begin(number, number, 1, 1)
        common.number(call())
    assert len(common._by_sections) <= shared._MEMO_MAX + 1
    common.forget()
    common.begin(0, 0, 1, 2)
    same = call()
    assert common.number(same) == common.number(replace(same, eid="another")) == 1
    common.begin(SPAN_EVENTS - 1, 1, 1, 1)
    assert common.number(same) == 1
    common.begin(SPAN_EVENTS, 1, 1, 1)
    assert common.number(same) == 2
    with pytest.raises(ValueError, match="10001 events exceed the 10000"):
        common.begin(SPAN_EVENTS, 2, 1, SPAN_EVENTS + 1)


class Trail(RuleBasedStateMachine):
    """Two writers with alternating exclusive access to the file, and a process that prunes it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        shorten_span(self.patches)
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "audit.db"
        self.writers = [PrunableStore(self.path), PrunableStore(self.path)]
        self.expected: list[bytes] = []
        self.days = 0

    @rule(
        writer=st.integers(0, 1),
        agents=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=SPAN),
    )
    def append(self, writer: int, agents: list[str]) -> None:
        self.days += 1
        batch = [call(agent=agent, at_s=NOW_S + self.days * DAY_S, phase=Phase.COMPLETE) for agent in agents]
        self.writers[writer].append(batch)
        self.expected += map(encode, batch)

    @precondition(lambda self: self.expected)
    @rule(writer=st.integers(0, 1), keep=st.integers(0, 4))
    def prune(self, writer: int, keep: int) -> None:
        told: list[Event] = []

        def tell(removal: Removal) -> Event:
            event = call(phase=Phase.COMPLETE, at_s=NOW_S + self.days * DAY_S)
            told.append(replace(event, kind=Kind.AUDIT_PRUNED, note=str(removal)))
            return told[0]

        removal = self.writers[writer].prune(utc(NOW_S + (self.days - keep + 0.5) * DAY_S), tell)
        if removal is not None:
            self.expected = [*self.expected[removal.count :], encode(told[0])]

    @rule(writer=st.integers(0, 1))
    def reopen(self, writer: int) -> None:
        self.writers[writer].close()

    @invariant()
    def every_event_is_whole(self) -> None:
        assert bodies(self.path) == self.expected

    def teardown(self) -> None:
        for writer in self.writers:
            writer.close()
        self.patches.undo()
        self.folder.cleanup()


TestTrail = Trail.TestCase
TestTrail.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_what_no_event_needs_any_more_goes_with_the_oldest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_span(monkeypatch)
    with closing(PrunableStore(path)) as store:
        for day in range(30):
            store.append([call(at_s=NOW_S + day * DAY_S, phase=Phase.COMPLETE)])
        before = len(parts(path))
        assert store.prune(utc(NOW_S + 20.5 * DAY_S), lambda _: call(phase=Phase.COMPLETE)) is not None
    assert before == 5
    assert len(bodies(path)) == 10
    assert len(parts(path)) == 3


def test_the_last_event_that_may_need_a_part_protects_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_span(monkeypatch)
    batch = [call(at_s=NOW_S + day * DAY_S, phase=Phase.COMPLETE) for day in range(SPAN)]
    with closing(PrunableStore(path)) as store:
        for event in batch:
            store.append([event])
        last_day = utc(NOW_S + (SPAN - 1.5) * DAY_S)
        store.prune(last_day, lambda _: call(at_s=NOW_S + SPAN * DAY_S, phase=Phase.COMPLETE))
    with closing(sqlite3.connect(path)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            connection.execute("DELETE FROM common_parts WHERE number = 1")
    assert bodies(path)[0] == encode(batch[-1])
