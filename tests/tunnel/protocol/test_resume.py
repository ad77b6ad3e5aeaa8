"""What is said and checked when a session goes on over another transport, case by case; `test_cuts` has the
rest."""

from __future__ import annotations

import math

import attrs
import pytest

from tests.tunnel.protocol import recorded
from tests.tunnel.protocol.cuttable import RESUMING, Cuttable
from tests.tunnel.protocol.joined import MIB, Joined, broken, frames_of
from tunnel.protocol import frames, greetings
from tunnel.protocol.connection import Phase
from tunnel.protocol.connection.deadlines import OPEN_WAITS_S
from tunnel.protocol.connection.resumption import RESUME_TTL_S
from tunnel.protocol.errors import CloseCode, Processed, RemoteProtocolError, StreamCode
from tunnel.protocol.events import GoAway
from tunnel.protocol.greetings import Hello, Resume, Welcome
from tunnel.protocol.ledger import CHARGED_IN_BYTES, LEDGER_BYTES_MAX, LEDGER_LEAST_BYTES
from tunnel.protocol.liveness import DOUBT_AFTER_S
from tunnel.protocol.memory import Memory


def test_two_full_ledgers_are_sent_again_at_once() -> None:
    joined = Cuttable(
        hello=Hello(initial_window=4 * MIB), welcome=Welcome(session_id="s", initial_window=4 * MIB)
    )
    pairs = [joined.streams() for _ in range(4)]
    payload = bytes(range(256)) * (3 * MIB // 256)
    for pair in pairs:
        for connection, stream in zip((joined.listener, joined.dialer), pair, strict=True):
            connection.streams.send_data(stream, payload)
    for connection in (joined.listener, joined.dialer):
        while joined.send(connection, 256 * 1024):
            pass
        assert connection.sent.full
        assert LEDGER_BYTES_MAX <= connection.sent.unacknowledged_bytes < LEDGER_BYTES_MAX + MIB
    joined.lose(listener_notices=True, arrives=0)
    received = {stream: bytearray() for pair in pairs for stream in pair}
    moved = True
    while moved:
        joined.flow()
        moved = False
        for pair in pairs:
            for connection, stream in zip((joined.listener, joined.dialer), pair, strict=True):
                while data := connection.streams.take(stream, MIB, joined.now):
                    received[stream] += data
                    moved = True
    assert all(bytes(data) == payload for data in received.values())
    for connection in (joined.listener, joined.dialer):
        assert connection.sent.replayed_frames > 0


def test_the_end_of_what_is_sent_again_is_acknowledged_at_once() -> None:
    """However little it is: the sender holds all of a message until then, and new bytes wait for that."""
    joined = Cuttable(hello=Hello(initial_window=MIB), welcome=Welcome(session_id="s", initial_window=MIB))
    opened, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, bytes(133 * 1024))
    _, *sizes = [len(payload) for *_, payload in frames_of(joined.send(joined.dialer, 256 * 1024))]
    assert sizes == [128 * 1024, 5 * 1024]
    joined.lose(listener_notices=True, arrives=0)
    joined.flow()
    assert joined.dialer.sent.replayed_frames == 2
    assert opened.incoming.size == 133 * 1024
    assert joined.dialer.sent.unacknowledged_bytes == 0
    # And only that.
    joined.dialer.streams.send_data(accepted, b"more")
    joined.flow()
    assert joined.dialer.sent.unacknowledged_bytes > 0


def test_data_from_before_a_reset_was_heard_may_come_after_the_reset_is_acknowledged() -> None:
    joined = Cuttable()
    opened, accepted = joined.streams()
    for _ in range(2):
        joined.dialer.streams.send_data(accepted, bytes(200))
        joined.send(joined.dialer)
    joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "")
    joined.send(joined.listener)
    joined.lose(listener_notices=True, arrives=10**6)
    assert joined.dialer.table.count == 0
    # The greeting acknowledges the RESET, and each PING again; they come before the DATA, and between.
    joined.dial()
    joined.move(joined.listener, 10**6)
    joined.send(joined.listener)
    joined.move(joined.dialer, 10**6)
    for come in (0, 1, 2):
        word = frames.ping(come, joined.listener.sent.next_number, 0, answer=False)
        joined.listener.receive(word, joined.now)
        assert bool(joined.listener.resets.unacknowledged) == (come < 2)
        joined.send(joined.dialer, 256)
        joined.move(joined.listener, 10**6)
    joined.flow()
    assert joined.listener.status.failure is None


class Short(Memory):
    """An account in which there is never room for another stream."""

    short = True


