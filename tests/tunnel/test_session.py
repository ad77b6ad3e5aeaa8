from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import Pair, Unplugged, echo, open_pair, read_all, receive_frames_to_the_end
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import (
    Context,
    Draining,
    Hello,
    Memory,
    Processed,
    Rejected,
    Role,
    Session,
    SessionClosed,
    Settings,
    StreamCode,
    StreamReset,
    TooManyStreams,
    Transport,
    TransportClosed,
    memory_transport_pair,
    open_session,
)
from tunnel.lifecycle import FLUSH_S, GOAWAYS_LOGGED_AT_ONCE
from tunnel.protocol import frames, greetings
from tunnel.protocol.errors import CloseCode, LocalProtocolError
from tunnel.protocol.frames import FrameType
from tunnel.protocol.ledger import ACK_AFTER_S, LEDGER_BYTES_MAX, LEDGER_RESERVE_BYTES
from tunnel.refusals import FAREWELL_S


async def serve(session: Pair, handle: Callable[[TrioStream], Awaitable[None]]) -> None:
    """Handle each stream in a task of its own, until the session ends."""
    async with trio.open_nursery() as nursery:
        session.dialer.on_stream(lambda stream: nursery.start_soon(handle, TrioStream(stream)))
        await session.dialer.wait_closed()


# --- streams among others ---


async def test_one_stalled_reader_stalls_only_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        stalled, stalled_there = await pair.streams()

        async def flood() -> None:
            while True:
                await stalled_there.send_all(bytes(100_000))

        async def handle(stream: TrioStream) -> None:
            async with stream:
                await stream.send_all(bytes(300_000))
                await stream.send_eof()

        done = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            nursery.start_soon(serve, pair, handle)
            await wait_all_tasks_blocked()

            async def read_one() -> None:
                nonlocal done
                async with pair.open_stream(eof=True) as stream:
                    assert len(await read_all(stream)) == 300_000
                done += 1

            async with trio.open_nursery() as readers:
                for _ in range(99):
                    readers.start_soon(read_one)
            assert done == 99
            # What the stalled one holds is its window, no more.
            assert pair.listener.memory.used_bytes <= 64 * 1024 + 1000
            nursery.cancel_scope.cancel()
        await stalled.aclose()


async def test_both_directions_saturated_through_the_smallest_transport_do_not_deadlock(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair(messages_max=0) as pair:
        size = 2 * 2**20
        received = []

        async def pump(stream: TrioStream) -> None:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await stream.send_all(bytes(size))
                    await stream.send_eof()

                nursery.start_soon(send)
                received.append(len(await read_all(stream)))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                for stream in await pair.streams():
                    nursery.start_soon(pump, stream)
        assert received == [size] * 8


async def test_an_openers_mistake_does_not_end_the_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        with pytest.raises(LocalProtocolError, match="exceeds"):
            pair.open_stream(bytes(frames.HEAD_BYTES_MAX + 1))
        assert pair.listener.stream_count == 0
        assert pair.listener.may_open


async def test_a_stream_for_which_there_is_no_memory_is_not_opened(
    autojump_clock: trio.testing.MockClock,
) -> None:
    memory = Memory(400_000)
    async with open_pair(memory=memory) as pair:
        # What cannot be evicted: contexts, and frames that connected peers have not acknowledged.
        memory.charge(380_000)
        with pytest.raises(TooManyStreams, match="memory for streams is full"):
            pair.open_stream(b"h" * 30_000, eof=True)
        assert pair.listener.stream_count == 0
        memory.release(380_000)
        assert pair.open_stream(b"h" * 30_000, eof=True)


async def test_ten_thousand_streams_leave_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    memory = Memory(2**30)
    async with open_pair(memory=memory) as pair:
        await wait_all_tasks_blocked()
        at_rest = memory.used_bytes

        async def handle(stream: TrioStream) -> None:
            async with stream:
                match stream.head:
                    case b"answer":
                        await stream.send_head(b"200")
                        await stream.send_all(b"body")
                        await stream.send_eof()
                    case b"reset":
                        stream.reset(StreamCode.DIAL_FAILED, processed=Processed.NO)
                    case _:
                        pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, pair, handle)
            for number in range(10_000):
                head = (b"answer", b"reset", b"leave", b"taken back")[number % 4]
                async with pair.open_stream(head, eof=number % 8 < 4) as stream:
                    if head == b"answer":
                        assert await stream.receive_head() == b"200"
                        assert await read_all(stream) == b"body"
                    elif head != b"taken back":
                        with pytest.raises(StreamReset):
                            await stream.receive_head()
            # Until the last of it has been acknowledged.
            await trio.sleep(ACK_AFTER_S + 1)
            assert pair.listener.stream_count == pair.dialer.stream_count == 0
            assert memory.used_bytes == at_rest
            for session in (pair.listener, pair.dialer):
                connection = session._connection
                assert list(connection.holdings.holders()) == []
                assert connection.resets.unacknowledged == {}
                assert connection.sent.unacknowledged_bytes == 0
                assert len(connection.scheduler.ring) == 0
            nursery.cancel_scope.cancel()


