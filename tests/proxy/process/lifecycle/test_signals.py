from __future__ import annotations

import os
import signal

import pytest
import trio
import trio.testing

from proxy.process.lifecycle.signals import AT_ONCE_S, UNREAD_MAX, stop_signals


async def test_signals_arrive_in_order_and_unread_ones_have_no_effect(
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with trio.fail_after(5), stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await anext(signals) == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert await anext(signals) == signal.SIGINT
        for _ in range(2 * UNREAD_MAX):
            await trio.sleep(AT_ONCE_S)
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_signal_that_comes_twice_at_once_is_one(mock_clock: trio.testing.MockClock) -> None:
    """As by timeout: to the process and then to its group, when the first has been read already."""
    with stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await anext(signals) == signal.SIGTERM
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(AT_ONCE_S / 2)
        os.kill(os.getpid(), signal.SIGINT)
        assert await anext(signals) == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        assert await anext(signals) == signal.SIGTERM


@pytest.mark.parametrize(
    ("numbers", "status"),
    [((), 0), ((signal.SIGTERM,), 0), ((signal.SIGINT,), 130), ((signal.SIGTERM, signal.SIGINT), 0)],
)
async def test_the_exit_status_is_that_of_ctrl_c_where_it_came_first(
    numbers: tuple[int, ...], status: int
) -> None:
    with trio.fail_after(5), stop_signals() as signals:
        for number in numbers:
            os.kill(os.getpid(), number)
            assert await anext(signals) == number
    assert signals.exit_status == status


async def test_a_closed_terminal_stops_it_unless_sighup_is_ignored() -> None:
    for handler in (signal.SIG_DFL, signal.SIG_IGN):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with trio.fail_after(5), stop_signals() as signals:
                if handler is signal.SIG_DFL:
                    os.kill(os.getpid(), signal.SIGHUP)
                    assert await anext(signals) == signal.SIGHUP
                else:
                    # As nohup does.
                    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, before)