@pytest.mark.parametrize("cancels", [False, True])
def test_who_listens_is_refused_without_end_however_often_and_late_that_is_heard(
    cancels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All it may have open is refused at once, and its word for that is lost with the link, again and again;
    on the next one it comes before what was opened since."""
    most = 400
    monkeypatch.setattr("tunnel.protocol.connection.stream_feed.MODEST_USERS_MAX", 0)
    joined = Cuttable(hello=Hello(max_streams=most), dialer_memory=Short(2**40))
    joined.flow()
    peak = 0
    for _ in range(10):
        for _ in range(2):
            while joined.listener.streams.may_open:
                joined.open(b"")
            while joined.send(joined.listener):
                pass
            if cancels:
                for stream in list(joined.listener.table.by_id.values()):
                    joined.listener.streams.reset(stream, StreamCode.CANCEL, Processed.MAYBE, "")
            joined.deliver(joined.dialer)
            peak = max(peak, joined.dialer.resets.of_peer)
            while joined.send(joined.dialer):
                pass
            # Here they arrive, but the sender does not learn of that.
            joined.deliver(joined.listener)
        joined.lose(listener_notices=True, arrives=0)
        joined.flow()
    assert joined.listener.status.failure is joined.dialer.status.failure is None
    assert joined.dialer.table.opened_there == 0
    assert joined.dialer.table.peer_last_id >= 2 * 20 * most
    assert most <= peak <= 3 * most


@pytest.mark.parametrize(
    ("hello", "welcome"),
    [
        (Hello(), Welcome(session_id="s", resume_ttl_s=60, **RESUMING)),
        (Hello(**RESUMING), Welcome(session_id="s", resume_ttl_s=60)),
        (Hello(**RESUMING), Welcome(session_id="s", resume_ttl_s=0, **RESUMING)),
    ],
    ids=["not the dialer's", "not the listener's", "no time"],
)
def test_a_session_ends_with_its_transport_unless_both_sides_want_it_to_go_on(
    hello: Hello, welcome: Welcome
) -> None:
    joined = Joined(hello=hello, welcome=welcome)
    joined.streams()
    for connection in (joined.listener, joined.dialer):
        assert not connection.resumption.resumable
        assert connection.sent.kept_bytes == 0


def detached() -> Cuttable:
    joined = Cuttable()
    joined.streams()
    joined.lose(listener_notices=True, arrives=0)
    return joined


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"resumed": False}, "another session"),
        ({"session_id": "t"}, "another session"),
        ({"last_rx": 99}, "has received 99 frames"),
        ({"next_tx": 0}, "has sent 0 frames"),
    ],
)
def test_a_dialer_does_not_go_on_with_a_listener_that_counts_otherwise(
    wrong: dict[str, object], why: str
) -> None:
    joined = detached()
    right = Welcome(
        session_id="s",
        resumed=True,
        last_rx=joined.listener.received.count,
        next_tx=joined.listener.sent.next_number,
    )
    with pytest.raises(RemoteProtocolError, match=why) as caught:
        joined.dialer.receive(greetings.welcome(attrs.evolve(right, **wrong)), joined.now)
    assert caught.value.close_code == CloseCode.RESUME_UNKNOWN
    joined = detached()
    joined.dialer.receive(greetings.welcome(right), joined.now)
    assert joined.dialer.status.phase is Phase.OPEN


def test_the_time_away_counts_from_the_last_byte_received() -> None:
    joined = Cuttable()
    opened, accepted = joined.streams()
    heard_at = joined.now
    joined.now += 7
    joined.lose(listener_notices=True, arrives=0)
    # Before that, the doubt is reported to the streams that were opened here.
    assert joined.listener.deadlines.next() == joined.listener.deadlines.doubt_at == heard_at + DOUBT_AFTER_S
    joined.listener.deadlines.doubt()
    for connection, end in ((joined.listener, opened), (joined.dialer, accepted)):
        assert connection.deadlines.next() == heard_at + RESUME_TTL_S
        connection.deadlines.tick(heard_at + RESUME_TTL_S - 0.001)
        assert connection.status.phase is Phase.DETACHED
        connection.deadlines.tick(heard_at + RESUME_TTL_S)
        assert connection.status.phase is Phase.CLOSED
        (event,) = broken(connection.take_events())
        assert (event.stream, event.code) == (end, StreamCode.DETACH_EXPIRED)
        assert event.processed is Processed.MAYBE
        assert event.reason == "the tunnel was away for 60 s"
        assert connection.sent.kept_bytes == connection.sent.charged_bytes == 0
        assert connection.deadlines.next() == math.inf


def test_a_listener_grants_no_more_time_than_a_minute() -> None:
    joined = Joined(hello=Hello(**RESUMING), welcome=Welcome(session_id="s", resume_ttl_s=3600, **RESUMING))
    assert joined.listener.status.resume_ttl_s == joined.dialer.status.resume_ttl_s == RESUME_TTL_S


def test_who_asks_while_the_transport_is_away_waits_a_moment_and_is_told_that_nothing_was_sent() -> None:
    joined = detached()
    opened = joined.open()
    until = joined.now + OPEN_WAITS_S
    assert joined.listener.deadlines.next() == until
    joined.listener.deadlines.tick(until - 0.001)
    assert joined.listener.take_events() == []
    assert not joined.listener.deadlines.too_late_to_open(until - 0.001)
    assert joined.listener.deadlines.too_late_to_open(until)
    joined.listener.deadlines.tick(until)
    (event,) = broken(joined.listener.take_events())
    assert (event.stream, event.code, event.processed) == (opened, StreamCode.REFUSED, Processed.NO)
    joined.flow()
    assert joined.dialer.table.count == 1
    assert not joined.listener.deadlines.too_late_to_open(until)


def test_who_asks_while_the_transport_is_away_is_served_when_it_comes_back() -> None:
    joined = detached()
    context = joined.listener.add_context(1, b"named while away")
    opened = joined.open(b"asked while away", context=context.index)
    assert joined.listener.data_to_send(1000, joined.now) == b""
    joined.flow()
    assert opened.id
    (event,) = [event for event in joined.at_dialer if isinstance(event, recorded.StreamOpened)][1:]
    assert event.stream.head == b"asked while away"


def test_what_is_not_numbered_is_said_again() -> None:
    joined = Cuttable()
    _, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, b"x")
    joined.dialer.deadlines.ping(joined.now)
    joined.send(joined.dialer)
    joined.deliver(joined.listener)
    joined.listener.go_away(CloseCode.DRAINING, 1000, 0, "draining")
    joined.now += 1
    joined.listener.deadlines.tick(joined.now)
    assert joined.listener.control.ack_due
    joined.lose(listener_notices=True, arrives=0)
    assert joined.listener.data_to_send(1000, joined.now) == b""
    assert not joined.listener.has_unsent
    joined.dial()
    joined.move(joined.listener, 10**6)
    joined.listener.deadlines.tick(joined.now)
    welcome, ping, goaway = (frame[0] for frame in frames_of(joined.send(joined.listener)))
    assert (welcome, ping, goaway) == (frames.WELCOME, frames.PING, frames.GOAWAY)
    joined.flow()
    assert [event.reason for event in joined.at_dialer if isinstance(event, GoAway)] == ["draining"]
    assert joined.listener.round_trips.least_s is not None


def test_a_hello_that_counts_no_attempts_is_never_late() -> None:
    joined = detached()
    assert not joined.listener.resumption.is_outdated(Resume("s"))
    joined.flow()
    assert not joined.listener.resumption.is_outdated(Resume("s"))


def test_another_transport_is_measured_again() -> None:
    joined = detached()
    of_the_old_one = joined.listener.drain.flight, joined.dialer.drain.flight
    joined.now += 5
    joined.flow()
    assert joined.listener.drain.flight is not of_the_old_one[0]
    assert joined.dialer.drain.flight is not of_the_old_one[1]


def test_a_refusal_on_a_new_transport_is_not_taken_for_a_goaway() -> None:
    joined = detached()
    refusal = frames.goaway(0, CloseCode.SLOW_DOWN, 0, 5000, "later")
    with pytest.raises(RemoteProtocolError, match="before the greeting"):
        joined.dialer.receive(refusal, joined.now)


def test_while_memory_is_short_little_is_sent_that_is_not_acknowledged() -> None:
    joined = Cuttable(hello=Hello(initial_window=4 * MIB), listener_memory=Memory(4 * MIB))
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, bytes(2 * MIB))
    while joined.send(joined.listener):
        pass
    sent = joined.listener.sent.unacknowledged_bytes
    assert LEDGER_LEAST_BYTES <= sent < LEDGER_LEAST_BYTES + 2 * 64 * 1024
    joined.flow()
    assert accepted.incoming.size == 2 * MIB


def test_a_session_that_ends_does_not_go_on_to_send_again() -> None:
    joined = Cuttable()
    opened, _ = joined.streams()
    joined.listener.streams.send_data(opened, b"lost on the way")
    joined.send(joined.listener)
    joined.lose(listener_notices=True, arrives=0)
    joined.dial()
    joined.move(joined.listener, 10**6)
    assert joined.listener.sent.replaying
    joined.listener.go_away(CloseCode.NORMAL, 0, 0, "over")
    joined.listener.close(StreamCode.DETACH_EXPIRED, "over")
    assert [kind for kind, *_ in frames_of(joined.listener.data_to_send(64 * 1024, joined.now))] == [
        frames.GOAWAY
    ]
    assert not joined.listener.wants_to_send
    assert not joined.listener.has_unsent


def test_the_ledger_of_a_tunnel_that_is_away_can_be_taken_back() -> None:
    process = Memory(64 * MIB)
    joined = Cuttable(hello=Hello(initial_window=4 * MIB), listener_memory=Memory(64 * MIB, parent=process))
    opened, _ = joined.streams()
    joined.listener.streams.send_data(opened, bytes(MIB))
    while joined.send(joined.listener):
        pass
    held = joined.listener.holdings.held_bytes
    assert held > MIB
    process.charge(63 * MIB - held)
    # While it is there, its acknowledgements will free it.
    assert joined.listener not in joined.listener.holdings.holders()
    joined.lose(listener_notices=True, arrives=0)
    process.charge(MIB + CHARGED_IN_BYTES)
    joined.listener.memory.relieve()
    assert joined.listener.recorder.evictions
    assert joined.listener.status.phase is Phase.CLOSED
    assert joined.listener.memory.used_bytes == 0
    (event,) = broken(joined.listener.take_events())
    assert event.code is StreamCode.OVERLOADED
