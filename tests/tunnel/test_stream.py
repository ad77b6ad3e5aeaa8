from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from tests.tunnel.pairs import open_pair
from tunnel import Processed, Settings, Stream, StreamCode, StreamReset
from tunnel.protocol.errors import LocalProtocolError
from tunnel.stream import QUEUE_HIGH_BYTES

BOTH_WAYS = pytest.mark.parametrize("opener_first", [True, False], ids=["opener", "acceptor"])


async def clog(stream: Stream) -> None:
    """Send until the next byte would have to wait."""
    while True:
        with trio.move_on_after(0.5) as scope:
            await stream.wait_send_all_might_not_block()
        if scope.cancelled_caught:
            return
        await stream.send_all(b"x" * 16384)


async def test_streams_pass_the_suite_of_trio(autojump_clock: trio.testing.MockClock) -> None:
    async with AsyncExitStack() as stack:
        pair = await stack.enter_async_context(open_pair())

        async def make() -> tuple[Stream, Stream]:
            a, b = await pair.streams()
            # The suite wants what a socket does: leaving it is the end of its bytes, and a clean one.
            a.ends_on_close = b.ends_on_close = True
            return a, b

        async def make_clogged() -> tuple[Stream, Stream]:
            a, b = await make()
            await clog(a)
            await clog(b)
            return a, b

        await check_half_closeable_stream(make, make_clogged)
        await wait_all_tasks_blocked()
        assert pair.listener.stream_count == pair.dialer.stream_count == 0
