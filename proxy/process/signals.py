"""The signals by which a process is told to stop, taken to the very end of what it has to do."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import attrs
import trio

# The last one when the terminal goes.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Of signals that nobody has read yet; whoever sends more has been heard.
UNREAD_MAX = 8
# Whoever means it twice takes longer; a process's own signal and its group's are not a millisecond apart.
AT_ONCE_S = 0.1


@attrs.define(eq=False)
class StopSignals:
    """The signals that have come and were not read yet, and which of all was the first."""

    _unread: trio.MemoryReceiveChannel[int]
    first: int | None = None

    @property
    def exit_status(self) -> int:
        """What a process ends with that has stopped in order: as a shell has it after Ctrl-C, else 0."""
        return 128 + signal.SIGINT if self.first == signal.SIGINT else 0

    def __aiter__(self) -> StopSignals:
        return self

    async def __anext__(self) -> int:
        return await anext(self._unread)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """SIGTERM, SIGINT and SIGHUP as they come, for the block; the same one again within AT_ONCE_S is one.

    SIGHUP is left alone where it is ignored, as under nohup(1).
    What nobody reads is dropped. trio.open_signal_receiver raises it anew at its end, which would kill in its
    last writes a process that is told twice to stop (by its own signal and its group's, as timeout(1) does).
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
