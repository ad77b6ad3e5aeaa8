"""A connection whose peer takes nothing, as far as the kernel lets that be seen."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel.net.tcp import TCPStream

# How long it has to stay full.
SETTLED_S = 0.05


async def clog(stream: TCPStream, send: Callable[[], object]) -> None:
    """Send until the kernel takes no more, and has no room a moment later either.

    What it took it hands to the receiver's socket when it gets to it, and on a busy machine that is later.
    """
    while True:
        while send():
            pass
        with trio.move_on_after(SETTLED_S) as settled:
            await stream.wait_send_all_might_not_block()
        if settled.cancelled_caught:
            return