async def test_cancelling_an_exchange_at_any_step_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await trio.sleep(1)
        at_rest = pair.listener.memory.used_bytes, pair.dialer.memory.used_bytes

        async def answer(stop: trio.CancelScope) -> None:
            with stop, suppress(StreamReset):
                async with await accept(pair.dialer) as stream:
                    body = await read_all(stream)
                    await stream.send_head(b"h" * 40_000)
                    await stream.send_all(body * 2)
                    await stream.send_eof()

        async def ask(stop: trio.CancelScope) -> None:
            with stop, suppress(StreamReset):
                async with pair.open_stream(b"q" * 40_000) as stream:
                    await stream.send_all(bytes(200_000))
                    await stream.send_eof()
                    await stream.receive_head()
                    await read_all(stream)

        finished = 0
        for side in (0, 1):
            for steps in range(120):
                stops = trio.CancelScope(), trio.CancelScope()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer, stops[1])
                    nursery.start_soon(ask, stops[0])
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    stops[side].cancel()
                    await wait_all_tasks_blocked()
                    # What the other side may wait for now will not come, when the cancelled one never began.
                    stops[1 - side].cancel()
                finished += not any(stop.cancelled_caught for stop in stops)
                await trio.sleep(0.1)
                with trio.move_on_after(0):
                    await (await accept(pair.dialer)).aclose()
                assert pair.listener.stream_count == pair.dialer.stream_count == 0
                assert (pair.listener.memory.used_bytes, pair.dialer.memory.used_bytes) == at_rest
        # The last of them went through, so every step of an exchange was among them.
        assert finished > 0


@pytest.mark.parametrize("role", Role)
async def test_cancelling_a_session_at_any_step_ends_it(
    role: Role, autojump_clock: trio.testing.MockClock
) -> None:
    for steps in range(60):
        here, there = memory_transport_pair(messages_max=steps % 3)
        sessions: list[Session] = []

        async def live(
            transport: Transport, as_role: Role, stop: trio.CancelScope, all_: list[Session]
        ) -> None:
            with stop, suppress(SessionClosed, StreamReset, Rejected):
                async with open_session(transport, as_role) as session:
                    all_.append(session)
                    stream = TrioStream(session.open_stream(b"head", context=session.add_context(1, b"x")))
                    await stream.send_all(bytes(100_000))
                    await (await accept(session)).receive_some()
                    await session.wait_closed()

        stop = trio.CancelScope()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                other = Role.DIALER if role is Role.LISTENER else Role.LISTENER
                nursery.start_soon(live, here, role, stop, sessions)
                nursery.start_soon(live, there, other, trio.CancelScope(), sessions)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                stop.cancel()
        for session in sessions:
            assert session.closed
            assert session.stream_count == 0
        for transport in (here, there):
            with pytest.raises(TransportClosed):
                await transport.send(b"")


