from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tunnel.websocket.transport import TransportClosed, memory_transport_pair


async def test_messages_arrive_whole_and_in_order() -> None:
    a, b = memory_transport_pair()
    for message in (b"one", b"", b"three"):
        await a.send(message)
    assert [await b.receive() for _ in range(3)] == [b"one", b"", b"three"]
    await b.send(b"back")
    assert await a.receive() == b"back"
    a.cut()


async def test_aclose_delivers_what_was_sent_and_then_the_code() -> None:
    a, b = memory_transport_pair()
    await a.send(b"last words")
    await a.aclose(4503, "draining")
    await a.aclose(1000, "a second call does nothing")
    assert await b.receive() == b"last words"
    for call in (b.receive, a.receive, lambda: a.send(b"x"), lambda: b.send(b"x")):
        with pytest.raises(TransportClosed) as caught:
            await call()
        assert (caught.value.code, caught.value.reason) == (4503, "draining")
    await b.aclose()


async def test_aclose_wakes_a_blocked_receiver_and_a_blocked_sender(autojump_clock: trio.abc.Clock) -> None:
    a, b = memory_transport_pair(messages_max=1)
    woken: list[TransportClosed] = []

    async def receive() -> None:
        with pytest.raises(TransportClosed) as caught:
            await a.receive()
        woken.append(caught.value)

    async def send() -> None:
        await a.send(b"fills the one place")
        with pytest.raises(TransportClosed) as caught:
            await a.send(b"x")
        woken.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await a.aclose(4409, "superseded")
    assert [closed.code for closed in woken] == [4409, 4409]
    await b.aclose()


async def test_a_cut_ends_both_ends_without_a_code() -> None:
    a, b = memory_transport_pair()
    await a.send(b"lost")
    a.cut()
    for end in (a, b):
        with pytest.raises(TransportClosed) as caught:
            await end.receive()
        assert caught.value.code is None


async def test_a_cancelled_send_breaks_the_transport(autojump_clock: trio.abc.Clock) -> None:
    a, b = memory_transport_pair(messages_max=0)
    with trio.move_on_after(1) as scope:
        await a.send(b"half")
    assert scope.cancelled_caught
    with pytest.raises(TransportClosed):
        await b.receive()


async def test_a_message_that_was_begun_without_a_wait_is_finished_in_its_place() -> None:
    a, b = memory_transport_pair(messages_max=1)
    assert a.send_nowait(b"one")
    assert not a.send_nowait(b"two")
    async with trio.open_nursery() as nursery:

        async def go_on() -> None:
            await a.finish()
            await a.send(b"three")

        nursery.start_soon(go_on)
        await wait_all_tasks_blocked()
        assert [await b.receive() for _ in range(3)] == [b"one", b"two", b"three"]


async def test_the_end_is_raised_in_finish() -> None:
    a, _ = memory_transport_pair()
    a.cut()
    assert not a.send_nowait(b"one")
    with pytest.raises(TransportClosed):
        await a.finish()
