"""A session that outlives its transports, in memory and on virtual time."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import Unplugged
from tests.tunnel.resumable_pair import ResumablePair, answer, open_resumable_pair, resume_over, wires
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import (
    Detached,
    Hello,
    Interruptions,
    Processed,
    RemoteProtocolError,
    Role,
    SessionClosed,
    StreamCode,
    StreamReset,
    Welcome,
    hear_hello,
)
from tunnel.handshake import say_hello
from tunnel.protocol import frames, greetings
from tunnel.websocket.transport import MemoryTransport


async def read_to_end(stream: TrioStream, into: bytearray) -> None:
    while data := await stream.receive_some():
        into += data


async def test_streams_go_on_over_another_transport(autojump_clock: trio.testing.MockClock) -> None:
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        await opened.send_all(b"before ")
        assert await accepted.receive_some() == b"before "
        pair.cut()
        await wait_all_tasks_blocked()
        assert pair.listener.detached
        assert pair.dialer.detached
        # No task that waits or sends is woken for that.
        await opened.send_all(b"meanwhile")
        await trio.sleep(20)
        await pair.redial()
        assert not pair.listener.detached
        assert await accepted.receive_some() == b"meanwhile"
        await accepted.send_all(b"behind")
        assert await opened.receive_some() == b"behind"
        for session in (pair.listener, pair.dialer):
            assert session.interruptions == Interruptions(1, pytest.approx(20), 0)
        pair.cut()
        await trio.sleep(5)
        for session in (pair.listener, pair.dialer):
            assert session.interruptions == Interruptions(2, pytest.approx(25), 0)


async def test_bytes_under_way_at_many_cuts_arrive_once_and_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    chance = random.Random(7)
    payload = chance.randbytes(3_000_000)
    async with open_resumable_pair() as pair, trio.open_nursery() as nursery:
        pairs = [await pair.streams() for _ in range(6)]
        heard = {stream: bytearray() for both in pairs for stream in both}

        async def send(stream: TrioStream) -> None:
            for start in range(0, len(payload), 50_000):
                await stream.send_all(payload[start : start + 50_000])
                await trio.sleep(chance.random() / 5)
            await stream.send_eof()

        for stream in heard:
            nursery.start_soon(send, stream)
            nursery.start_soon(read_to_end, stream, heard[stream])
        for _ in range(20):
            await trio.sleep(chance.random() / 2)
            # From now on frames are lost, and then the connection.
            pair.unplug()
            await trio.sleep(chance.random() / 10)
            pair.here.unplugged = pair.there.unplugged = False
            pair.cut()
            await wait_all_tasks_blocked()
            await trio.sleep(chance.random())
            await pair.redial()
    assert all(bytes(received) == payload for received in heard.values())
    assert pair.dialer.interruptions.detaches == 20
    assert pair.dialer.interruptions.replayed_frames > 0


async def test_a_listener_replaces_a_half_open_transport_by_the_new_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        old = pair.here
        # The dialer has noticed, the listener has not; each has sent frames that the other did not receive.
        pair.unplug()
        await opened.send_all(b"down")
        await accepted.send_all(b"up")
        await wait_all_tasks_blocked()
        pair.there.break_here()
        await wait_all_tasks_blocked()
        assert pair.dialer.detached
        assert not pair.listener.detached
        await pair.redial()
        assert old.closed_with is not None
        assert old.closed_with[0] == 4409
        assert await accepted.receive_some() == b"down"
        assert await opened.receive_some() == b"up"
        assert pair.listener.interruptions.detaches == 1


async def test_a_silent_loss_is_found_and_survived(autojump_clock: trio.testing.MockClock) -> None:
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        await trio.sleep(7)
        pair.unplug()
        began = trio.current_time()
        assert await pair.dialer.wait_detached()
        assert await pair.listener.wait_detached()
        assert trio.current_time() - began <= 15
        await trio.sleep(began + 40 - trio.current_time())
        await opened.send_all(b"still here")
        await pair.redial()
        assert await accepted.receive_some() == b"still here"


async def test_a_stream_reports_a_detachment_after_five_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        opened, _ = await pair.streams()
        told: list[float] = []
        began = trio.current_time()
        opened.raw.when_input(lambda: None, lambda: told.append(trio.current_time() - began))
        pair.cut()
        await trio.sleep(4.9)
        assert (told, pair.listener.away) == ([], True)
        await trio.sleep(30)
        assert told == [pytest.approx(5)]
        await pair.redial()
        assert not pair.listener.away
        # It goes on all the same.
        assert not opened.broken


async def test_an_absence_that_is_too_long_ends_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        await opened.send_all(b"x")
        await wait_all_tasks_blocked()
        began = trio.current_time()
        pair.cut()
        with pytest.raises(StreamReset) as caught:
            await opened.receive_some()
        assert (caught.value.code, caught.value.processed) == (StreamCode.DETACH_EXPIRED, Processed.MAYBE)
        assert trio.current_time() - began == pytest.approx(60)
        assert await pair.dialer.wait_closed() == "the tunnel was away for 60 s"
        assert await accepted.receive_some() == b"x"
        with pytest.raises(StreamReset):
            await accepted.receive_some()
        for session in (pair.listener, pair.dialer):
            assert session.closed
            assert not session.detached
            assert not await session.wait_detached()
            assert session.interruptions == Interruptions(1, pytest.approx(60), 0)
            assert session.memory.used_bytes == 0
        with pytest.raises(SessionClosed):
            await pair.listener.resume(wires()[0], b"")


async def test_a_session_goes_by_the_transport_that_it_has_now(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        pair.cut()
        await wait_all_tasks_blocked()
        await pair.redial()
        pair.here.peer_name = "at another address"
        assert pair.listener.peer_name == "at another address"
        with trio.move_on_after(1) as waiting:
            await pair.listener.wait_detached()
        assert waiting.cancelled_caught


async def test_a_transport_that_is_lost_in_silence_as_soon_as_it_is_there_is_left_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        await pair.streams()
        pair.cut()
        await wait_all_tasks_blocked()
        pair.here, pair.there = wires()
        hello = pair.dialer.hello_again()
        pair.here.unplugged = True
        pair.nursery.start_soon(resume_over, pair.listener, pair.here, greetings.hello(hello))
        await wait_all_tasks_blocked()
        began = trio.current_time()
        assert not pair.listener.detached
        assert await pair.listener.wait_detached()
        # The PING goes out at once.
        assert trio.current_time() - began <= 10.1


async def test_a_listener_that_no_dial_reaches_any_more_ends_with_its_transport(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        served, _ = await pair.streams()
        pair.listener.forgo_resumption("too late for this one")
        await served.send_all(b"goes on as it did")
        assert not pair.listener.resumable
        pair.cut()
        began = trio.current_time()
        with pytest.raises(StreamReset):
            await served.receive_head()
        assert (await pair.listener.wait_closed()).startswith("tunnel lost: ")
        assert trio.current_time() == began


async def test_it_ends_at_once_when_its_transport_is_lost_already(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        served, _ = await pair.streams()
        pair.cut()
        await wait_all_tasks_blocked()
        hello = pair.dialer.hello_again()
        assert hello.resume is not None
        pair.listener.forgo_resumption("no dial comes here")
        assert await pair.listener.wait_closed() == "no dial comes here"
        assert not pair.listener.may_resume(hello.resume)
        with pytest.raises(StreamReset) as caught:
            await served.receive_head()
        assert caught.value.code is StreamCode.DETACH_EXPIRED


async def test_a_wait_for_the_streams_to_end_is_over_when_a_detached_session_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        await pair.streams()
        pair.cut()
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.listener.wait_quiet)
            await wait_all_tasks_blocked()
            pair.listener.abandon("given up")


async def test_a_request_while_detached_waits_for_two_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        pair.cut()
        await wait_all_tasks_blocked()
        assert pair.listener.may_open
        served = TrioStream(pair.listener.open_stream(b"soon", context=pair.context))
        await trio.sleep(1.5)
        await pair.redial()
        assert (await accept(pair.dialer)).head == b"soon"
        pair.cut()
        await wait_all_tasks_blocked()
        began = trio.current_time()
        refused = TrioStream(pair.listener.open_stream(b"too late", context=pair.context))
        with pytest.raises(StreamReset) as caught:
            await refused.receive_head()
        assert (caught.value.code, caught.value.processed) == (StreamCode.REFUSED, Processed.NO)
        assert trio.current_time() - began == pytest.approx(2)
        assert not pair.listener.may_open
        with pytest.raises(Detached, match="away since 2 s"):
            pair.listener.open_stream(b"", context=pair.context)
        # What had been sent is not given up with it.
        assert not served.broken


async def test_a_dialer_ends_a_session_whose_listener_counts_otherwise(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        _, accepted = await pair.streams()
        pair.cut()
        await wait_all_tasks_blocked()
        here, there = wires()
        wrong = Welcome(session_id="s", resumed=True, last_rx=10**6, next_tx=10**6)
        with pytest.raises(RemoteProtocolError, match="1000000 frames"):
            await pair.dialer.resume(there, greetings.welcome(wrong))
        assert there.closed_with is not None
        assert there.closed_with[0] == 4410
        assert frames.first_frame(await here.receive())[0] == frames.GOAWAY
        with pytest.raises(StreamReset) as caught:
            await accepted.receive_some()
        assert caught.value.code is StreamCode.DETACH_EXPIRED
        await here.aclose()


@pytest.mark.parametrize("code", [None, 1000, 1001, 1011, 4400, 4503])
async def test_which_close_codes_end_a_session(
    code: int | None, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_resumable_pair() as pair:
        inner = pair.here.inner
        assert isinstance(inner, MemoryTransport)
        inner._peer._end(code, "the other end closed it")
        inner._end(None, "")
        await wait_all_tasks_blocked()
        # 1001, 1006 and 1011 are what load balancers say.
        assert pair.dialer.closed is (code in (1000, 4400, 4503))


async def test_a_lost_transport_is_not_reported_to_the_peer_as_the_sessions_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        await pair.streams()
        # Only this direction is dead: the other end would receive a farewell.
        pair.here.unplugged = True
        assert await pair.listener.wait_detached()
        await trio.sleep(2)
        assert pair.here.closed_with is not None
        assert pair.here.closed_with[0] == 1001


async def test_leaving_the_block_while_detached_ends_the_streams(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        pair.cut()
        await wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() - began <= 2
    for stream in (opened, accepted):
        with pytest.raises(StreamReset):
            await stream.receive_some()


async def test_an_end_on_a_later_transport_is_sent_on_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_resumable_pair() as pair:
        pair.cut()
        await wait_all_tasks_blocked()
        await pair.redial()
        wire = pair.here
    assert wire.closed_with == (1000, "closed here")


async def test_an_eviction_that_ends_a_session_wakes_its_waiters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        pair.unplug()
        await opened.send_all(bytes(60_000))
        await wait_all_tasks_blocked()
        pair.cut()
        assert await pair.listener.wait_detached()
        memory = pair.listener.memory
        limit, memory.limit_bytes = memory.limit_bytes, 1000
        memory.relieve()
        memory.limit_bytes = limit
        assert "memory was short" in await pair.listener.wait_closed()
        with pytest.raises(StreamReset, match="OVERLOADED"):
            await opened.receive_some()
        assert not accepted.raw._closed


async def test_memory_that_is_taken_back_as_a_session_goes_on_costs_streams_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        await opened.send_all(bytes(60_000))
        await wait_all_tasks_blocked()
        pair.cut()
        await wait_all_tasks_blocked()
        pair.dialer.memory.limit_bytes = 50_000
        await pair.redial()
        with pytest.raises(StreamReset, match="OVERLOADED"):
            await accepted.receive_some()
        assert not pair.dialer.detached
        assert not pair.dialer.closed


async def test_cancelling_a_resumption_at_any_step_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for step in range(12):
        async with open_resumable_pair() as pair:
            opened, _ = await pair.streams()
            pair.cut()
            await wait_all_tasks_blocked()
            here, there = wires()
            async with trio.open_nursery() as nursery:

                async def listen(pair: ResumablePair = pair, here: Unplugged = here) -> None:
                    try:
                        greeting = await hear_hello(here)
                    except SessionClosed:
                        return
                    await resume_over(pair.listener, here, greeting)

                async def dial(pair: ResumablePair = pair, there: Unplugged = there) -> None:
                    await resume_over(pair.dialer, there, await say_hello(there, pair.dialer.hello_again()))

                nursery.start_soon(listen)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as dialing:
                        dialing.start_soon(dial)
                        for _ in range(step):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
                await there.aclose(1001, "")
                if not pair.dialer.closed:
                    # It had not begun to go on yet, and may try again.
                    assert pair.dialer.detached
                nursery.cancel_scope.cancel()
        with pytest.raises(StreamReset):
            await opened.receive_some()
        assert pair.listener.memory.used_bytes == pair.dialer.memory.used_bytes == 0


async def test_a_fault_behind_the_welcome_in_its_message_ends_a_session_that_was_to_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        _, accepted = await pair.streams()
        pair.cut()
        await wait_all_tasks_blocked()
        here, there = wires()
        received = pair.dialer.hello_again().resume
        assert received is not None
        welcome = Welcome(session_id="s", resumed=True, last_rx=received.next_tx, next_tx=received.last_rx)
        with pytest.raises(RemoteProtocolError, match="a second greeting"):
            await pair.dialer.resume(there, greetings.welcome(welcome) * 2)
        assert there.closed_with == (4400, "a second greeting")
        with pytest.raises(StreamReset):
            await accepted.receive_some()
        await here.aclose()


@pytest.mark.parametrize("role", Role)
async def test_a_transport_for_an_ended_session_is_closed_with_the_reason(
    role: Role, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_resumable_pair() as pair:
        pair.cut()
        await wait_all_tasks_blocked()
        hello = pair.dialer.hello_again()
        session = pair.dialer if role is Role.DIALER else pair.listener
        session.end(4401, "its key was replaced")
        here, there = wires()
        greeting = greetings.hello(hello) if role is Role.LISTENER else greetings.welcome(answer(hello))
        with pytest.raises(SessionClosed, match="its key was replaced"):
            await session.resume(here, greeting)
        assert here.closed_with == (4401, "its key was replaced")
        assert frames.decode_goaway((await there.receive())[frames.HEADER_BYTES :])[1] == 4401


async def test_a_transport_that_ends_in_the_greeting_is_no_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = wires()
    await here.aclose(4401, "not you")
    with pytest.raises(SessionClosed, match="ended in the greeting: not you"):
        await say_hello(there, Hello())
    here, there = wires()
    with pytest.raises(SessionClosed, match="no greeting within 10 s"):
        await hear_hello(here)
    assert here.closed_with is not None
    assert here.closed_with[0] == 4408
