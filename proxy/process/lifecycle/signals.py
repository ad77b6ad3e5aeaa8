"""Handles stop signals until the very end of the process's shutdown."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import attrs
import trio

# SIGHUP comes when the terminal closes.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Signals not read yet; more add no information.
UNREAD_MAX = 8
# Signals closer together than this are one: the process's own and its group's arrive within a millisecond. A
# human who repeats one takes longer.
AT_ONCE_S = 0.1


@attrs.define(eq=False)
class StopSignals:
    """An iterator over received signals; `first` is the first one of all."""

    _unread: trio.MemoryReceiveChannel[int]
    first: int | None = None

    @property
    def exit_status(self) -> int:
        """The exit status after an orderly stop: as a shell reports Ctrl-C, otherwise 0."""
        return 128 + signal.SIGINT if self.first == signal.SIGINT else 0

    def __aiter__(self) -> StopSignals:
        return self

    async def __anext__(self) -> int:
        return await anext(self._unread)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Yield SIGTERM, SIGINT and SIGHUP for the block; a repetition within AT_ONCE_S is dropped.

    An ignored SIGHUP, as under nohup(1), stays ignored. Unread signals are dropped. trio.open_signal_receiver
    would raise them again at its end. That would kill a process in its last writes if it gets two signals,
    its own and its group's, as timeout(1) sends them.
    """
    send, receive = trio.open_memory_channel[int](UNREAD_MAX)
    token = trio.lowlevel.current_trio_token()
    heard_at: dict[int, float] = {}
    signals = StopSignals(receive)

    def deliver(number: int) -> None:
        now = trio.current_time()
        if now - heard_at.get(number, -math.inf) < AT_ONCE_S:
            return
        heard_at[number] = now
        with suppress(trio.WouldBlock, trio.ClosedResourceError):
            send.send_nowait(number)

    def handle(number: int, _: FrameType | None) -> None:
        if signals.first is None:
            signals.first = number
        token.run_sync_soon(deliver, number)

    with send, receive:
        taken = list(STOP_SIGNALS)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            taken.remove(signal.SIGHUP)
        before = {number: signal.signal(number, handle) for number in taken}
        try:
            yield signals
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