async def test_contexts_reach_the_acceptor_with_their_note(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        index = pair.listener.add_context(9, b"agent nine")
        pair.listener.open_stream(b"", context=index)
        first = await accept(pair.dialer)
        assert (first.context.payload, first.context.group) == (b"agent nine", 9)
        first.context.note = "verified"
        pair.listener.open_stream(b"", context=index)
        assert (await accept(pair.dialer)).context.note == "verified"
        pair.listener.retire_context(index)
        fresh = pair.listener.add_context(9, b"agent nine, renewed")
        pair.listener.open_stream(b"", context=fresh)
        assert (await accept(pair.dialer)).context.note is None


async def test_each_context_is_sent_once_and_before_the_streams_that_name_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        told: list[bytes] = []
        await wait_all_tasks_blocked()
        pair.dialer.on_context(lambda context: told.append(context.payload))
        assert told == [b"token"]
        pair.dialer.on_stream(lambda stream: told.append(stream.head))
        pair.listener.open_stream(b"head", context=pair.listener.add_context(9, b"agent nine"))
        await wait_all_tasks_blocked()
        assert told == [b"token", b"agent nine", b"head"]


async def test_a_session_that_is_ended_for_a_context_reports_no_other_and_holds_no_user(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Listener:
        def __init__(self, session: Session) -> None:
            self.session = session
            self.told: list[bytes] = []

        def hear(self, context: Context) -> None:
            self.told.append(context.payload)
            self.session.end(CloseCode.FORBIDDEN, "not this")

    async with open_pair() as pair:
        await wait_all_tasks_blocked()
        pair.listener.retire_context(pair.context)
        await wait_all_tasks_blocked()
        listener = Listener(pair.dialer)
        told, gone = listener.told, weakref.ref(listener)
        pair.dialer.on_context(listener.hear)
        gc.collect()
        gc.disable()
        try:
            del listener
            for _ in range(3):
                pair.listener.add_context(1, b"wrong")
            await pair.listener.wait_closed()
            await wait_all_tasks_blocked()
            assert told == [b"wrong"]
            assert gone() is None
        finally:
            gc.enable()


async def test_a_peer_beyond_its_contexts_gets_a_close_with_the_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair(Settings(contexts_max=2)) as pair:
        for index in (pair.context, pair.listener.add_context(1, b"token")):
            pair.listener.retire_context(index)
        for _ in range(2):
            pair.listener.add_context(1, b"token")
        await wait_all_tasks_blocked()
        assert not pair.dialer.closed
        pair.listener.add_context(1, b"token")
        assert "more than 2 live contexts" in await pair.listener.wait_closed()
        assert pair.listener.peer_going_away is not None
        assert pair.listener.peer_going_away.code == CloseCode.LIMITS


async def test_an_eviction_for_another_session_is_reported_to_callbacks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    process = Memory(200_000)
    async with open_pair(memory=process) as modest, open_pair(memory=process) as greedy:
        asking = modest.open_stream()
        told: list[bool] = []
        answering = await accept(modest.dialer)
        held = [await greedy.streams() for _ in range(3)]
        # Of what is here before it asks it is not told.
        await answering.send_all(bytes(60_000))
        await wait_all_tasks_blocked()
        asking.raw.when_input(lambda: told.append(asking.broken))
        for _, stream in held:
            await stream.send_all(bytes(50_000))
            # They are the same group's, once they have crossed, and what it has elsewhere stands longest.
            await wait_all_tasks_blocked()
        assert told == [True]


async def test_an_eviction_for_another_session_wakes_waiting_tasks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    process = Memory(200_000)
    async with open_pair(memory=process) as modest, open_pair(memory=process) as greedy:
        holder, holder_there = await modest.streams()
        held = [await greedy.streams() for _ in range(3)]
        await holder_there.send_all(bytes(60_000))
        await trio.sleep(1)

        woken_at = []

        async def wait() -> None:
            with pytest.raises(StreamReset) as caught:
                await holder_there.receive_some()
            assert caught.value.code is StreamCode.OVERLOADED
            woken_at.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for _, stream in held:
                await stream.send_all(bytes(50_000))
                sent_at = trio.current_time()
                await trio.sleep(1)
        # At once, and not with the next PING.
        assert woken_at == [sent_at]
        with pytest.raises(StreamReset) as caught:
            await holder.receive_some()
        assert caught.value.code is StreamCode.OVERLOADED


# --- the end ---


async def test_a_dead_session_wakes_every_task(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        stalled, _ = await pair.streams()
        quiet, quiet_there = await pair.streams()
        ends: list[StreamReset | SessionClosed] = []

        async def wait_for(call: Callable[[], Awaitable[object]]) -> None:
            try:
                while True:
                    await call()
            except (StreamReset, SessionClosed) as exc:
                ends.append(exc)

        async def send() -> None:
            await stalled.send_all(bytes(100_000))

        async with trio.open_nursery() as nursery:
            for call in (quiet.receive_head, quiet.receive_some, send, partial(accept, pair.listener)):
                nursery.start_soon(wait_for, call)
            for call in (quiet_there.receive_some, partial(accept, pair.dialer)):
                nursery.start_soon(wait_for, call)
            await wait_all_tasks_blocked()
            pair.cut()
        assert len(ends) == 6
        for end in ends:
            assert "tunnel lost" in str(end)
            if isinstance(end, StreamReset):
                assert (end.code, end.processed) == (StreamCode.DETACH_EXPIRED, Processed.MAYBE)
        for session in (pair.listener, pair.dialer):
            assert session.closed
            assert session.stream_count == 0
        with pytest.raises(SessionClosed):
            pair.open_stream()
        with pytest.raises(SessionClosed):
            pair.listener.add_context(1, b"x")
        pair.listener.retire_context(pair.context)
        pair.listener.go_away()


async def test_an_open_that_was_never_sent_was_surely_not_processed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        pair.wire.stuck = True
        sending = pair.open_stream()
        await wait_all_tasks_blocked()
        waiting = pair.open_stream()
        pair.cut()
        for stream, processed in ((sending, Processed.MAYBE), (waiting, Processed.NO)):
            with pytest.raises(StreamReset) as caught:
                await stream.receive_head()
            assert caught.value.processed is processed


async def test_bytes_that_arrived_before_the_loss_are_still_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await accepted.send_all(b"arrived")
        await trio.sleep(1)
        pair.cut()
        await pair.listener.wait_closed()
        assert await opened.receive_some() == b"arrived"
        with pytest.raises(StreamReset, match="tunnel lost"):
            await opened.receive_some()


async def test_frames_queued_when_the_block_is_left_still_arrive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = memory_transport_pair()
    left_after_s: list[float] = []

    async def listen() -> None:
        async with open_session(here, Role.LISTENER) as session:
            context = session.add_context(1, b"x")
            stream = TrioStream(session.open_stream(b"head", context=context))
            stream.send_nowait(bytes(60_000), eof=True)
            began = trio.current_time()
        left_after_s.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        async with open_session(there, Role.DIALER) as session:
            stream = await accept(session)
            await session.wait_closed()
            assert len(await read_all(stream)) == 60_000
            assert session.peer_going_away is not None
    # It waits for queued frames, not for a time.
    assert left_after_s == [0]


async def test_frames_queued_for_a_peer_that_takes_nothing_are_dropped_when_the_block_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await wait_all_tasks_blocked()
        pair.wire.stuck = True
        pair.open_stream()
        began = trio.current_time()
    assert trio.current_time() - began <= FLUSH_S + FAREWELL_S


async def test_a_session_is_quiet_once_all_that_was_said_has_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await pair.listener.wait_quiet()
        opened, accepted = await pair.streams()
        await opened.send_eof()
        # More than the window: the rest is queued.
        await accepted.send_all(bytes(100_000))
        await accepted.send_eof()
        await accepted.aclose()
        with trio.move_on_after(60) as waiting:
            await pair.dialer.wait_quiet()
        assert waiting.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.dialer.wait_quiet)
            assert len(await read_all(opened)) == 100_000
        await pair.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.dialer.wait_quiet)
            await trio.testing.wait_all_tasks_blocked()
            pair.cut()


async def test_a_session_is_quiet_at_once_when_the_peer_ends_its_last_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await wait_all_tasks_blocked()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.dialer.wait_quiet)
            await wait_all_tasks_blocked()
            opened.reset(StreamCode.CANCEL)
        assert trio.current_time() == started
        assert accepted.broken


