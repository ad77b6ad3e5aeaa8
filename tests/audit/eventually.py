"""Waits for what a thread does."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        # The condition depends on a thread and a file, which trio cannot wait for.
        while True:
            await trio.sleep(0.005)
            if condition():
                return
