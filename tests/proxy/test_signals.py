from __future__ import annotations

import os
import signal

import trio
import trio.testing

from proxy.signals import UNREAD_MAX, stop_signals


async def test_signals_come_in_their_order_and_those_that_nobody_reads_end_nothing() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with trio.fail_after(5), stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await anext(signals) == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert await anext(signals) == signal.SIGINT
        for _ in range(2 * UNREAD_MAX):
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
