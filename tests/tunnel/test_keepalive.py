"""Detection of a dead peer, and the frames that keep this side alive for the peer."""

from __future__ import annotations

import re
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import open_pair
from tests.tunnel.resumable_pair import open_resumable_pair
from tests.tunnel.trio_stream import TrioStream
from tunnel import (
    Hello,
    Processed,
    Role,
    Settings,
    StreamCode,
    StreamReset,
    memory_transport_pair,
    open_session,
)
from tunnel.protocol import greetings


@pytest.mark.parametrize("streams", [0, 1])
async def test_a_silent_loss_is_noticed_by_both_ends_in_time(
    streams: int, autojump_clock: trio.testing.MockClock
) -> None:
    for phase_s in (0.0, 2.4, 4.9, 29.0, 34.0):
        async with open_pair() as pair:
            for _ in range(streams):
                await pair.streams()
            await trio.sleep(phase_s)
            pair.wire.unplugged = True
            started = trio.current_time()
            reasons = [await pair.listener.wait_closed(), await pair.dialer.wait_closed()]
            most_s = 15 if streams else 40
            assert trio.current_time() - started <= most_s + 0.001
            for reason in reasons:
                told = re.fullmatch("tunnel lost: nothing came from the peer for ([0-9]+) s", reason)
                assert told
                assert 10 <= int(told[1]) <= most_s


async def test_a_message_that_takes_long_to_come_whole_keeps_the_session_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        pair.open_stream()
        await trio.sleep(1)
        pair.wire.unplugged = True
        for _ in range(30):
            await trio.sleep(3)
            pair.wire.last_received_s = trio.current_time()
            assert not pair.listener.closed
            assert pair.listener.last_received_s == trio.current_time()
        with trio.fail_after(15.1):
            assert "nothing came from the peer" in await pair.listener.wait_closed()


async def test_a_stream_on_a_session_that_was_silent_asks_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await trio.sleep(23)
        pair.wire.unplugged = True
        started = trio.current_time()
        with pytest.raises(StreamReset) as caught:
            await pair.open_stream().receive_head()
        assert trio.current_time() - started == pytest.approx(10, abs=0.01)
        assert (caught.value.code, caught.value.processed) == (StreamCode.DETACH_EXPIRED, Processed.MAYBE)


