"""What only a trail in PostgreSQL does: epochs, commits of unknown fate, rights, and refused content."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from audit.errors import AnotherTrail, AuditUnavailable, CommitUnknown, ContentRefused
from audit.ids import new_eid
from audit.postgres import batch as batch_module
from audit.postgres import statements
from audit.postgres import store as store_module
from audit.postgres.batch import Batch, Row, slices
from audit.postgres.link import Call, Link, Lost
from audit.postgres.reader import ReaderConnection
from audit.postgres.retention import PrunablePostgresStore
from audit.postgres.rights import grants_to
from audit.postgres.statements import LEFT_ROWS_MAX
from audit.postgres.store import PostgresStore
from audit.record import (
    Actor,
    ActorType,
    Client,
    Cluster,
    Event,
    Phase,
    Relay,
    Request,
    Response,
    Stream,
    utc,
)
from audit.recording.opening import open_recorder
from audit.store import TrailMark
from tests.audit.events import NOW_S, call
from tests.audit.eventually import eventually
from tests.audit.trails import PostgresTrail
from tests.fakes.lost_answers import lost_answers
from tests.postgres import PostgresServer

BOOT = "boot"


@pytest.fixture
def store(postgres_trail: PostgresTrail) -> Iterator[PostgresStore]:
    with closing(postgres_trail.open()) as store:
        yield store


def recorded(trail: PostgresTrail) -> list[tuple[object, ...]]:
    """Each event's epoch, number, id and phase, in the trail's order."""
    return trail.rows("SELECT epoch, n, eid::text, phase FROM trail_events ORDER BY written, epoch, n")


# -- numbers and epochs --------------------------------------------------------------------------------------


def test_each_process_writes_in_an_epoch_of_its_own_and_operators_share_one(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    events = [call(phase=Phase.COMPLETE) for _ in range(6)]
    with closing(postgres_trail.open()) as other:
        store.append(events[:2], boot="a")
        other.append(events[2:3], boot="b")
        store.append(events[3:4], boot="a")
        other.append(events[4:5])
        store.append(events[5:])
    places = [(epoch, n) for epoch, n, _, _ in recorded(postgres_trail)]
    assert places == [(1, 1), (1, 2), (2, 1), (1, 3), (0, 1), (0, 2)]
    rows = postgres_trail.read()
    assert [(row.get("epoch"), row["seq"]) for row in rows] == [(epoch or None, n) for epoch, n in places]
    assert [row["eid"] for row in rows] == [event.eid for event in events]


def test_a_process_continues_its_epoch_after_it_has_connected_again(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    store.append([call()], boot=BOOT)
    store.close()
    store.append([call()], boot=BOOT)
    with closing(postgres_trail.open()) as again:
        again.append([call()], boot=BOOT)
    assert [row[:2] for row in recorded(postgres_trail)] == [(1, 1), (1, 2), (1, 3)]


def test_two_writers_in_one_epoch_lose_no_event_unnoticed(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    store.append([call()], boot=BOOT)
    with closing(postgres_trail.open()) as other:
        other.append([call()], boot=BOOT)
        with pytest.raises(AuditUnavailable, match="duplicate key"):
            store.append([call()], boot=BOOT)
    assert len(recorded(postgres_trail)) == 2


def test_the_time_of_a_batch_never_goes_back_in_an_epoch(postgres_trail: PostgresTrail) -> None:
    now_s = [NOW_S]
    with closing(PostgresStore(postgres_trail.conninfo, clock=lambda: now_s[0])) as store:
        for now_s[0] in (NOW_S, NOW_S - 60, NOW_S + 1):
            store.append([call()], boot=BOOT)
            store.append([call()])
    for epoch in (0, 1):
        written = postgres_trail.rows(f"SELECT written FROM trail_events WHERE epoch = {epoch} ORDER BY n")
        assert written == [(int((NOW_S + after_s) * 1e6),) for after_s in (0, 0, 1)]


# -- commits of unknown fate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arrives", [False, True])
def test_a_batch_of_unknown_fate_is_written_first_and_once(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    before, begun, ended, after = call(), call(), call(), call()
    store.append([before], boot=BOOT)
    with lost_answers(monkeypatch, arrives=arrives):
        with pytest.raises(CommitUnknown, match="the connection is lost"):
            store.append([begun, ended, ended.completed(ended.ts)], boot=BOOT)
        store.append([after, before.completed(before.ts)], boot=BOOT)
    assert recorded(postgres_trail) == [
        (1, 1, before.eid, "intent"),
        (1, 2, begun.eid, "intent"),
        (1, 3, ended.eid, "intent"),
        (1, 4, ended.eid, "complete"),
        (1, 5, after.eid, "intent"),
        (1, 6, before.eid, "complete"),
    ]
    assert sorted(postgres_trail.rows("SELECT eid::text FROM trail_open")) == sorted(
        [(begun.eid,), (after.eid,)]
    )


@pytest.mark.parametrize("arrives", [False, True])
def test_a_batch_waits_for_a_database_that_comes_back_in_time(
    postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    monkeypatch.setattr(store_module, "_RETRY_S", 0.001)
    batch = [call(), call()]
    with closing(PostgresStore(postgres_trail.conninfo, wait_s=60)) as store:
        with lost_answers(monkeypatch, arrives=arrives, runs=3):
            store.append(batch, boot=BOOT)
    assert [row[2] for row in recorded(postgres_trail)] == [event.eid for event in batch]


def test_after_a_wait_in_vain_each_call_tries_once_until_the_database_is_back(
    postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_RETRY_S", 0.001)
    attempts = 0
    connect = Link.__init__

    def refused(link: Link, conninfo: object) -> None:
        nonlocal attempts
        attempts += 1
        raise Lost("connection refused")

    with closing(PostgresStore(postgres_trail.conninfo, wait_s=0.02)) as store:
        store.close()
        monkeypatch.setattr(Link, "__init__", refused)
        with pytest.raises(AuditUnavailable, match="unavailable: connection refused"):
            store.append([call()], boot=BOOT)
        assert attempts > 1
        attempts = 0
        with pytest.raises(AuditUnavailable):
            store.append([call()], boot=BOOT)
        assert attempts == 1
        monkeypatch.setattr(Link, "__init__", connect)
        store.append([call()], boot=BOOT)
    assert len(recorded(postgres_trail)) == 1


def test_a_connection_that_an_administrator_ends_is_opened_again(postgres_trail: PostgresTrail) -> None:
    with closing(PostgresStore(postgres_trail.conninfo, wait_s=60)) as store:
        store.append([call()], boot=BOOT)
        postgres_trail.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        store.append([call()], boot=BOOT)
        store.append([call()])
    assert len(recorded(postgres_trail)) == 3


def test_a_server_that_does_not_answer_is_given_up(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([call()], boot=BOOT)
    monkeypatch.setattr(store_module, "STATEMENT_S", 0.05)
    event = call()
    with postgres_trail.connection.transaction():
        postgres_trail.connection.execute("LOCK TABLE trail_events")
        with pytest.raises(CommitUnknown, match="does not answer"):
            store.append([event], boot=BOOT)
    monkeypatch.setattr(store_module, "STATEMENT_S", 5.0)
    store.append([call()], boot=BOOT)
    assert [(epoch, n) for epoch, n, _, _ in recorded(postgres_trail)] == [(1, 1), (1, 2), (1, 3)]
    assert recorded(postgres_trail)[1][2] == event.eid


def test_a_warning_counts_as_a_commit_that_no_standby_has_confirmed(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    event = call()
    with trigger(postgres_trail, "IF NEW.agent = 'robot' THEN RAISE WARNING 'canceling wait'; END IF;"):
        with pytest.raises(CommitUnknown, match="canceling wait"):
            store.append([event], boot=BOOT)
    store.append([call()], boot=BOOT)
    assert recorded(postgres_trail)[0][:3] == (1, 1, event.eid)
    assert len(recorded(postgres_trail)) == 2


async def test_an_intent_of_unknown_fate_is_refused_and_ended(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.recording.recorder.RETRY_S", 0.01)
    event, following = call(), call()
    # Its epoch is open, so the next round trip is a batch.
    store.append([call(phase=Phase.COMPLETE)], boot=BOOT)
    async with open_recorder(store, boot=BOOT) as recorder:
        with lost_answers(monkeypatch, arrives=True):
            with pytest.raises(AuditUnavailable, match="the connection is lost"):
                await recorder.intent(event)
            await eventually(lambda: recorder.healthy)
        await recorder.intent(following)
    rows = postgres_trail.read()[1:]
    assert [(row["kind"], row["phase"]) for row in rows] == [
        ("call", "intent"),
        ("audit.gap", "complete"),
        ("call", "complete"),
        ("call", "intent"),
    ]
    assert rows[2]["eid"] == event.eid
    assert rows[2]["resp"] == {
        "status": 0,
        "reason": "the audit trail did not confirm the intent in time",
        "processed": "no",
    }
    assert str(rows[1]["note"]).startswith("writes refused: 1, events lost: 0 (")


@pytest.mark.parametrize("withdrawn", ["at once", "before", "after"])
async def test_an_intent_of_unknown_fate_that_is_withdrawn_has_one_end(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch, withdrawn: str
) -> None:
    monkeypatch.setattr("audit.recording.recorder.RETRY_S", 0.01)
    reached, gate = threading.Event(), threading.Event()
    store.append([call(phase=Phase.COMPLETE)], boot=BOOT)
    append = store.append

    def lose_the_answer(batch: Sequence[Event], *, boot: str = "") -> object:
        reached.set()
        gate.wait(5)
        if batch[0] is not event:
            return append(batch, boot=boot)
        with lost_answers(monkeypatch, arrives=True):
            return append(batch, boot=boot)

    monkeypatch.setattr(store, "append", lose_the_answer)
    event = call()
    settled: list[str | None] = []

    def settle(failure: str | None) -> None:
        if withdrawn == "after":
            # The client leaves while the refusal reaches it.
            recorder.withdraw(event)
        settled.append(failure)

    async with open_recorder(store, boot=BOOT) as recorder:
        if withdrawn == "at once":
            # The intent and its end are in one batch, which waits for this one.
            recorder.complete(call(phase=Phase.COMPLETE))
            await trio.to_thread.run_sync(reached.wait)
            recorder.begin_intent(event, settle)
            recorder.withdraw(event)
        else:
            recorder.begin_intent(event, settle)
            await trio.to_thread.run_sync(reached.wait)
        if withdrawn == "before":
            recorder.withdraw(event)
        gate.set()
        await eventually(lambda: bool(settled) and recorder.healthy)
    phases = [row["phase"] for row in postgres_trail.read() if row["eid"] == event.eid]
    assert phases == ["intent", "complete"]


# -- closed epochs -------------------------------------------------------------------------------------------


def test_a_hub_that_was_taken_for_dead_writes_no_second_end(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    event, read, begun = call(), call(), call()
    store.append([event], boot="alive after all")
    with closing(postgres_trail.open()) as other:
        assert other.close_unknown("new", utc(NOW_S)) == 1
    ends = [event.completed(event.ts, note="late"), read.completed(read.ts)]
    with pytest.raises(ContentRefused, match="is closed: another process took this hub for") as told:
        store.append([begun, *ends], boot="alive after all")
    assert list(told.value.refused) == [begun.eid]
    rows = postgres_trail.read()
    # The read has no row before, so this is its only end.
    assert [(row["eid"], row["phase"]) for row in rows if row["kind"] == "call"] == [
        (event.eid, "intent"),
        (event.eid, "unknown"),
        (read.eid, "complete"),
    ]
    (late,) = (row for row in rows if row["kind"] == "audit.late")
    assert late["note"] == f"the end of {event.eid}, which was closed as unknown: late"
    assert late["actor"] == rows[0]["actor"]


def test_ends_that_were_committed_before_their_epoch_was_closed_are_not_written_again(
    postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    event, read = call(), call()

    def close_between_the_attempts(_: float) -> None:
        with closing(postgres_trail.open()) as other:
            assert other.close_unknown("new", utc(NOW_S)) == 0

    monkeypatch.setattr(store_module.time, "sleep", close_between_the_attempts)
    with closing(PostgresStore(postgres_trail.conninfo, wait_s=60)) as store:
        store.append([event], boot="alive after all")
        with lost_answers(monkeypatch, arrives=True):
            store.append([event.completed(event.ts), read.completed(read.ts)], boot="alive after all")
    assert [(row["eid"], row["phase"]) for row in postgres_trail.read()] == [
        (event.eid, "intent"),
        (event.eid, "complete"),
        (read.eid, "complete"),
    ]


@pytest.mark.parametrize("arrives", [True, False])
def test_the_ends_of_a_batch_of_unknown_fate_are_kept_when_the_epoch_is_closed(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    event, read, refused, last = call(), call(), call(), call()
    store.append([event], boot="alive after all")
    ends = [event.completed(event.ts), read.completed(read.ts)]
    with lost_answers(monkeypatch, arrives=arrives), pytest.raises(CommitUnknown):
        store.append([refused, *ends], boot="alive after all")
    with closing(postgres_trail.open()) as other:
        other.close_unknown("new", utc(NOW_S))
    store.append([refused.completed(refused.ts), last.completed(last.ts)], boot="alive after all")
    rows = postgres_trail.read()
    ended = [row["eid"] for row in rows if row["kind"] == "call" and row["phase"] != "intent"]
    assert sorted(ended) == sorted([event.eid, read.eid, refused.eid, last.eid])
    late = [str(row["note"]).split()[3].rstrip(",") for row in rows if row["kind"] == "audit.late"]
    assert late == ([refused.eid] if arrives else [event.eid])


def test_an_epoch_that_a_restored_backup_lacks_gets_no_event(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    store.append([call()], boot=BOOT)
    postgres_trail.connection.execute("DELETE FROM trail_epochs WHERE epoch > 0")
    # Another process may be given its number.
    with pytest.raises(AuditUnavailable, match="has lost epoch 1 of the audit trail; restart the hub"):
        store.append([call()], boot=BOOT)
    with closing(postgres_trail.open()) as other:
        other.append([call()], boot="new")
    assert len(postgres_trail.read()) == 2


def test_a_batch_of_unknown_fate_is_not_written_into_a_closed_epoch(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([call()], boot=BOOT)
    with lost_answers(monkeypatch, arrives=False), pytest.raises(CommitUnknown):
        store.append([call()], boot=BOOT)
    with closing(postgres_trail.open()) as other:
        assert other.close_unknown("new", utc(NOW_S)) == 1
    with pytest.raises(AuditUnavailable, match="is closed"):
        store.append([call()], boot=BOOT)
    assert len(recorded(postgres_trail)) == 2


def test_an_epoch_is_closed_after_the_batch_that_its_writer_is_committing(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    store.append([call()], boot=BOOT)
    closed: list[int] = []

    def close() -> None:
        with closing(postgres_trail.open()) as other:
            closed.append(other.close_unknown("new", utc(NOW_S)))

    closer = threading.Thread(target=close)
    with psycopg.connect(postgres_trail.url) as writer:
        writer.execute("SELECT trail_enter(1)")
        eid = call().eid
        writer.execute(
            "INSERT INTO trail_events SELECT written, 2, ts_us, %s, epoch, common, phase, kind, agent, "
            "cluster, body FROM trail_events WHERE epoch = 1",
            [eid],
        )
        writer.execute("INSERT INTO trail_open VALUES (%s, 1, 2)", [eid])
        closer.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while postgres_trail.rows(waiting) == [(0,)]:
            assert closer.is_alive()
        assert not closed
        writer.commit()
    closer.join()
    assert closed == [2]
    assert [phase for *_, phase in recorded(postgres_trail)] == ["intent", "intent", "unknown", "unknown"]


def test_many_open_calls_are_closed_by_several_statements(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([call() for _ in range(LEFT_ROWS_MAX + 2)], boot="dead")
    large = replace(call(), req=Request("POST", "x" * 60_000, "create"))
    store.append([replace(large, eid=new_eid()) for _ in range(2)], boot="dead too")
    monkeypatch.setattr(batch_module, "_SLICE_BYTES_MAX", 100_000)
    sizes: list[int] = []
    written = statements.written

    def watched(batch: Batch) -> list[Call]:
        sizes.append(len(batch.rows))
        return written(batch)

    monkeypatch.setattr(statements, "written", watched)
    calls = LEFT_ROWS_MAX + 4
    assert store.close_unknown("mine", utc(NOW_S)) == calls
    assert sizes == [LEFT_ROWS_MAX, 2, 1, 1]
    ends = postgres_trail.read()[calls:]
    assert [row["seq"] for row in ends] == list(range(1, calls + 1))
    assert {row["phase"] for row in ends} == {"unknown"}
    assert len({row["eid"] for row in ends}) == calls
    assert store.close_unknown("mine", utc(NOW_S)) == 0


@given(sizes=st.lists(st.integers(0, 60), max_size=30), bytes_max=st.integers(1, 100))
def test_slices_have_few_bytes(sizes: list[int], bytes_max: int) -> None:
    rows: list[Row] = [("", "", "", 0, "", "", 0, bytes(size)) for size in sizes]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch_module, "_SLICE_BYTES_MAX", bytes_max)
        parts = list(slices(rows))
    assert [row for part in parts for row in part] == rows
    assert all(len(part) == 1 or sum(len(row[7]) for row in part) <= bytes_max for part in parts)


def test_no_epoch_can_be_opened_while_boots_are_checked(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([call()], boot="other")
    monkeypatch.setattr(store_module, "STATEMENT_S", 0.05)

    def is_running(boot: str) -> bool:
        with closing(postgres_trail.open()) as new, pytest.raises(AuditUnavailable, match="not answer"):
            new.append([call()], boot="new")
        return False

    assert store.close_unknown("mine", utc(NOW_S), is_running=is_running) == 1


def test_a_failure_while_boots_are_checked_leaves_no_lock(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    store.append([call()], boot="other")
    with pytest.raises(ZeroDivisionError):
        store.close_unknown("mine", utc(NOW_S), is_running=lambda boot: bool(1 // 0))
    with closing(postgres_trail.open()) as other:
        other.append([call()])
    assert store.close_unknown("mine", utc(NOW_S)) == 2


# -- what PostgreSQL does not store --------------------------------------------------------------------------


@contextmanager
def trigger(trail: PostgresTrail, body: str) -> Iterator[None]:
    """Run PL/pgSQL before each event is inserted."""
    trail.connection.execute(
        "CREATE FUNCTION checked() RETURNS trigger LANGUAGE plpgsql "
        f"AS $$ BEGIN {body} RETURN NEW; END $$".encode()
    )
    trail.connection.execute(
        "CREATE TRIGGER checked BEFORE INSERT ON trail_events FOR EACH ROW EXECUTE FUNCTION checked()"
    )
    try:
        yield
    finally:
        trail.connection.execute("DROP FUNCTION checked CASCADE")


POISON = "IF NEW.agent = 'poison' THEN RAISE EXCEPTION 'not stored' USING ERRCODE = '22021'; END IF;"


@pytest.mark.parametrize("boot", [BOOT, ""])
def test_events_that_are_refused_for_their_content_stop_no_other(
    store: PostgresStore, postgres_trail: PostgresTrail, boot: str
) -> None:
    begun = call(agent="poison")
    batch = [call(phase=Phase.COMPLETE) for _ in range(9)]
    batch[2:2] = [begun]
    batch[7:7] = [call(agent="poison", phase=Phase.COMPLETE)]
    with trigger(postgres_trail, POISON):
        if boot:
            with pytest.raises(ContentRefused) as caught:
                store.append(batch, boot=boot)
            assert caught.value.refused == {batch[2].eid: "not stored", batch[7].eid: "not stored"}
        else:
            store.append_once(batch)
        store.append([call()], boot=boot)
    rows = postgres_trail.read()
    assert [row["seq"] for row in rows] == list(range(1, 13))
    assert [row["eid"] for row in rows][:2] == [event.eid for event in batch[:2]]
    for index in (2, 7):
        assert rows[index]["kind"] == "audit.gap"
        assert rows[index]["note"] == f"PostgreSQL refused the event {batch[index].eid}: not stored"
    assert postgres_trail.rows("SELECT count(*) FROM trail_open") == [(1,)]


async def test_only_the_intent_that_cannot_be_recorded_is_refused(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    outcomes: dict[str, str] = {}

    async def begin(agent: str) -> None:
        try:
            await recorder.intent(call(agent=agent))
        except AuditUnavailable as error:
            outcomes[agent] = str(error)
        else:
            outcomes[agent] = "recorded"

    with trigger(postgres_trail, POISON):
        async with open_recorder(store, boot=BOOT) as recorder, trio.open_nursery() as nursery:
            for agent in ("a", "poison", "b"):
                nursery.start_soon(begin, agent)
    assert outcomes == {
        "a": "recorded",
        "b": "recorded",
        "poison": "the audit trail cannot record this call",
    }


hostile = "x\x00\ud800\udfffé\u2028\U0001f600"
texts = st.text(st.characters() | st.sampled_from(hostile), max_size=20) | st.builds(
    lambda character: character * 70_000, st.sampled_from(hostile)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(
    names=st.tuples(*[texts] * 4),
    target=texts,
    command=st.lists(texts, max_size=3),
    phase=st.sampled_from([Phase.INTENT, Phase.COMPLETE]),
)
def test_any_text_of_a_client_is_recorded(
    trail_in_postgres: PostgresTrail,
    names: tuple[str, str, str, str],
    target: str,
    command: list[str],
    phase: Phase,
) -> None:
    agent, user_agent, cluster, reason = names
    event = replace(
        call(phase=phase),
        actor=Actor(ActorType.AGENT, agent, owner=reason),
        client=Client("10.0.0.9", user_agent),
        cluster=Cluster("c-1", cluster),
        relay=Relay(reason, user_agent),
        req=Request(reason, target, "get", agent, cluster, target, agent, reason, user_agent),
        resp=Response(400, reason),
        stream=Stream("http", tuple(command), agent, close_reason=reason),
        note=target,
    )
    trail_in_postgres.clear()
    with closing(trail_in_postgres.open()) as store:
        store.append([event, call()], boot=BOOT)
        store.append([event, call()])
    rows = trail_in_postgres.read()
    assert [row["eid"] for row in rows][::2] == [event.eid] * 2
    assert len(rows) == 4
    # As JSON for queries too, which takes no zero byte.
    assert trail_in_postgres.rows(
        "SELECT count(convert_from(body, 'UTF8')::jsonb) FROM trail_events WHERE common IS NULL"
    ) == [(2,)]


def test_a_database_of_another_encoding_is_refused(postgres: PostgresServer) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    try:
        with pytest.raises(AuditUnavailable, match="is not UTF8: create it with ENCODING 'UTF8'"):
            PostgresStore(lambda: postgres.url("latin"), wait_s=0)
    finally:
        postgres.execute("DROP DATABASE latin")


# -- rights --------------------------------------------------------------------------------------------------


@pytest.fixture
def role(postgres_trail: PostgresTrail) -> Iterator[str]:
    """The URL for a role with the rights of a hub."""
    postgres_trail.connection.execute("CREATE ROLE hawse LOGIN")
    try:
        for statement in grants_to("hawse"):
            postgres_trail.connection.execute(statement.encode())
        yield postgres_trail.url.replace("postgres@", "hawse@")
    finally:
        postgres_trail.connection.execute("DROP OWNED BY hawse; DROP ROLE hawse")


def test_the_role_of_a_hub_can_write_read_and_prune_and_change_nothing(
    role: str, postgres_trail: PostgresTrail
) -> None:
    begun = call()
    with closing(PrunablePostgresStore(lambda: role, wait_s=0, clock=lambda: NOW_S - 1e8)) as store:
        store.append([call(), begun], boot=BOOT)
        store.append([begun.completed(begun.ts)], boot=BOOT)
        store.append_once([call(phase=Phase.COMPLETE)])
        assert store.close_unknown("new", utc(NOW_S)) == 1
        assert store.prune(utc(NOW_S - 9e7), lambda removal: call(phase=Phase.COMPLETE)) is None
    assert len(postgres_trail.read()) == 5
    with psycopg.connect(role, autocommit=True) as connection:
        for statement in (
            "DELETE FROM trail_events",
            "UPDATE trail_events SET agent = 'x'",
            "TRUNCATE trail_events",
            "DELETE FROM trail_parts",
            "UPDATE trail_parts SET body = ''",
            "DELETE FROM trail_epochs",
            "UPDATE trail_epochs SET boot = 'x'",
            "UPDATE trail SET version = 2",
            "CREATE OR REPLACE FUNCTION trail_enter(writer int) RETURNS void LANGUAGE sql AS ''",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_no_table_of_the_caller_hides_an_open_call_from_a_prune(
    role: str, postgres_trail: PostgresTrail
) -> None:
    with closing(PostgresStore(lambda: role, clock=lambda: NOW_S - 1e8)) as store:
        store.append([call()], boot=BOOT)
    with psycopg.connect(role, autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE trail_open (LIKE public.trail_open)")
        with pytest.raises(psycopg.Error, match="a call that began before this event has not ended"):
            connection.execute("SELECT trail_prune(%s, 1, 1)", [int((NOW_S - 1e8) * 1e6)])
    assert len(postgres_trail.read()) == 1


def test_the_events_of_the_last_day_cannot_be_pruned(
    role: str, store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    store.append([call(phase=Phase.COMPLETE)], boot=BOOT)
    with psycopg.connect(role, autocommit=True) as connection:
        with pytest.raises(psycopg.Error, match="keeps the events of the last 24 hours"):
            connection.execute("SELECT trail_prune(%s, 1, 1)", [2**62])
    assert len(postgres_trail.read()) == 1


def test_a_role_that_may_not_create_the_tables_gets_the_reason(postgres: PostgresServer) -> None:
    postgres.execute("CREATE ROLE powerless LOGIN")
    try:
        with postgres.new_database() as name:
            with psycopg.connect(postgres.url(name), autocommit=True) as connection:
                connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            with pytest.raises(AuditUnavailable, match="permission denied for schema public"):
                PostgresStore(lambda: postgres.url(name, user="powerless"), wait_s=0)
    finally:
        postgres.execute("DROP ROLE powerless")


# -- which trail ---------------------------------------------------------------------------------------------


def test_a_trail_is_known_again_and_another_one_is_refused(
    store: PostgresStore, postgres_trail: PostgresTrail
) -> None:
    store.append([call()], boot=BOOT)
    mark = store.mark
    with closing(PostgresStore(postgres_trail.conninfo, expected=mark)) as again:
        assert again.mark == mark
    older = TrailMark(mark.id, mark.highest + 1)
    with pytest.raises(AnotherTrail, match="an older state of the audit trail, which ends at"):
        PostgresStore(postgres_trail.conninfo, expected=older)
    another = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(AnotherTrail, match="another audit trail than the one that was written until now"):
        PostgresStore(postgres_trail.conninfo, expected=TrailMark(another, 0))
    postgres_trail.connection.execute(f"UPDATE trail SET id = '{another}'".encode())
    store.close()
    with pytest.raises(AnotherTrail):
        store.append([call()], boot=BOOT)
    store.expect(TrailMark(another, 0))
    store.append([call()], boot=BOOT)


def test_processes_that_start_at_once_create_one_trail(postgres_database: str) -> None:
    ids: list[str] = []
    start = threading.Barrier(4)

    def begin() -> None:
        start.wait()
        with closing(PostgresStore(lambda: postgres_database)) as store:
            ids.append(store.mark.id)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert len({*ids}) == 1


def test_a_trail_of_a_newer_hawse_is_refused(store: PostgresStore, postgres_trail: PostgresTrail) -> None:
    postgres_trail.connection.execute("UPDATE trail SET version = 2")
    try:
        for use in (postgres_trail.open, postgres_trail.reader):
            with pytest.raises(AuditUnavailable, match="schema version 2, this hawse knows 1"):
                use()
    finally:
        postgres_trail.connection.execute("UPDATE trail SET version = 1")


# -- followers -----------------------------------------------------------------------------------------------


def test_a_follower_passes_over_no_event_that_is_committed_late(
    postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.postgres.reader.POLL_S", 0)

    def writer(clock_s: float) -> PostgresStore:
        return PostgresStore(postgres_trail.conninfo, clock=lambda: clock_s)

    events = [call(phase=Phase.COMPLETE) for _ in range(7)]
    with closing(writer(NOW_S)) as one, closing(writer(NOW_S - 60)) as late, closing(writer(NOW_S)) as new:
        one.append(events[:1], boot="one")
        late.append(events[1:2], boot="late")
        with closing(postgres_trail.reader()) as reader:
            found = reader.follow(1)
            shown = [next(found).number for _ in range(2)]
            # The late one's batch has the earlier time.
            assert shown == ["2.1", "1.1"]
            late.append(events[2:4], boot="late")
            assert [next(found).number for _ in range(2)] == ["2.2", "2.3"]
            new.append(events[4:5], boot="new")
            one.append(events[5:6], boot="one")
            assert [next(found).number for _ in range(2)] == ["1.2", "3.1"]
            one.append(events[6:7])
            assert next(found).number == "1"


# -- readers -------------------------------------------------------------------------------------------------


def test_a_reader_gives_up_a_server_that_does_not_answer(
    store: PostgresStore, postgres_trail: PostgresTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([call()], boot=BOOT)
    with closing(postgres_trail.reader()) as reader:
        with postgres_trail.connection.transaction(), monkeypatch.context() as patched:
            patched.setattr(ReaderConnection, "answer_s", 0.05)
            postgres_trail.connection.execute("LOCK TABLE trail_events")
            with pytest.raises(AuditUnavailable, match=r"is unavailable: the database does not answer$"):
                reader.query()
        assert len(reader.query()) == 1


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (
            "UPDATE trail_events SET body = 'x'",
            r"^event 1\.1 of the audit trail in PostgreSQL is damaged: .*$",
        ),
        ("DELETE FROM trail_parts", r"^the common part of event 1\.1 is missing in PostgreSQL$"),
    ],
)
def test_a_damaged_event_is_one_line(
    store: PostgresStore, postgres_trail: PostgresTrail, damage: str, error: str
) -> None:
    store.append([call()], boot=BOOT)
    postgres_trail.connection.execute(damage.encode())
    with closing(postgres_trail.reader()) as reader, pytest.raises(AuditUnavailable, match=error):
        reader.query()
