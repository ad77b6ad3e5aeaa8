"""What hundreds of connections bring at the same moment is not taken up in one pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import memory_stream_pair

from proxy.exchange.client import ClientConnection
from proxy.exchange.server import ServerConnection
from proxy.message.head import RequestHead, ResponseHead
from tests.tunnel.passes import counted_passes
from tunnel.net.fairness import TASKS_PER_PASS, fairness

Receive = Callable[[], Awaitable[bytes | ResponseHead]]


async def of_an_answer() -> Receive:
    far, near = memory_stream_pair()
    connection = ClientConnection(near)
    await connection.send_request(RequestHead.of(b"GET", b"/", ((b"host", b"a"),)))
    await far.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
    return connection.receive_head


async def of_an_answers_body() -> Receive:
    far, near = memory_stream_pair()
    connection = ClientConnection(near)
    await connection.send_request(RequestHead.of(b"GET", b"/", ((b"host", b"a"),)))
    await far.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
    await connection.receive_head()
    await far.send_all(b"ab")
    return connection.receive_body


async def of_a_requests_body() -> Receive:
    far, near = memory_stream_pair()
    connection = ServerConnection(near)
    await far.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
    await connection.next_request()
    await far.send_all(b"ab")
    return connection.receive_body


KINDS = pytest.mark.parametrize("receiver", [of_an_answer, of_an_answers_body, of_a_requests_body])


@KINDS
async def test_of_those_to_whom_something_comes_at_once_some_go_on_in_a_pass(
    receiver: Callable[[], Awaitable[Receive]], mock_clock: trio.testing.MockClock
) -> None:
    async def hear(receive: Receive) -> None:
        assert await receive()
        passes.note()

    receives = [await receiver() for _ in range(4 * TASKS_PER_PASS)]
    with counted_passes() as passes:
        async with trio.open_nursery() as nursery:
            for receive in receives:
                nursery.start_soon(hear, receive)
    assert passes.noted.total() == len(receives)
    assert passes.most <= TASKS_PER_PASS


@KINDS
async def test_whoever_is_cancelled_while_there_is_no_room_has_lost_nothing(
    receiver: Callable[[], Awaitable[Receive]], autojump_clock: trio.testing.MockClock
) -> None:
    receive = await receiver()
    common = fairness()
    # For good: no pass is the next one.
    common._tasks_left = 0
    with trio.move_on_after(1) as scope:
        await receive()
    assert scope.cancelled_caught
    common._tasks_left = 1
    assert await receive() in (b"ab", ResponseHead.of(200, b"OK", ((b"content-length", b"2"),)))