@pytest.mark.parametrize("phase_s", [0.0, 0.5, 3.9, 24.0])
@pytest.mark.parametrize("busy", [False, True])
async def test_a_stream_without_an_answer_reports_a_silent_peer_in_time(
    busy: bool, phase_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pair() as pair:
        if busy:
            await pair.streams()
        await trio.sleep(phase_s)
        pair.wire.unplugged = True
        began = trio.current_time()
        told: list[float] = []
        stream = pair.open_stream(b"head", eof=True)
        stream.raw.when_input(lambda: None, lambda: told.append(trio.current_time() - began))
        await trio.sleep(9.9)
        # Once, though the silence goes on.
        assert len(told) == 1
        # A PING is due 5 s after the one before, and is given a second.
        assert (1 if busy else 4.99) <= told[0] <= 6.01
        assert pair.listener.away
        assert not pair.listener.closed


async def test_a_peer_that_only_takes_long_is_not_in_doubt(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        told: list[float] = []
        silent, _ = await pair.streams()
        silent.raw.when_input(lambda: None, lambda: told.append(trio.current_time()))
        await trio.sleep(3600)
        assert told == []
        assert not pair.listener.away


async def test_doubt_is_not_reported_to_a_stream_with_a_head_or_without_a_callback(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        told: list[str] = []
        (answered, other), (reset, _), (left, _), (waits, _) = [await pair.streams() for _ in range(4)]
        for stream, name in ((answered, "answered"), (reset, "reset"), (left, "left"), (waits, "waits")):
            stream.raw.when_input(lambda: None, partial(told.append, name))
        await other.send_head(b"head")
        assert await answered.receive_head() == b"head"
        reset.reset(StreamCode.CANCEL)
        await left.aclose()
        pair.wire.unplugged = True
        await trio.sleep(9)
        assert told == ["waits"]


async def test_the_first_byte_ends_a_doubt(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        told: list[float] = []
        opened, accepted = await pair.streams()
        pair.wire.unplugged = True
        opened.raw.when_input(lambda: None, lambda: told.append(trio.current_time()))
        await trio.sleep(7)
        assert (len(told), pair.listener.away) == (1, True)
        pair.wire.unplugged = False
        accepted.send_answer_nowait(b"head")
        assert await opened.receive_head() == b"head"
        assert not pair.listener.away


@pytest.mark.parametrize("ping_s", [5, 30, 60])
async def test_an_idle_session_lives_for_hours_at_a_ping_in_as_long_as_is_set(
    ping_s: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pair(settings=Settings(ping_s=ping_s)) as pair:
        await trio.sleep(1)
        before = len(pair.wire.sent)
        await trio.sleep(3600)
        assert not pair.listener.closed
        # A PING and a PONG from here each time.
        assert len(pair.wire.sent) - before <= 2 * 3600 / ping_s + 2
        assert pair.listener.rtt_s is not None
        assert trio.current_time() - pair.listener.last_received_s <= ping_s


async def test_a_transport_that_takes_nothing_counts_as_dead_as_a_silent_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = memory_transport_pair(messages_max=1)
    await there.send(greetings.hello(Hello()))
    async with open_session(here, Role.LISTENER) as session:
        started = trio.current_time()
        assert "nothing came from the peer" in await session.wait_closed()
        assert trio.current_time() - started <= 40
    await there.aclose()


async def test_a_stream_opened_after_a_cut_reports_the_silence_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair:
        pair.cut()
        await wait_all_tasks_blocked()
        began = trio.current_time()
        told: list[float] = []
        refused = TrioStream(pair.listener.open_stream(b"too late", context=pair.context))
        refused.raw.when_input(lambda: told.append(trio.current_time() - began))
        await trio.sleep(5)
        assert told == [pytest.approx(2)]


async def test_a_peer_that_went_without_a_word_and_does_not_come_back_is_given_up_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its PING is overdue all the while, and there is no transport any more that could be lost for that."""
    async with open_resumable_pair() as pair:
        opened, accepted = await pair.streams()
        await trio.sleep(7)
        pair.unplug()
        heard_at = pair.listener.last_received_s
        assert await pair.listener.wait_detached()
        began = trio.current_time()
        assert began - heard_at <= 15.001
        refused = TrioStream(pair.listener.open_stream(b"too late", context=pair.context))
        with pytest.raises(StreamReset) as caught:
            await refused.receive_head()
        assert caught.value.code is StreamCode.REFUSED
        assert trio.current_time() - began <= 2
        for session, stream in ((pair.listener, opened), (pair.dialer, accepted)):
            assert await session.wait_closed() == "the tunnel was away for 60 s"
            with pytest.raises(StreamReset) as caught:
                await stream.receive_some()
            assert caught.value.code is StreamCode.DETACH_EXPIRED
        assert trio.current_time() - heard_at == pytest.approx(60, abs=0.1)


# --- when it is asked ---


async def test_a_peer_that_is_there_answers_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        # Long after the last PING, and right after one: a second answer is as good as the first.
        await trio.sleep(17)
        for _ in range(2):
            began = trio.current_time()
            assert await pair.listener.answers(5)
            assert trio.current_time() - began < 0.1


async def test_a_peer_that_is_not_there_does_not_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        pair.wire.unplugged = True
        began = trio.current_time()
        assert not await pair.listener.answers(5)
        assert trio.current_time() - began == pytest.approx(5)
        pair.wire.unplugged = False


async def test_a_pong_answers_only_pings_sent_before_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        assert await pair.listener.answers(5)
        pair.wire.unplugged = True
        assert not await pair.listener.answers(5)
        pair.wire.unplugged = False


async def test_one_pong_answers_all_concurrent_pings(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        took: list[float] = []

        async def ask() -> None:
            began = trio.current_time()
            assert await pair.listener.answers(5)
            took.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert len(took) == 3
        assert max(took) < 0.1


async def test_a_peer_that_is_asked_by_very_many_stays_and_answers_each_of_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As a hub asks a relay for each newcomer that stands in line behind it."""
    async with open_pair() as pair:
        took: list[float] = []

        async def ask(after_s: float) -> None:
            await trio.sleep(after_s)
            began = trio.current_time()
            assert await pair.listener.answers(5)
            took.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number / 100)
        assert len(took) == 100
        assert max(took) < 0.5
        assert not pair.dialer.closed


async def test_asking_an_idle_peer_that_is_gone_detects_that_in_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The next thing to be due, a PING at 50 s, would be later than that."""
    async with open_pair() as pair:
        await trio.sleep(37)
        pair.wire.unplugged = True
        began = trio.current_time()
        assert not await pair.listener.answers(2)
        assert "nothing came from the peer" in await pair.listener.wait_closed()
        assert trio.current_time() - began == pytest.approx(10, abs=0.001)


async def test_a_session_that_ends_meanwhile_does_not_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        pair.wire.unplugged = True
        async with trio.open_nursery() as nursery:
            found: list[bool] = []

            async def ask() -> None:
                found.append(await pair.listener.answers(5))

            nursery.start_soon(ask)
            await trio.sleep(1)
            pair.wire.break_here()
            ended_at = trio.current_time()
        assert found == [False]
        assert pair.listener.closed
        assert trio.current_time() - ended_at < 0.1
        assert not await pair.listener.answers(5)


async def test_a_part_of_a_message_is_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        pair.wire.unplugged = True
        async with trio.open_nursery() as nursery:
            found: list[bool] = []

            async def ask() -> None:
                found.append(await pair.listener.answers(5))

            nursery.start_soon(ask)
            await trio.sleep(1)
            pair.wire.last_received_s = trio.current_time()
        assert found == [True]
        pair.wire.unplugged = False