async def test_a_peer_that_acknowledges_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    here, there = memory_transport_pair()
    await there.send(greetings.hello(Hello(initial_window=4 * 2**20)))
    async with open_session(here, Role.LISTENER) as session, trio.open_nursery() as nursery:
        said: list[tuple[int, int, int, bytes]] = []

        async def take_everything() -> None:
            said.extend((await receive_frames_to_the_end(there))[0])

        nursery.start_soon(take_everything)
        stream = TrioStream(session.open_stream(b"", context=session.add_context(1, b"token")))
        with trio.move_on_after(1):
            await stream.send_all(bytes(4 * 2**20))
        # Control frames go beyond the link's queue, then beyond a full ledger, up to its reserve.
        for _ in range((LEDGER_BYTES_MAX + LEDGER_RESERVE_BYTES) // (8 * 1024)):
            session.add_context(1, bytes(8 * 1024))
        with trio.fail_after(2):
            assert "acknowledges nothing" in await session.wait_closed()
    assert said[-1][0] == FrameType.GOAWAY
    assert frames.decode_goaway(said[-1][3])[1] == 4413


async def test_a_peer_that_breaks_the_protocol_gets_a_goaway_and_is_closed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = memory_transport_pair()
    await there.send(greetings.hello(Hello()))
    async with open_session(here, Role.LISTENER) as session:
        await there.send(frames.window(2, 5))
        assert "WINDOW on stream 2" in await session.wait_closed()
        said, closed = await receive_frames_to_the_end(there)
        assert closed.code == 4400
        assert said[-1][0] == FrameType.GOAWAY
    assert "broke the protocol" in caplog.text
    await there.aclose()


async def test_a_flood_of_goaways_is_a_few_lines_and_their_number(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    here, there = memory_transport_pair()
    await there.send(greetings.hello(Hello()))
    async with open_session(here, Role.LISTENER) as session:
        await there.send(b"".join(frames.goaway(0, 4503, 0, 0, f"flood {n}") for n in range(1000)))
        await trio.sleep(0.5)
        assert session.peer_going_away is not None
        assert session.peer_going_away.reason == "flood 999"
        await there.send(frames.goaway(0, 1000, 0, 0, "the end") + frames.window(2, 5))
        await session.wait_closed()
        await receive_frames_to_the_end(there)
    lines = [record.message for record in caplog.records if "going away" in record.message]
    assert len(lines) == GOAWAYS_LOGGED_AT_ONCE
    assert "lines like the last one that were left out: 993" in caplog.text
    await there.aclose()


async def test_going_away_refuses_new_streams_and_keeps_the_old_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        pair.dialer.go_away(drain_ms=60_000, reason="restart")
        assert pair.dialer.draining
        await wait_all_tasks_blocked()
        assert pair.listener.draining
        going = pair.listener.peer_going_away
        assert going is not None
        assert (going.drain_ms, going.reason) == (60_000, "restart")
        with pytest.raises(Draining):
            pair.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, accepted)
            await opened.send_all(b"still")
            await opened.send_eof()
            assert await read_all(opened) == b"still"


async def test_a_side_that_goes_away_may_still_open_streams(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        heard: list[object] = []

        async def listen() -> None:
            heard.append(await pair.dialer.wait_going_away())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            assert not heard
            pair.listener.go_away(drain_ms=60_000, reason="restart")
        assert heard == [pair.dialer.peer_going_away]
        assert pair.listener.may_open
        assert not pair.dialer.may_open
        opened, _ = await pair.streams()
        await opened.aclose()
        pair.cut()
        await pair.dialer.wait_closed()
        assert await pair.dialer.wait_going_away() is heard[0]
        assert await pair.listener.wait_going_away() is None
        assert not pair.listener.may_open


async def test_the_callers_own_exception_passes_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    here, there = memory_transport_pair()
    await there.send(greetings.hello(Hello()))

    async def fail() -> None:
        async with open_session(here, Role.LISTENER):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await there.aclose()


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 1.0])
async def test_cancelling_the_block_sends_a_goaway_and_closes_the_transport(
    delay_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    here, there = memory_transport_pair()
    wire = Unplugged(here)
    await there.send(greetings.hello(Hello()))
    with trio.move_on_after(5):
        async with open_session(wire, Role.LISTENER) as session:
            stream = TrioStream(session.open_stream(b"", context=session.add_context(1, b"x")))
            with trio.move_on_after(delay_s):
                await stream.receive_some()
            await trio.sleep_forever()
    assert wire.closed_with is not None
    assert session.closed
    with pytest.raises(StreamReset):
        await stream.receive_some()
    said, closed = await receive_frames_to_the_end(there)
    assert said[-1][0] == FrameType.GOAWAY
    assert closed.code == 1000
    await there.aclose()


async def test_the_end_of_a_session_has_a_reason(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        pair.listener.end(4403, "one relay too many")
        assert await pair.dialer.wait_closed() == "the other end has closed it: one relay too many"
        assert pair.dialer.peer_going_away is not None
        assert pair.dialer.peer_going_away.code == 4403
