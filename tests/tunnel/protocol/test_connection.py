"""Dialogues of two connections, section by section of PROTOCOL.md, and one connection against any bytes at
all."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tunnel.protocol import recorded
from tests.tunnel.protocol.joined import MIB, Joined, broken, frames_of
from tests.tunnel.protocol.recorded import Recorded
from tunnel.protocol import frames, greetings
from tunnel.protocol.connection import Phase, Role
from tunnel.protocol.connection.stream_feed import HEAD_BYTES_PER_FRAME, MODEST_USERS_MAX
from tunnel.protocol.errors import (
    CloseCode,
    LocalProtocolError,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.events import GoAway
from tunnel.protocol.frames import HEADER_BYTES, FrameType
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.ledger import LEDGER_BYTES_MAX
from tunnel.protocol.memory import Memory, victims
from tunnel.protocol.session.contexts import CONTEXTS_MAX
from tunnel.protocol.session.table import LAST_STREAM_ID, LEFT_BEHIND_MAX
from tunnel.protocol.state import ENDED
from tunnel.protocol.streams import StreamState

KIB = 1024


def take_all(joined: Joined, connection: Recorded, stream: StreamState) -> bytes:
    """Everything that a stream will ever bring, taken as it comes."""
    taken = bytearray()
    while True:
        joined.flow()
        data = connection.streams.take(stream, 64 * KIB, joined.now)
        if not data:
            return bytes(taken)
        taken += data


def types_in(message: bytes) -> list[FrameType]:
    return [FrameType(frame_type) for frame_type, _, _, _ in frames_of(message)]


# --- Greeting ---


def test_nothing_but_a_greeting_may_come_first() -> None:
    for role, first in (
        (Role.LISTENER, frames.ack(0)),
        (Role.DIALER, frames.ack(0)),
        (Role.LISTENER, greetings.welcome(Welcome())),
        (Role.DIALER, greetings.hello(Hello())),
        (Role.LISTENER, frames.goaway(0, 4400, 0, 0, "")),
        (Role.LISTENER, frames.header(FrameType.HELLO, 0, 1, 2) + b"{}"),
        (Role.DIALER, frames.header(FrameType.WELCOME, 0, 1, 2) + b"{}"),
    ):
        connection = Recorded(role, now=0.0)
        with pytest.raises(RemoteProtocolError, match="before the greeting"):
            connection.receive(first, 0.0)


@pytest.mark.parametrize("role", list(Role))
def test_a_greeting_has_16_kib_at_most(role: Role) -> None:
    kind = FrameType.HELLO if role is Role.LISTENER else FrameType.WELCOME
    for size in (16 * KIB, 16 * KIB + 1):
        connection = Recorded(role, now=0.0)
        if role is Role.DIALER:
            connection.handshake.say_hello(Hello())
        message = frames.header(kind, 0, 0, size) + b"{}".ljust(size)
        if size <= 16 * KIB:
            connection.receive(message, 0.0)
            assert connection.handshake.peer_hello is not None or connection.status.phase is Phase.OPEN
        else:
            with pytest.raises(RemoteProtocolError, match="a greeting of 16385 bytes"):
                connection.receive(message, 0.0)


def test_a_second_greeting_ends_the_session() -> None:
    joined = Joined()
    with pytest.raises(RemoteProtocolError, match="a second greeting"):
        joined.listener.receive(greetings.hello(Hello()), 1.0)
    listener = Recorded(Role.LISTENER, now=0.0)
    with pytest.raises(RemoteProtocolError, match="a second greeting"):
        listener.receive(greetings.hello(Hello()) * 2, 0.0)


def test_peers_without_a_common_version_part() -> None:
    listener = Recorded(Role.LISTENER, now=0.0)
    with pytest.raises(RemoteProtocolError, match="no common version"):
        listener.receive(greetings.hello(Hello(versions=(2, 3))), 0.0)
    ((frame_type, _, _, payload),) = frames_of(listener.data_to_send(1000, 0.0))
    assert frame_type == frames.GOAWAY
    assert frames.decode_goaway(payload)[1] == CloseCode.PROTOCOL
    dialer = Recorded(Role.DIALER, now=0.0)
    with pytest.raises(RemoteProtocolError, match="chose version 2"):
        dialer.receive(greetings.welcome(Welcome(version=2)), 0.0)


def test_a_newer_dialer_that_still_speaks_version_1_is_welcome() -> None:
    listener = Recorded(Role.LISTENER, now=0.0)
    listener.receive(greetings.hello(Hello(versions=(1, 2, 3))), 0.0)
    assert listener.handshake.peer_hello == Hello(versions=(1, 2, 3))


def test_a_refused_dialer_hears_why() -> None:
    listener, dialer = Recorded(Role.LISTENER, now=0.0), Recorded(Role.DIALER, now=0.0)
    dialer.handshake.say_hello(Hello())
    listener.receive(dialer.data_to_send(1000, 0.0), 0.0)
    listener.reject(CloseCode.FORBIDDEN, "unknown cluster", 5000)
    dialer.receive(listener.data_to_send(1000, 0.0), 0.0)
    assert dialer.handshake.refusal == GoAway(0, 4403, 0, 5000, "unknown cluster")
    assert dialer.status.phase is Phase.GREETING


def test_a_dialer_says_nothing_between_its_hello_and_the_welcome() -> None:
    dialer = Recorded(Role.DIALER, now=0.0)
    dialer.handshake.say_hello(Hello())
    dialer.deadlines.ping(0.0)
    assert types_in(dialer.data_to_send(1000, 0.0)) == [FrameType.HELLO]
    assert dialer.data_to_send(1000, 0.0) == b""
    dialer.receive(greetings.welcome(Welcome()), 0.0)
    assert types_in(dialer.data_to_send(1000, 0.0)) == [FrameType.PING]


def test_each_side_keeps_to_what_the_other_can_take() -> None:
    joined = Joined(
        hello=Hello(max_frame=20 * KIB, initial_window=10 * KIB, max_streams=1),
        welcome=Welcome(initial_window=300 * KIB, max_frame=128 * KIB),
    )
    opened, accepted = joined.streams(b"h" * 50 * KIB)
    assert accepted.head == b"h" * 50 * KIB
    assert not joined.listener.streams.may_open
    with pytest.raises(LocalProtocolError, match="no more streams"):
        joined.open()
    joined.dialer.streams.send_data(accepted, bytes(500 * KIB))
    joined.flow()
    assert opened.incoming.size == 300 * KIB


@pytest.mark.parametrize(("max_frame", "carried"), [(1024 * KIB, 128 * KIB), (40 * KIB, 40 * KIB)])
def test_a_frame_carries_as_much_of_a_stream_as_it_may(max_frame: int, carried: int) -> None:
    joined = Joined(hello=Hello(max_frame=max_frame, initial_window=1024 * KIB))
    opened, _ = joined.streams()
    joined.listener.streams.send_data(opened, bytes(200 * KIB))
    message = joined.send(joined.listener, limit=256 * KIB)
    assert max(len(payload) for *_, payload in frames_of(message)) == carried


# --- Frames ---


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x00" * 11, "11 bytes at the end of a message are no frame"),
        (frames.header(0x70, 0, 0, 5) + b"1234", "a frame of 5 bytes is cut at 4"),
        (frames.header(0x70, 0, 0, 200_000), "a frame of 200000 bytes exceeds 131072"),
        (b"\x70\x00\x00\x01" + bytes(8), "reserved bytes of a header are 1"),
        (frames.header(0x70, frames.CRITICAL, 0, 0), "frame type 112 is critical and unknown"),
        (frames.header(FrameType.OPEN, 0, 0, 8) + bytes(8), "frame type 1 on stream 0"),
        (frames.header(FrameType.CONTEXT, 0, 4, 9) + bytes(9), "frame type 5 on stream 4"),
        (frames.header(FrameType.DATA, 0, 2, 1) + b"x", "DATA on stream 2, which was never opened"),
        (frames.header(FrameType.DATA, 0, 0, 0), "DATA on stream 0"),
        (frames.header(FrameType.HEAD, 0, 2, 4) + bytes(4), "HEAD on stream 2, which was never opened"),
        (frames.window(7, 1), "WINDOW on stream 7, which was never opened"),
        (frames.open_prefix(8, 1, 0, 0, 0) + frames.window(7, 1), "WINDOW on stream 7"),
        (frames.reset(9, StreamCode.CANCEL, Processed.NO, "", in_line=False), "RESET on stream 9"),
        (frames.open_prefix(3, 1, 0, 0, 0), "stream id 3 is not the peer's to open"),
        (frames.open_prefix(2**31, 1, 0, 0, 0), "stream id 2147483648 is not the peer's to open"),
        (frames.open_prefix(4, 1, 0, 0, 0) + frames.open_prefix(4, 1, 0, 0, 0), "stream id 4 after 4"),
        (frames.open_prefix(2, 1, 1, 2, 0) + b"ab", "OPEN carries 2 bytes of a head of 1"),
        (frames.head_prefix(2, 1, 2, 0) + b"ab", "HEAD carries 2 bytes of a head of 1"),
        (frames.ack(99), "99 frames acknowledged"),
        (frames.context(1, 0, b"again"), "context 1 after 1"),
        (frames.context(9, 0, b""), "context 9 is retired but not live"),
        (bytes(MIB + 1), "a message of 1048577 bytes exceeds 1048576"),
    ],
)
def test_what_breaks_the_protocol_ends_the_session_and_a_goaway_says_why(message: bytes, reason: str) -> None:
    joined = Joined()
    joined.flow()
    context = joined.dialer.add_context(1, b"token")
    joined.dialer.open(b"never sent", context.index, eof=True, now=joined.now)
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        joined.dialer.receive(message, joined.now)
    assert caught.value.close_code == CloseCode.PROTOCOL
    assert joined.dialer.status.phase is Phase.CLOSED
    ((_, _, _, payload),) = frames_of(joined.dialer.data_to_send(64 * KIB, joined.now))
    _, code, _, _, said = frames.decode_goaway(payload)
    assert code == CloseCode.PROTOCOL
    assert str(caught.value).startswith(said)
    with pytest.raises(RemoteProtocolError):
        joined.dialer.receive(b"", joined.now)


def test_a_message_may_have_a_mebibyte_and_a_frame_what_was_agreed() -> None:
    joined = Joined()
    longest = frames.header(0x70, 0, 0, 128 * KIB) + bytes(128 * KIB)
    rest = MIB - 7 * len(longest) - HEADER_BYTES
    message = longest * 7 + frames.header(0x70, 0, 0, rest) + bytes(rest)
    assert len(message) == MIB
    assert joined.dialer.receive(message, joined.now) == []


def test_unknown_frames_are_skipped_and_counted_when_they_are_sequenced() -> None:
    joined = Joined()
    joined.flow()
    counted = joined.dialer.received.count
    unknown = frames.header(0x0F, 0x7F, 12345, 3) + b"abc" + frames.header(0x70, 0, 0, 0)
    assert joined.dialer.receive(unknown, joined.now) == []
    assert joined.dialer.received.count == counted + 1


# --- Opening ---


def test_a_small_exchange_is_three_frames() -> None:
    joined = Joined()
    joined.flow()
    opened = joined.open(b"GET", eof=True)
    assert opened.head == b"GET"
    assert types_in(joined.send(joined.listener)) == [FrameType.OPEN]
    # A watch would hold it for hours.
    assert opened.head == b""
    joined.deliver(joined.dialer)
    (event,) = [event for event in joined.at_dialer if isinstance(event, recorded.StreamOpened)]
    accepted = event.stream
    assert (accepted.head, accepted.receiving) == (b"GET", ENDED)
    joined.dialer.streams.send_head(accepted, b"200", eof=False)
    joined.dialer.streams.send_data(accepted, b"body")
    joined.dialer.streams.send_data(accepted, b"", eof=True)
    # How many have come goes along.
    assert types_in(joined.send(joined.dialer)) == [FrameType.ACK, FrameType.HEAD, FrameType.DATA]
    joined.flow()
    assert opened.answer_head == b"200"
    assert take_all(joined, joined.listener, opened) == b"body"
    assert opened.receiving is ENDED
    assert joined.listener.table.count == joined.dialer.table.count == 0


def test_ids_are_given_when_the_open_is_sent_so_that_they_rise_on_the_wire() -> None:
    joined = Joined()
    first, second = joined.open(b"first"), joined.open(b"second")
    assert (first.id, second.id) == (0, 0)
    joined.listener.streams.reset(first, StreamCode.CANCEL, Processed.NO, "")
    joined.flow()
    # The one that was taken back never existed on the wire.
    assert second.id == 2
    assert [event.stream.head for event in joined.at_dialer if isinstance(event, recorded.StreamOpened)] == [
        b"second"
    ]
    joined.dialer.add_context(1, b"x")
    mine = joined.dialer.open(b"", 1, eof=True, now=joined.now)
    joined.flow()
    assert mine.id == 1


@pytest.mark.parametrize("size", [0, 1, 16 * KIB, 200 * KIB, MIB])
@pytest.mark.parametrize("eof", [True, False])
def test_heads_of_any_allowed_size_arrive_whole_in_both_directions(size: int, eof: bool) -> None:
    joined = Joined()
    head, answer = b"q" * size, b"a" * size
    opened = joined.open(head, eof=eof)
    if not eof:
        joined.listener.streams.send_data(opened, b"body")
    joined.flow()
    (event,) = [event for event in joined.at_dialer if isinstance(event, recorded.StreamOpened)]
    accepted = event.stream
    assert accepted.head == head
    joined.dialer.streams.send_head(accepted, answer, eof=eof)
    joined.flow()
    assert opened.answer_head == answer
    assert [event for event in joined.at_listener if isinstance(event, recorded.HeadReceived)] == [
        recorded.HeadReceived(opened)
    ]
    assert take_all(joined, joined.dialer, accepted) == (b"" if eof else b"body")
    assert (accepted.receiving is ENDED) == (opened.receiving is ENDED) == eof
    # The head's continuation is no byte of the stream's.
    assert (opened.bytes_sent, accepted.bytes_received) == ((0, 0) if eof else (4, 4))


def test_heads_beyond_the_limit_are_refused_by_both_sides() -> None:
    joined = Joined()
    with pytest.raises(LocalProtocolError, match="a head of 1048577 bytes exceeds 1048576"):
        joined.open(bytes(MIB + 1))
    joined.flow()
    joined.dialer.receive(frames.open_prefix(2, 1, MIB + 1, 0, 0), joined.now)
    _, (_, _, stream_id, payload) = frames_of(joined.dialer.data_to_send(1000, joined.now))
    assert (stream_id, frames.decode_reset(payload)[:2]) == (2, (StreamCode.TOO_LARGE, Processed.NO))
    joined = Joined()
    opened, accepted = joined.streams()
    with pytest.raises(LocalProtocolError, match="a head of 1048577 bytes exceeds 1048576"):
        joined.dialer.streams.send_head(accepted, bytes(MIB + 1), eof=False)
    happened = joined.listener.receive(frames.head_prefix(2, MIB + 1, 0, 0), joined.now)
    assert [(event.stream, event.code) for event in broken(happened)] == [(opened, StreamCode.TOO_LARGE)]


END = frames.header(FrameType.DATA, frames.FIN, 2, 1) + b"a"


@pytest.mark.parametrize(
    "message",
    [
        frames.open_prefix(2, 1, 10, 2, 0) + b"he" + END,
        frames.open_prefix(2, 1, 10, 2, frames.FIN) + b"he",
    ],
)
def test_an_end_within_the_head_is_the_streams_fault(message: bytes) -> None:
    joined = Joined()
    joined.flow()
    assert joined.dialer.receive(message, joined.now) == []
    (_, _, _, payload) = frames_of(joined.dialer.data_to_send(1000, joined.now))[-1]
    assert frames.decode_reset(payload)[:2] == (StreamCode.PROTOCOL, Processed.NO)
    assert joined.dialer.table.count == 0


@pytest.mark.parametrize(
    "message",
    [frames.head_prefix(2, 10, 2, 0) + b"he" + END, frames.head_prefix(2, 10, 2, frames.FIN) + b"he"],
)
def test_an_end_within_the_answers_head_is_the_streams_fault_too(message: bytes) -> None:
    joined = Joined()
    opened, _ = joined.streams()
    happened = joined.listener.receive(message, joined.now)
    assert [(event.stream, event.code, event.processed) for event in broken(happened)] == [
        (opened, StreamCode.PROTOCOL, Processed.MAYBE)
    ]
    assert joined.listener.memory.used_bytes == len(b"token")


def test_more_streams_than_agreed_are_refused_as_not_processed() -> None:
    joined = Joined(hello=Hello(max_streams=2))
    joined.flow()
    joined.listener.status.peer = Hello(max_streams=100)
    for _ in range(5):
        joined.open()
    joined.flow()
    refused = broken(joined.at_listener)
    assert [(event.code, event.processed) for event in refused] == [(StreamCode.REFUSED, Processed.NO)] * 3
    assert joined.dialer.table.count == joined.listener.table.count == 2


@pytest.mark.parametrize("how", ["ends", "reset", "taken back"])
def test_the_place_of_a_stream_that_is_over_is_free_again_at_both_ends(how: str) -> None:
    joined = Joined(hello=Hello(max_streams=1))
    for _ in range(3):
        if how == "taken back":
            joined.listener.streams.reset(joined.open(), StreamCode.CANCEL, Processed.NO, "")
            continue
        opened, accepted = joined.streams()
        assert not joined.listener.streams.may_open
        if how == "ends":
            joined.listener.streams.send_data(opened, b"", eof=True)
            joined.dialer.streams.send_data(accepted, b"", eof=True)
        else:
            joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "")
        joined.flow()
    joined.streams()
    assert joined.listener.table.opened_here == joined.dialer.table.opened_there == 1
    assert broken(joined.at_listener) == []


@pytest.mark.parametrize("listens", [True, False], ids=["reads", "reads nothing"])
@pytest.mark.parametrize("role", list(Role))
def test_who_may_open_next_to_nothing_is_refused_a_thousand_times_and_no_more(
    role: Role, listens: bool
) -> None:
    joined = Joined(hello=Hello(max_streams=1), welcome=Welcome(session_id="s", max_streams=1))
    connection = joined.listener if role is Role.LISTENER else joined.dialer
    joined.flow()
    first = joined.peer_of(connection).table.next_id

    def refuse(numbers: range) -> None:
        opens = b"".join(frames.open_prefix(first + 2 * number, 99, 0, 0, 0) for number in numbers)
        connection.receive(opens, joined.now)
        while listens and connection.data_to_send(64 * KIB, joined.now):
            pass

    refuse(range(1024))
    assert len(connection.resets.unacknowledged) == 1024
    if listens:
        # It may go on for as long as it says what it has.
        connection.receive(frames.ack(connection.sent.next_number), joined.now)
        refuse(range(1024, 2048))
    with pytest.raises(RemoteProtocolError, match="1025 RESETs are not acknowledged") as caught:
        refuse(range(2048, 2049))
    assert caught.value.close_code == CloseCode.LIMITS


def test_near_the_last_id_the_peer_is_told_to_go_elsewhere() -> None:
    joined = Joined()
    joined.listener.table.next_id = LAST_STREAM_ID - 3
    joined.open()
    joined.flow()
    assert any(isinstance(event, GoAway) for event in joined.at_listener)
    assert joined.dialer.table.count == 1
    assert not joined.listener.streams.may_open


@pytest.mark.parametrize("role", list(Role))
def test_the_last_id_is_used_and_none_behind_it(role: Role) -> None:
    joined = Joined()
    connection = joined.listener if role is Role.LISTENER else joined.dialer
    context = connection.add_context(1, b"x").index
    last = LAST_STREAM_ID - (connection.table.next_id + 1) % 2
    connection.table.next_id = last - 2
    for stream_id in (last - 2, last):
        assert connection.streams.may_open
        stream = connection.open(b"", context, eof=True, now=joined.now)
        connection.data_to_send(1000, joined.now)
        assert stream.id == stream_id
    assert not connection.streams.may_open


def test_what_the_peer_opens_until_it_hears_that_ids_are_used_up_is_served() -> None:
    joined = Joined()
    index = joined.dialer.add_context(1, b"token").index
    joined.flow()
    enough = LAST_STREAM_ID - 2**16

    def says(stream_id: int) -> list[FrameType]:
        joined.now += 1
        joined.listener.receive(frames.open_prefix(stream_id, index, 0, 0, 0), joined.now)
        message = joined.listener.data_to_send(64 * KIB, joined.now)
        return [kind for kind in types_in(message) if kind is not FrameType.ACK]

    assert says(enough) == []
    assert says(enough + 2) == [FrameType.GOAWAY]
    assert frames_of(joined.listener.goaways.frame)[0][3][:6] == LAST_STREAM_ID.to_bytes(4, "big") + (
        CloseCode.DRAINING.to_bytes(2, "big")
    )
    assert says(LAST_STREAM_ID) == []
    assert joined.listener.table.opened_there == 3


# --- Contexts ---


def test_a_context_arrives_before_the_open_that_names_it() -> None:
    joined = Joined()
    joined.open(b"early", context=joined.context)
    late = joined.listener.add_context(7, b"second token")
    stream = joined.open(context=late.index)
    assert types_in(joined.send(joined.listener)) == [
        FrameType.CONTEXT,
        FrameType.CONTEXT,
        FrameType.OPEN,
        FrameType.OPEN,
    ]
    joined.flow()
    context = joined.dialer.contexts.peers[late.index]
    assert (context.group, context.payload, context.note) == (7, b"second token", None)
    assert stream.context is late


def test_an_open_under_an_unknown_or_retired_context_is_refused_as_unauthenticated() -> None:
    joined = Joined()
    joined.flow()
    joined.dialer.receive(frames.open_prefix(2, 77, 0, 0, 0), joined.now)
    joined.dialer.receive(frames.context(1, 1, b""), joined.now)
    joined.dialer.receive(frames.open_prefix(4, 1, 0, 0, 0), joined.now)
    _, *resets = frames_of(joined.dialer.data_to_send(1000, joined.now))
    assert [stream_id for _, _, stream_id, _ in resets] == [2, 4]
    for _, _, _, payload in resets:
        assert frames.decode_reset(payload)[:2] == (StreamCode.UNAUTHENTICATED, Processed.NO)


def test_a_context_is_retired_after_the_opens_that_name_it_and_its_streams_go_on() -> None:
    joined = Joined()
    stream = joined.open()
    joined.listener.contexts.retire(joined.context)
    with pytest.raises(LocalProtocolError, match="context 1 is not live"):
        joined.open()
    joined.flow()
    assert joined.dialer.contexts.peers == {}
    assert [type(event) for event in joined.at_dialer] == [recorded.ContextAdded, recorded.StreamOpened]
    joined.listener.streams.send_data(stream, b"still here")
    joined.flow()
    received = joined.at_dialer[-1]
    assert isinstance(received, recorded.DataReceived)
    assert received.stream.context.payload == b"token"


def test_a_context_that_is_retired_before_it_has_left_is_not_said() -> None:
    joined = Joined()
    joined.flow()
    joined.at_dialer.clear()
    used = joined.listener.memory.used_bytes
    # A token is renewed again and again, for a peer that takes nothing.
    for _ in range(3):
        context = joined.listener.add_context(1, b"token")
        joined.listener.contexts.retire(context.index)
    assert not joined.listener.has_unsent
    assert joined.listener.memory.used_bytes == used
    kept = joined.listener.add_context(1, b"token")
    joined.flow()
    assert [
        event.context.index for event in joined.at_dialer if isinstance(event, recorded.ContextAdded)
    ] == [kept.index]
    # What has left is retired by a frame.
    joined.listener.contexts.retire(kept.index)
    joined.flow()
    assert kept.index not in joined.dialer.contexts.peers


def test_live_contexts_are_bounded_on_both_sides() -> None:
    joined = Joined()
    for _ in range(CONTEXTS_MAX - 1):
        joined.listener.add_context(1, b"x")
    with pytest.raises(LocalProtocolError, match="4096 contexts are live"):
        joined.listener.add_context(1, b"x")
    joined.flow()
    with pytest.raises(RemoteProtocolError, match="more than 4096") as caught:
        joined.dialer.receive(frames.context(2**20, 1, b"x"), joined.now)
    assert caught.value.close_code == CloseCode.LIMITS


def test_a_context_takes_the_memory_of_streams_and_without_any_ends_the_session() -> None:
    account = Memory(MIB)
    joined = Joined(dialer_memory=Memory(2 * MIB, parent=account))
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, bytes(60 * KIB))
    joined.flow()

    def say(*indices: int) -> None:
        for index in indices:
            message = frames.context(index, 1, bytes(8 * KIB))
            joined.at_dialer.extend(joined.dialer.receive(message, joined.now))

    account.charge(MIB - 64 * KIB)
    say(1000)
    assert [event.stream for event in broken(joined.at_dialer)] == [accepted]
    assert not account.full
    with pytest.raises(RemoteProtocolError, match="no memory is left") as caught:
        say(*range(1001, 1020))
    assert caught.value.close_code == CloseCode.LIMITS
    assert account.used_bytes < MIB + 16 * KIB


# --- Credit ---


def test_more_than_granted_costs_that_stream_alone() -> None:
    joined = Joined()
    opened, _ = joined.streams()
    other, other_there = joined.streams()
    opened.send_credit += 10 * KIB
    joined.listener.streams.send_data(opened, bytes(70 * KIB))
    joined.flow()
    assert [event.code for event in broken(joined.at_dialer)] == [StreamCode.FLOW_CONTROL]
    assert [event.code for event in broken(joined.at_listener)] == [StreamCode.FLOW_CONTROL]
    joined.listener.streams.send_data(other, b"unharmed")
    joined.flow()
    assert joined.dialer.streams.take(other_there, 100, joined.now) == b"unharmed"
    assert joined.dialer.memory.used_bytes == 5 + 4


def test_credit_that_would_overflow_costs_that_stream_alone() -> None:
    joined = Joined()
    opened, _ = joined.streams()
    joined.streams()
    most = frames.window(opened.id, 2**31 - 1 - opened.send_credit)
    assert joined.listener.receive(most, joined.now) == []
    happened = joined.listener.receive(frames.window(opened.id, 1), joined.now)
    assert [(event.stream, event.code) for event in broken(happened)] == [(opened, StreamCode.FLOW_CONTROL)]
    assert joined.listener.table.count == 1


def test_a_stalled_reader_stalls_only_itself() -> None:
    joined = Joined()
    stalled, _ = joined.streams()
    moving, moving_there = joined.streams()
    joined.listener.streams.send_data(stalled, bytes(500 * KIB))
    joined.flow()
    assert stalled.outgoing.size == 436 * KIB
    joined.listener.streams.send_data(moving, bytes(500 * KIB))
    assert len(take_all(joined, joined.dialer, moving_there)) == 500 * KIB


def test_a_piece_of_which_a_part_has_left_is_counted_whole() -> None:
    memory = Memory(10 * 1024 * KIB)
    joined = Joined(listener_memory=memory)
    opened, accepted = joined.streams()
    before = memory.used_bytes
    joined.listener.streams.send_data(opened, bytes(128 * KIB))
    joined.flow()
    assert opened.outgoing.size == 64 * KIB
    assert memory.used_bytes - before >= 128 * KIB
    assert opened.held_bytes >= 128 * KIB
    assert len(take_all(joined, joined.dialer, accepted)) == 128 * KIB
    joined.listener.streams.send_data(opened, bytes(200 * KIB))
    joined.flow()
    joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "")
    joined.flow()
    assert memory.used_bytes <= before


def test_no_window_is_sent_for_a_half_that_has_ended() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, bytes(40 * KIB))
    joined.flow()
    joined.dialer.streams.take(accepted, 40 * KIB, joined.now)
    joined.listener.streams.send_data(opened, b"", eof=True)
    joined.send(joined.listener)
    joined.deliver(joined.dialer)
    assert joined.send(joined.dialer) == b""


def test_no_window_is_sent_for_a_stream_that_was_reset() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, bytes(40 * KIB))
    joined.flow()
    joined.dialer.streams.take(accepted, 40 * KIB, joined.now)
    joined.dialer.streams.reset(accepted, StreamCode.CANCEL, Processed.MAYBE, "")
    assert types_in(joined.send(joined.dialer)) == [FrameType.RESET]


# --- The end of a stream ---


def test_an_immediate_reset_drops_what_is_queued_and_what_was_received() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, b"received but not taken")
    joined.flow()
    joined.dialer.streams.send_data(accepted, b"queued")
    joined.dialer.streams.reset(accepted, StreamCode.REVOKED, Processed.YES, "gone")
    joined.flow()
    assert broken(joined.at_listener) == [
        recorded.StreamBroken(opened, StreamCode.REVOKED, Processed.YES, "gone", in_line=False)
    ]
    assert joined.listener.streams.take(opened, 100, joined.now) == b""


@pytest.mark.parametrize("size", [0, 200 * KIB])
def test_a_reset_in_line_follows_the_last_bytes_and_what_was_received_is_kept(size: int) -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, bytes(size))
    joined.dialer.streams.reset(accepted, StreamCode.UPSTREAM_RESET, Processed.YES, "cut", in_line=True)
    joined.flow()
    assert bool(broken(joined.at_listener)) == (size == 0)
    assert len(take_all(joined, joined.listener, opened)) == size
    assert broken(joined.at_listener) == [
        recorded.StreamBroken(opened, StreamCode.UPSTREAM_RESET, Processed.YES, "cut", in_line=True)
    ]
    assert opened.receiving is not ENDED
    assert joined.listener.table.count == joined.dialer.table.count == 0


@pytest.mark.parametrize(
    "late", [frames.header(FrameType.DATA, 0, 2, 1) + b"x", frames.head_prefix(2, 1, 1, 0) + b"x"]
)
def test_what_is_late_is_dropped_until_the_peer_has_the_reset_and_is_a_breach_afterwards(late: bytes) -> None:
    joined = Joined()
    opened, _ = joined.streams()
    joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "")
    joined.send(joined.listener)
    used = joined.listener.memory.used_bytes
    reset_number = joined.listener.sent.next_number - 1
    for word in (b"", frames.ack(reset_number)):
        joined.listener.receive(word + late, joined.now)
        assert joined.listener.memory.used_bytes == used
    with pytest.raises(RemoteProtocolError, match="which is over"):
        joined.listener.receive(frames.ack(reset_number + 1) + late, joined.now)


def test_credit_and_reset_for_a_stream_that_is_over_are_ignored() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, b"", eof=True)
    joined.dialer.streams.send_data(accepted, b"", eof=True)
    joined.flow()
    assert joined.listener.table.count == joined.dialer.table.count == 0
    for frame in (
        frames.window(opened.id, 1),
        frames.reset(opened.id, StreamCode.CANCEL, Processed.NO, "", in_line=False),
    ):
        assert joined.dialer.receive(frame, joined.now) == []
        assert joined.listener.receive(frame, joined.now) == []


def test_no_more_resets_than_65536_are_left_unacknowledged() -> None:
    joined = Joined()
    resets = joined.listener.resets.unacknowledged
    # The listener's own streams, as after as many calls that were cancelled.
    resets.update(dict.fromkeys(range(10**6, 10**6 + 2 * 65_535, 2), 2**64))
    for most in (65_536, 65_537):
        opened, _ = joined.streams()
        joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "")
        assert len(resets) == most
        if most == 65_536:
            joined.listener.receive(b"", joined.now)
    with pytest.raises(RemoteProtocolError, match="65537 RESETs are not acknowledged") as caught:
        joined.listener.receive(b"", joined.now)
    assert caught.value.close_code == CloseCode.LIMITS


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (frames.header(FrameType.DATA, 0, 2, 1) + b"x", StreamCode.STREAM_CLOSED),
        (frames.head_prefix(2, 0, 0, 0), StreamCode.STREAM_CLOSED),
    ],
)
def test_bytes_after_the_end_are_the_streams_fault(frame: bytes, code: StreamCode) -> None:
    joined = Joined()
    opened, _ = joined.streams()
    joined.listener.streams.send_data(opened, b"", eof=True)
    joined.flow()
    happened = joined.dialer.receive(frame, joined.now)
    assert [event.code for event in broken(happened)] == [code]
    assert joined.dialer.memory.used_bytes == len(b"token")


@pytest.mark.parametrize("head_first", [True, False])
def test_a_head_after_bytes_or_a_head_is_the_streams_fault(head_first: bool) -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    if head_first:
        joined.dialer.streams.send_head(accepted, b"head", eof=False)
    else:
        joined.dialer.streams.send_data(accepted, b"server first")
    joined.flow()
    assert joined.listener.streams.take(opened, 100, joined.now) == (b"" if head_first else b"server first")
    happened = joined.listener.receive(frames.head_prefix(opened.id, 0, 0, 0), joined.now)
    assert [event.code for event in broken(happened)] == [StreamCode.PROTOCOL]
    with pytest.raises(LocalProtocolError):
        joined.dialer.streams.send_head(accepted, b"", eof=False)


def test_what_the_owner_may_not_do_raises_and_changes_nothing() -> None:
    joined = Joined()
    opened, _ = joined.streams()
    with pytest.raises(LocalProtocolError, match="the opener's head is in its OPEN"):
        joined.listener.streams.send_head(opened, b"", eof=False)
    joined.listener.streams.send_data(opened, b"", eof=True)
    with pytest.raises(LocalProtocolError, match="DATA on a half that is ended"):
        joined.listener.streams.send_data(opened, b"x")
    for payload in (b"", bytes(8 * KIB + 1)):
        with pytest.raises(LocalProtocolError, match="a context of"):
            joined.listener.add_context(1, payload)
    for group in (-1, 2**32):
        with pytest.raises(LocalProtocolError, match="is not a u32"):
            joined.listener.add_context(group, b"x")
    with pytest.raises(LocalProtocolError, match="context 2 is not live"):
        joined.open(context=2)
    # And what it just may.
    for group, payload in ((0, b"x"), (2**32 - 1, bytes(8 * KIB))):
        joined.listener.add_context(group, payload)
    joined.flow()
    assert [(context.group, context.payload) for context in joined.dialer.contexts.peers.values()] == [
        (1, b"token"),
        (0, b"x"),
        (2**32 - 1, bytes(8 * KIB)),
    ]


def test_a_stream_that_the_peer_broke_swallows_what_its_owner_still_says() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "")
    joined.flow()
    joined.dialer.streams.send_head(accepted, b"head", eof=False, data=b"data")
    joined.dialer.streams.send_data(accepted, b"data", eof=True)
    joined.dialer.streams.send_data(accepted, b"", eof=True)
    joined.dialer.streams.reset(accepted, StreamCode.CANCEL, Processed.MAYBE, "", in_line=True)
    assert not joined.dialer.wants_to_send
    assert joined.dialer.memory.used_bytes == len(b"token")


@pytest.mark.parametrize("queued", [0, 500 * KIB])
@pytest.mark.parametrize("ended", [True, False])
def test_both_sides_may_reset_at_the_same_moment(queued: int, ended: bool) -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    if ended:
        joined.listener.streams.send_data(opened, b"", eof=True)
        joined.flow()
    joined.dialer.streams.send_data(accepted, bytes(queued))
    joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "")
    joined.dialer.streams.reset(accepted, StreamCode.CANCEL, Processed.MAYBE, "", in_line=True)
    joined.flow()
    assert joined.listener.table.count == joined.dialer.table.count == 0
    # The owner has reset the stream itself, so nothing is reported to it.
    assert broken(joined.at_listener) == broken(joined.at_dialer) == []


def test_two_sides_that_reset_in_line_with_more_queued_than_credit_do_not_wait_for_each_other() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, bytes(500 * KIB))
    joined.dialer.streams.send_data(accepted, bytes(500 * KIB))
    joined.flow()
    joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "", in_line=True)
    joined.dialer.streams.reset(accepted, StreamCode.CANCEL, Processed.MAYBE, "", in_line=True)
    joined.flow()
    assert joined.listener.table.count == joined.dialer.table.count == 0
    assert joined.listener.memory.used_bytes == joined.dialer.memory.used_bytes == len(b"token")


def test_more_than_granted_costs_a_stream_whose_reset_waits_its_place_in_line() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, bytes(500 * KIB))
    joined.flow()
    joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.MAYBE, "", in_line=True)
    joined.flow()
    assert joined.listener.table.count == 1
    accepted.send_credit += 10 * KIB
    joined.dialer.streams.send_data(accepted, bytes(500 * KIB))
    joined.send(joined.dialer, 80 * KIB)
    joined.flow()
    # It swallows what it granted, and says the rest at once.
    assert [event.code for event in broken(joined.at_dialer)] == [StreamCode.FLOW_CONTROL]
    assert joined.listener.table.count == joined.dialer.table.count == 0


@pytest.mark.parametrize("by_peer", [False, True])
def test_streams_that_were_taken_back_do_not_pile_up_behind_a_full_ledger(by_peer: bool) -> None:
    joined = Joined()
    waiting, answering = joined.streams()
    sender, stream = (joined.dialer, answering) if by_peer else (joined.listener, waiting)
    sender.sent.limit_bytes = 0
    # The stream at the front keeps the ring from looking at the others.
    sender.streams.send_data(stream, b"x")
    for _ in range(100):
        if by_peer:
            opened, answering = joined.streams()
            joined.dialer.streams.send_head(answering, b"answer", eof=True)
        else:
            opened = joined.open()
        joined.listener.streams.reset(opened, StreamCode.CANCEL, Processed.NO, "")
        joined.flow()
        assert len(stream.context.share.flows) <= 2 * stream.context.share.users + LEFT_BEHIND_MAX + 3
    assert sender.table.count == 1


def test_what_is_held_up_by_credit_goes_on_after_a_sweep() -> None:
    joined = Joined(hello=Hello(initial_window=KIB))
    held_up, reader = joined.streams()
    waiting = joined.streams()[0]
    joined.listener.streams.send_data(held_up, bytes(2 * KIB))
    joined.flow()
    joined.listener.streams.send_data(waiting, b"x")
    held_up.context.share.flows.sweep()
    assert held_up.context.share.flows.turn() is waiting
    joined.dialer.streams.take(reader, KIB, joined.now)
    joined.flow()
    assert reader.incoming.size == KIB
    assert joined.listener.table.count == 2


# --- Sequence numbers ---


def test_a_full_ledger_stops_data_but_not_control_and_an_acknowledgement_lets_it_go_on() -> None:
    joined = Joined(hello=Hello(initial_window=4 * MIB))
    streams = [joined.streams() for _ in range(3)]
    for opened, _ in streams:
        joined.listener.streams.send_data(opened, bytes(4 * MIB))
    sent = 0
    while message := joined.send(joined.listener):
        sent += len(message)
    assert LEDGER_BYTES_MAX <= sent < LEDGER_BYTES_MAX + 64 * KIB
    assert joined.listener.sent.unacknowledged_bytes >= LEDGER_BYTES_MAX
    assert not joined.listener.wants_to_send
    joined.listener.streams.reset(streams[0][0], StreamCode.CANCEL, Processed.MAYBE, "")
    assert types_in(joined.send(joined.listener)) == [FrameType.RESET]
    joined.flow()
    assert sum(accepted.incoming.size for _, accepted in streams[1:]) == 8 * MIB


def test_a_peer_that_never_acknowledges_is_given_up_only_when_the_reserve_is_used_up() -> None:
    joined = Joined()
    joined.listener.sent.limit_bytes = 0
    said = 0
    while joined.listener.status.phase is not Phase.CLOSED:
        context = joined.listener.add_context(1, b"x" * 8000)
        said += len(joined.listener.data_to_send(64 * KIB, joined.now))
        if joined.listener.status.phase is not Phase.CLOSED:
            joined.listener.contexts.retire(context.index)
        assert said < 2 * MIB
    assert said > MIB
    assert joined.listener.status.failure is not None
    assert joined.listener.status.failure.close_code == CloseCode.LIMITS


def test_an_acknowledgement_is_sent_by_itself_after_a_second_and_rides_on_a_ping() -> None:
    joined = Joined()
    joined.listener.deadlines.tick(joined.now)
    joined.dialer.deadlines.tick(joined.now)
    joined.flow()
    joined.open()
    joined.flow()
    assert joined.listener.sent.unacknowledged_bytes > 0
    assert joined.dialer.deadlines.next() == pytest.approx(joined.now + 1)
    joined.now += 1
    joined.dialer.deadlines.tick(joined.now)
    # While it waits for the transport it is no reason to be called again.
    assert joined.dialer.deadlines.next() > joined.now + 1
    assert types_in(joined.send(joined.dialer)) == [FrameType.ACK]
    joined.flow()
    assert joined.listener.sent.unacknowledged_bytes == 0
    joined.open()
    joined.flow()
    joined.listener.deadlines.ping(joined.now)
    joined.flow()
    assert joined.listener.sent.unacknowledged_bytes == 0


def test_an_acknowledgement_goes_along_with_what_is_sent_but_not_with_everything() -> None:
    joined = Joined()
    joined.flow()
    for wait_s, along in [
        (0.0, True),
        (0.02, False),
        (0.02, False),
        (0.02, True),
        (0.04, False),
        (9.0, True),
    ]:
        joined.now += wait_s
        opened = joined.open(eof=True)
        joined.send(joined.listener)
        joined.deliver(joined.dialer)
        accepted = joined.dialer.table.by_id[opened.id]
        joined.dialer.streams.send_head(accepted, b"200", eof=True)
        kinds = types_in(joined.send(joined.dialer))
        assert kinds == [*([FrameType.ACK] if along else []), FrameType.HEAD]
        joined.deliver(joined.listener)
        assert (joined.listener.sent.unacknowledged_bytes == 0) == along
    # With nothing to acknowledge there is none to go along.
    joined.now += 1
    joined.dialer.add_context(1, b"x")
    assert types_in(joined.send(joined.dialer)) == [FrameType.CONTEXT]


def test_an_acknowledgement_does_not_go_along_with_nothing() -> None:
    joined = Joined(hello=Hello(initial_window=4 * MIB))
    streams = [joined.streams() for _ in range(3)]
    for opened, _ in streams:
        joined.listener.streams.send_data(opened, bytes(4 * MIB))
    while joined.send(joined.listener):
        pass
    joined.dialer.streams.send_head(streams[0][1], b"200", eof=False)
    joined.send(joined.dialer)
    joined.deliver(joined.listener)
    # It would do so now, but the ledger is full, and no writer is woken to send it.
    joined.now += 0.5
    assert joined.listener.has_unsent
    assert not joined.listener.wants_to_send
    assert joined.send(joined.listener) == b""


def test_a_session_that_is_over_has_nothing_to_send_behind_its_goaway() -> None:
    joined = Joined()
    joined.flow()
    joined.now += 1
    joined.open()
    joined.send(joined.listener)
    joined.deliver(joined.dialer)
    assert joined.dialer.received.due_at is not None
    joined.dialer.go_away(CloseCode.NORMAL, 0, 0, "over")
    joined.dialer.close(StreamCode.DETACH_EXPIRED, "over")
    assert types_in(joined.send(joined.dialer)) == [FrameType.GOAWAY]
    assert not joined.dialer.wants_to_send
    assert not joined.dialer.has_unsent


# --- Scheduling ---


def test_control_goes_before_what_waits() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.listener.streams.send_data(opened, bytes(64 * KIB))
    joined.dialer.streams.send_data(accepted, bytes(40 * KIB))
    joined.send(joined.dialer)
    joined.deliver(joined.listener)
    joined.listener.streams.take(opened, 40 * KIB, joined.now)
    joined.listener.deadlines.ping(joined.now)
    joined.listener.add_context(2, b"x")
    joined.listener.go_away(CloseCode.DRAINING, 0, 0, "")
    message = joined.send(joined.listener, 16 * KIB)
    assert types_in(message) == [
        FrameType.PING,
        FrameType.GOAWAY,
        FrameType.CONTEXT,
        FrameType.WINDOW,
        FrameType.DATA,
    ]
    assert len(message) == 16 * KIB


def test_an_owner_that_waits_for_room_hears_of_it_when_64_kib_are_left() -> None:
    joined = Joined(hello=Hello(initial_window=MIB))
    opened, _ = joined.streams()
    joined.listener.streams.send_data(opened, bytes(100 * KIB))
    opened.drain_wanted = True
    told = []
    opened.send_credit = 0
    for credit in (36 * KIB - 1, 1, 1, 10 * KIB):
        joined.listener.receive(frames.window(opened.id, credit), joined.now)
        joined.send(joined.listener)
        told.append(joined.at_listener.count(recorded.SendQueueDrained(opened)))
    assert told == [0, 1, 1, 1]


def test_a_keystroke_goes_before_bulk_and_data_frames_stay_within_the_message() -> None:
    joined = Joined(hello=Hello(initial_window=4 * MIB))
    bulk = [joined.streams()[0] for _ in range(5)]
    quiet, _ = joined.streams()
    for stream in bulk:
        joined.listener.streams.send_data(stream, bytes(MIB))
    for _ in range(10):
        assert len(joined.send(joined.listener, 16 * KIB)) <= 16 * KIB + 256
    joined.listener.streams.send_data(quiet, b"k")
    sent = frames_of(joined.send(joined.listener, 64 * KIB))
    assert quiet.id in [stream_id for _, _, stream_id, _ in sent[:2]]


def test_a_stream_that_was_held_up_by_credit_does_not_pass_those_that_queue() -> None:
    joined = Joined()
    held_up, _ = joined.streams()
    bulk, _ = joined.streams()
    bulk.send_credit = 4 * MIB
    joined.listener.streams.send_data(held_up, bytes(65 * KIB))
    joined.listener.streams.send_data(bulk, bytes(4 * MIB))
    while held_up.send_credit:
        joined.send(joined.listener)
    for _ in range(2):
        joined.send(joined.listener, 16 * KIB)
    joined.listener.receive(frames.window(held_up.id, 10 * KIB), joined.now)
    sent = [
        stream_id for kind, _, stream_id, _ in frames_of(joined.send(joined.listener)) if kind == frames.DATA
    ]
    assert sent[:2] == [bulk.id, held_up.id]


@pytest.mark.parametrize("small", [1, 16 * KIB - 1])
def test_what_is_small_does_not_wait_for_bulk_that_is_behind_it(small: int) -> None:
    joined = Joined(hello=Hello(initial_window=4 * MIB))
    bulk, _ = joined.streams()
    other, _ = joined.streams()
    quiet = [joined.streams()[0] for _ in range(3)]
    for stream in (bulk, other):
        joined.listener.streams.send_data(stream, bytes(MIB))

    def next_message(*asked: StreamState) -> set[int]:
        for stream in asked:
            joined.listener.streams.send_data(stream, bytes(small))
        message = joined.send(joined.listener, 256 * KIB)
        joined.deliver(joined.dialer)
        joined.send(joined.dialer)
        joined.deliver(joined.listener)
        return {stream_id for _, _, stream_id, _ in frames_of(message)}

    large = {bulk.id, other.id}
    assert next_message() == large
    assert next_message(*quiet) == {stream.id for stream in quiet}
    assert next_message() == large
    # However much of it comes, of two messages one has bulk.
    had_bulk = []
    for _ in range(6):
        joined.open(bytes(small))
        had_bulk.append(bool(next_message() & large))
    assert had_bulk == [False, True] * 3


def test_what_ends_a_message_early_is_neither_bulk_alone_nor_what_has_a_quantum() -> None:
    joined = Joined(hello=Hello(initial_window=4 * MIB))
    streams = [joined.streams()[0] for _ in range(4)]
    for stream, quanta in zip(streams, (1, 3, 1, 3), strict=True):
        joined.listener.streams.send_data(stream, bytes(quanta * 16 * KIB))
    sent = frames_of(joined.send(joined.listener, 256 * KIB))
    assert [stream_id for _, _, stream_id, _ in sent] == [stream.id for stream in streams]


def test_groups_share_the_link_whatever_the_number_of_their_streams() -> None:
    joined = Joined(hello=Hello(initial_window=4 * MIB))
    other = joined.listener.add_context(2, b"other agent").index
    many = [joined.open(context=joined.context) for _ in range(20)]
    single = joined.open(context=other)
    joined.flow()
    for stream in (*many, single):
        joined.listener.streams.send_data(stream, bytes(2 * MIB))
    for _ in range(32):
        joined.send(joined.listener, 64 * KIB)
    assert single.bytes_sent == pytest.approx(MIB, rel=0.05)
    assert sum(stream.bytes_sent for stream in many) == pytest.approx(MIB, rel=0.05)


def test_a_turn_is_a_quarter_of_the_message_and_each_has_the_same_share() -> None:
    joined = Joined(hello=Hello(initial_window=4 * MIB))
    bulk = [joined.streams()[0] for _ in range(5)]
    for stream in bulk:
        joined.listener.streams.send_data(stream, bytes(4 * MIB))
    for message_kib, turn_kib in ((16, 16), (64, 16), (128, 32), (256, 64)):
        limit = message_kib * KIB + 256
        before = [stream.bytes_sent for stream in bulk]
        sizes = []
        for _ in range(40):
            sizes += [len(payload) for _, _, _, payload in frames_of(joined.send(joined.listener, limit))]
            joined.deliver(joined.dialer)
            joined.send(joined.dialer)
            joined.deliver(joined.listener)
        assert max(sizes) <= turn_kib * KIB
        assert sizes.count(turn_kib * KIB) > len(sizes) // 2
        shares = [stream.bytes_sent - sent for stream, sent in zip(bulk, before, strict=True)]
        assert max(shares) - min(shares) <= 2 * turn_kib * KIB


def test_a_stream_that_fills_its_message_to_the_last_byte_leaves_nothing_to_ask_for() -> None:
    joined = Joined()
    opened, _ = joined.streams()
    joined.listener.streams.send_data(opened, bytes(4 * KIB))
    limit = HEADER_BYTES + 4 * KIB
    assert len(joined.listener.data_to_send(limit, joined.now)) == limit
    assert not joined.listener.has_unsent


# --- Memory ---


def test_bytes_of_a_message_that_are_not_kept_are_not_charged() -> None:
    joined = Joined()
    _, accepted = joined.streams()
    memory = joined.dialer.memory
    before = memory.used_bytes
    unknown = frames.header(0x0F, 0, 0, KIB) + bytes(KIB)
    kept = frames.header(FrameType.DATA, 0, accepted.id, 5) + b"bytes"
    joined.dialer.receive(unknown + kept, joined.now)
    assert memory.used_bytes == before + len(b"bytes")
    with pytest.raises(RemoteProtocolError):
        joined.dialer.receive(kept + frames.header(0x0F, frames.CRITICAL, 0, 0), joined.now)
    assert memory.used_bytes == before + 2 * len(b"bytes")


def test_what_is_left_of_a_message_is_taken_apart_like_the_next_one() -> None:
    joined = Joined()
    _, accepted = joined.streams()
    connection, count = joined.dialer, joined.dialer.received.count
    before = connection.memory.used_bytes
    message = b"".join(frames.header(FrameType.DATA, 0, accepted.id, 1) + b"%d" % n for n in range(5))
    connection.receive(message, joined.now, 2)
    for held in (2, 4):
        # Between two calls nothing is charged but what is kept, and the peer may be told of just that.
        assert connection.memory.used_bytes == before + held
        assert connection.received.count == count + held
        assert len(connection.feed.unread) == len(message) - 13 * held
        assert connection.feed.frames_taken == 2
        connection.receive(connection.feed.unread, joined.now, 2)
    assert connection.feed.unread == b""
    assert connection.streams.take(accepted, 10, joined.now) == b"01234"


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_long_head_that_becomes_whole_is_not_one_of_many_at_once(in_parts: bool) -> None:
    joined = Joined()
    streams = [joined.streams()[0] for _ in range(2)]
    connection, size = joined.listener, 100 * HEAD_BYTES_PER_FRAME
    part = size - in_parts
    said = [frames.head_prefix(stream.id, size, part, 0) + bytes(part) for stream in streams]
    if in_parts:
        connection.receive(b"".join(said), joined.now)
        said = [frames.header(FrameType.DATA, 0, stream.id, 1) + b"x" for stream in streams]
    connection.receive(b"".join(said), joined.now, 2)
    assert connection.feed.frames_taken == 1 + 100
    assert connection.feed.unread == said[1]


def test_no_more_is_left_of_a_message_once_the_session_is_over() -> None:
    joined = Joined()
    unknown = frames.header(0x7F, 0, 0, 0)
    joined.dialer.receive(unknown * 3, joined.now, 2)
    with pytest.raises(RemoteProtocolError, match="critical"):
        joined.dialer.receive(frames.header(0x7F, frames.CRITICAL, 0, 0) * 3, joined.now, 2)
    assert joined.dialer.feed.unread == b""
    joined.listener.receive(unknown * 3, joined.now, 2)
    joined.listener.close(StreamCode.CANCEL, "")
    assert joined.listener.receive(joined.listener.feed.unread, joined.now, 2) == []
    assert joined.listener.feed.unread == b""


def test_who_has_many_streams_is_refused_another_when_memory_is_short_and_others_are_not() -> None:
    memory = Memory(256 * KIB)
    joined = Joined(dialer_memory=memory)
    held = [joined.streams() for _ in range(MODEST_USERS_MAX)]
    for opened, _ in held[:3]:
        joined.listener.streams.send_data(opened, bytes(64 * KIB))
    joined.flow()
    assert memory.used_bytes > 192 * KIB
    joined.open()
    joined.flow()
    assert [(event.code, event.reason) for event in broken(joined.at_listener)] == [
        (StreamCode.REFUSED, "memory is short")
    ]
    joined.at_listener.clear()
    modest = joined.open(context=joined.listener.add_context(2, b"another agent").index)
    joined.listener.streams.send_data(modest, bytes(64 * KIB))
    joined.flow()
    # What it brought was more than there was room for, and one of those that hold the most has gone for it.
    assert [event.stream for event in broken(joined.at_listener)] == [held[0][0]]


@pytest.mark.parametrize(("used_mib", "size_kib"), [(0, 256), (50, 128), (76, 64)])
def test_a_window_grows_stays_or_shrinks_by_what_memory_is_left(used_mib: int, size_kib: int) -> None:
    joined = Joined(dialer_memory=Memory(100 * MIB))
    opened, accepted = joined.streams()
    for size, used in ((64 * KIB, 0), (128 * KIB, used_mib * MIB)):
        assert accepted.window.size == size
        joined.listener.streams.send_data(opened, bytes(size))
        joined.flow()
        joined.dialer.memory.charge(used)
        assert len(take_all(joined, joined.dialer, accepted)) == size
    assert accepted.window.size == size_kib * KIB


@pytest.mark.parametrize("moves", ["receives", "takes", "sends"])
def test_a_stream_that_moves_is_not_the_first_to_go(moves: str) -> None:
    joined = Joined()
    pairs = [joined.streams() for _ in range(2)]
    for opened, _ in pairs:
        joined.now += 1
        joined.listener.streams.send_data(opened, bytes(10 * KIB))
        joined.flow()
    joined.now += 1
    (opened, moving), (_, stuck) = pairs
    match moves:
        case "receives":
            joined.listener.streams.send_data(opened, b"x")
        case "takes":
            joined.dialer.streams.take(moving, 10, joined.now)
        case "sends":
            joined.dialer.streams.send_data(moving, b"x")
    joined.flow()
    (evict,) = victims([joined.dialer.holdings], 1)
    evict()
    assert [event.stream for event in broken(joined.dialer.take_events())] == [stuck]


def test_what_is_evicted_before_it_was_sent_was_surely_not_processed() -> None:
    joined = Joined()
    sent, _ = joined.streams()
    unsent = joined.open()
    joined.listener.holdings.evict(unsent)
    joined.listener.holdings.evict(sent)
    assert [(event.stream, event.processed) for event in broken(joined.listener.take_events())] == [
        (unsent, Processed.NO),
        (sent, Processed.MAYBE),
    ]
    # Of what never was on the wire nothing is said there.
    assert types_in(joined.send(joined.listener)) == [FrameType.RESET]


def test_at_the_limit_the_largest_holder_goes_and_everything_is_given_back() -> None:
    memory = Memory(256 * KIB)
    joined = Joined(dialer_memory=memory)
    *held, last = [joined.streams() for _ in range(5)]
    # The longest unmoved is not the oldest.
    held.insert(0, last)
    for opened, _ in held:
        joined.now += 1
        joined.listener.streams.send_data(opened, bytes(52 * KIB))
        joined.flow()
    assert joined.dialer.recorder.evictions
    lost = broken(joined.at_dialer)
    assert [(event.stream, event.code) for event in lost] == [(held[0][1], StreamCode.OVERLOADED)]
    assert [event.code for event in broken(joined.at_listener)] == [StreamCode.OVERLOADED]
    for connection, side in ((joined.listener, 0), (joined.dialer, 1)):
        for pair in held[1:]:
            connection.streams.reset(pair[side], StreamCode.CANCEL, Processed.MAYBE, "")
    joined.flow()
    assert memory.used_bytes == len(b"token")


def test_bytes_left_by_a_stream_that_ended_count_until_they_are_taken() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, b"left over")
    joined.dialer.streams.send_data(accepted, b"", eof=True)
    joined.listener.streams.send_data(opened, b"", eof=True)
    joined.flow()
    assert joined.listener.table.count == 0
    assert joined.listener.memory.used_bytes == len(b"token") + len(b"head") + len(b"left over")
    assert list(joined.listener.holdings.holders()) == [opened]
    assert joined.listener.streams.take(opened, 100, joined.now) == b"left over"
    assert joined.listener.memory.used_bytes == len(b"token")
    assert list(joined.listener.holdings.holders()) == []


def test_a_stream_that_ended_can_be_evicted_while_it_holds_bytes() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, b"left over")
    joined.dialer.streams.send_data(accepted, b"", eof=True)
    joined.listener.streams.send_data(opened, b"", eof=True)
    joined.flow()
    joined.listener.holdings.evict(opened)
    assert [event.code for event in broken(joined.listener.take_events())] == [StreamCode.OVERLOADED]
    assert joined.listener.memory.used_bytes == len(b"token")


def test_bytes_of_a_lost_session_that_are_never_taken_can_still_be_evicted() -> None:
    account = Memory(50 * KIB)
    joined = Joined(listener_memory=account)
    opened, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, bytes(40 * KIB))
    joined.flow()
    joined.listener.close(StreamCode.DETACH_EXPIRED, "tunnel lost")
    joined.listener.take_events()
    # Another session needs the room.
    account.charge(10 * KIB)
    account.relieve()
    assert [(event.stream, event.code) for event in broken(joined.listener.take_events())] == [
        (opened, StreamCode.OVERLOADED)
    ]
    assert account.used_bytes == 10 * KIB
    account.charge(40 * KIB)
    account.relieve()
    assert joined.listener.take_events() == []
    assert not account._evictors


# --- Liveness ---


def test_who_reads_nothing_is_owed_the_answers_to_its_last_pings_only() -> None:
    joined = Joined()
    joined.flow()
    for number in range(1000):
        joined.now += 0.11
        joined.listener.receive(frames.ping(number, 0, 0, answer=False), joined.now)
    message = joined.listener.data_to_send(64 * KIB, joined.now)
    pongs = [payload for kind, flags, _, payload in frames_of(message) if flags & frames.ACK_FLAG]
    assert [frames.decode_ping(payload)[0] for payload in pongs] == list(range(984, 1000))


def test_the_round_trip_is_measured_by_pings_which_tell_the_clock_of_their_sender() -> None:
    joined = Joined()
    joined.dialer.status.wall_offset_s = 1000.0
    joined.listener.status.wall_offset_s = 1007.5
    joined.dialer.deadlines.ping(joined.now)
    joined.send(joined.dialer)
    joined.now += 0.02
    joined.deliver(joined.listener)
    message = joined.listener.data_to_send(64 * KIB, joined.now)
    answers = [payload for kind, _, _, payload in frames_of(message) if kind == frames.PING]
    assert [frames.decode_ping(answer)[2] for answer in answers] == [round((joined.now + 1007.5) * 1000)]
    joined.now += 0.02
    joined.dialer.receive(message, joined.now)
    assert joined.dialer.round_trips.least_s == pytest.approx(0.04)


@pytest.mark.parametrize("beside", ["nothing", "data", "an answer"])
def test_a_ping_that_shares_its_message_measures_the_queue_as_well(beside: str) -> None:
    joined = Joined()
    opened, _ = joined.streams()
    for took_s in (0.1, 0.05):
        joined.now += 1
        joined.listener.deadlines.ping(joined.now)
        if took_s < 0.1:
            if beside == "data":
                joined.listener.streams.send_data(opened, b"x")
            elif beside == "an answer":
                joined.listener.receive(frames.ping(1, 0, 0, answer=False), joined.now)
        joined.send(joined.listener)
        joined.now += took_s
        joined.flow()
    assert joined.listener.round_trips.least_s == pytest.approx(0.05 if beside == "nothing" else 0.1)


def test_a_ping_of_the_peers_is_no_answer_and_an_unexpected_answer_is_ignored() -> None:
    joined = Joined()
    joined.dialer.deadlines.ping(joined.now)
    joined.send(joined.dialer)
    for answer, number in ((False, 1), (True, 99)):
        message = frames.ping(number, 0, 12345, answer=answer)
        assert joined.dialer.receive(message, joined.now) == []
        assert joined.dialer.round_trips.least_s is None


def test_a_flood_of_pings_is_beyond_the_limits() -> None:
    joined = Joined()
    flood = b"".join(frames.ping(n, 0, 0, answer=False) for n in range(11))
    with pytest.raises(RemoteProtocolError, match="more than 10 PINGs a second") as caught:
        joined.listener.receive(flood, joined.now)
    assert caught.value.close_code == CloseCode.LIMITS


def test_pings_do_not_gather_on_a_link_that_takes_nothing_but_brings_something() -> None:
    joined = Joined()
    joined.streams()
    for _ in range(20):
        joined.now += 6.0
        joined.dialer.receive(b"", joined.now)
        joined.dialer.deadlines.tick(joined.now)
        assert joined.dialer.liveness.dead_at == joined.now + 10.0
    # The listener would end the session over more than ten of them.
    assert types_in(joined.send(joined.dialer)) == [FrameType.PING]
    joined.flow()
    assert joined.listener.status.failure is None


# --- The end of the session ---


def test_after_goaway_new_streams_are_refused_and_old_ones_go_on() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    crossing = joined.open()
    joined.dialer.go_away(CloseCode.DRAINING, 60_000, 1000, "restart")
    joined.send(joined.listener)
    joined.flow()
    assert [(event.stream, event.code, event.processed) for event in broken(joined.at_listener)] == [
        (crossing, StreamCode.REFUSED, Processed.NO)
    ]
    assert GoAway(opened.id, 4503, 60_000, 1000, "restart") in joined.at_listener
    # Also when it is said again: what was refused was not served.
    joined.dialer.go_away(CloseCode.NORMAL, 0, 1000, "over")
    joined.flow()
    assert joined.at_listener[-1] == GoAway(opened.id, 1000, 0, 1000, "over")
    with pytest.raises(LocalProtocolError):
        joined.open()
    joined.listener.streams.send_data(opened, b"goes on")
    joined.flow()
    assert joined.dialer.streams.take(accepted, 100, joined.now) == b"goes on"


def test_the_goaway_of_the_end_takes_no_request_for_patience_back() -> None:
    joined = Joined()
    joined.listener.go_away(CloseCode.DRAINING, 60_000, 90_000, "restart")
    joined.flow()
    joined.listener.go_away(CloseCode.NORMAL, 0, 0, "closed here")
    joined.flow()
    assert joined.at_dialer[-1] == GoAway(0, 1000, 0, 90_000, "closed here")


def test_opens_that_were_not_sent_when_goaway_came_are_refused_here() -> None:
    joined = Joined()
    joined.flow()
    joined.dialer.go_away(CloseCode.DRAINING, 0, 0, "")
    joined.send(joined.dialer)
    waiting = joined.open()
    joined.deliver(joined.listener)
    assert [(event.stream, event.code, event.processed) for event in broken(joined.at_listener)] == [
        (waiting, StreamCode.REFUSED, Processed.NO)
    ]


def test_a_lost_transport_breaks_every_stream_and_gives_every_byte_back() -> None:
    joined = Joined()
    opened, accepted = joined.streams()
    joined.dialer.streams.send_data(accepted, b"arrived")
    joined.flow()
    never_sent = joined.open()
    joined.listener.close(StreamCode.DETACH_EXPIRED, "tunnel lost")
    lost = {event.stream: event for event in broken(joined.listener.take_events())}
    assert lost[opened].processed is Processed.MAYBE
    assert lost[never_sent].processed is Processed.NO
    # What had arrived is still there.
    assert joined.listener.memory._evictors
    assert joined.listener.streams.take(opened, 100, joined.now) == b"arrived"
    assert joined.listener.memory.used_bytes == 0
    assert not joined.listener.memory._evictors
    assert joined.listener.deadlines.next() == math.inf
    with pytest.raises(LocalProtocolError, match="the session is closed"):
        joined.open()


# --- Any bytes ---


def session_with_streams(role: Role) -> tuple[Joined, Recorded]:
    joined = Joined()
    joined.streams()
    opened, _ = joined.streams()
    joined.listener.streams.send_data(opened, b"", eof=True)
    joined.open(bytes(100))
    joined.flow()
    return joined, joined.listener if role is Role.LISTENER else joined.dialer


def survive(joined: Joined, connection: Recorded, messages: list[bytes]) -> None:
    """Feed anything: RemoteProtocolError may come of it, and nothing else; the counters stay right."""
    try:
        for message in messages:
            joined.now += 0.01
            connection.receive(message, joined.now)
            for _ in range(3):
                connection.data_to_send(16 * KIB, joined.now)
    except RemoteProtocolError:
        assert connection.status.phase is Phase.CLOSED
    connection.close(StreamCode.DETACH_EXPIRED, "")
    for event in broken(connection.take_events()):
        connection.streams.discard_received(event.stream)
    for holder in list(connection.holdings.holders()):
        assert isinstance(holder, StreamState)
        connection.streams.discard_received(holder)
    assert connection.memory.used_bytes == 0


some_frames = st.builds(
    lambda frame_type, flags, stream_id, payload: (
        frames.header(frame_type, flags, stream_id, len(payload)) + payload
    ),
    st.sampled_from([*map(int, FrameType), 0x0F, 0x7F]),
    st.sampled_from([0, frames.FIN, frames.ACK_FLAG, frames.IN_LINE, frames.CRITICAL]) | st.integers(0, 255),
    st.integers(0, 8),
    st.binary(max_size=40)
    | st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 255]), min_size=3, max_size=24).map(
        lambda numbers: b"".join(number.to_bytes(4, "big") for number in numbers)
    ),
)


@given(st.sampled_from(Role), st.lists(st.binary(max_size=200), max_size=5))
def test_only_remote_protocol_error_escapes_from_arbitrary_bytes(role: Role, messages: list[bytes]) -> None:
    survive(*session_with_streams(role), messages)
    greeted = Recorded(role, now=0.0)
    for message in messages:
        try:
            greeted.receive(message, 0.0)
        except RemoteProtocolError:
            break


@given(st.sampled_from(Role), st.lists(st.lists(some_frames, max_size=6).map(b"".join), max_size=6))
def test_only_remote_protocol_error_escapes_from_well_formed_frames(
    role: Role, messages: list[bytes]
) -> None:
    survive(*session_with_streams(role), messages)


@given(st.data())
def test_only_remote_protocol_error_escapes_from_a_real_dialogue_with_mutations(data: st.DataObject) -> None:
    joined, victim = session_with_streams(data.draw(st.sampled_from(Role)))
    peer = joined.peer_of(victim)
    for stream in list(peer.table.by_id.values()):
        if not stream.sending.at_rest:
            peer.streams.send_data(stream, data.draw(st.binary(max_size=50)))
    peer.deadlines.ping(joined.now)
    message = bytearray(peer.data_to_send(64 * KIB, joined.now))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(message) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                message[position] = data.draw(st.integers(0, 255))
            case 1:
                del message[position : position + data.draw(st.integers(1, 20))]
                message = message or bytearray(b"\x00")
            case _:
                message[position:position] = data.draw(st.binary(max_size=20))
    survive(joined, victim, [bytes(message)])
