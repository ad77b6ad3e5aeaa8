"""Charges the memory of calls to the same budget as the tunnels' memory.

Theory of operation. A call holds its connections, possibly idle for hours. It also holds a piece or two in
each direction, for as long as a receiver stalls: up to 128 KiB as received, as framed, and as encrypted. No
stream's window covers these bytes, so no tunnel counts them, and in direct mode there is no tunnel. Counting
each call and each piece at once would slow down every call. So one task measures all calls every LOOK_S, and
charges the result. Between two measurements the sum misses calls that begin and receivers that stall.

PROTOCOL.md, "Memory", describes the eviction. When memory is short, calls and streams of the agent that holds
the most are evicted. Those without progress for the longest time are first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Generic, NoReturn, Protocol, TypeVar

import attrs
import trio

from tunnel import Memory
from tunnel.net.fairness import Chunks
from tunnel.protocol.memory import Holder

# The interval of measurements. A relay in direct mode begins at most 1,000 calls in that time, each with two
# TLS handshakes: 80 MiB.
LOOK_S = 2.0
# Calls measured in one loop pass, before other tasks run. A call takes 2 µs.
LOOKED_AT_PER_PASS = 500
# Calls ended in one loop pass. An eviction can end more than a thousand; each takes some 50 µs with its TLS.
ENDED_PER_PASS = 64


class HoldingCall(Protocol):
    """An open call."""

    @property
    def group(self) -> Hashable:
        """Its agent's group, the same as of the agent's streams."""

    @property
    def held_bytes(self) -> int:
        """The memory that it uses and no tunnel counts."""

    @property
    def evicted(self) -> bool:
        """Whether its stream was evicted already, so that the call has to end as well."""

    @property
    def moved_bytes(self) -> int:
        """The bytes transferred so far, in both directions."""


CallT = TypeVar("CallT", bound=HoldingCall)


@attrs.frozen(eq=False)
class _Held(Generic[CallT]):
    """A call at the last measurement (a Holder)."""

    call: CallT
    group: Hashable
    held_bytes: int
    moved_bytes: int
    moved_at: float


class HeldUp(Generic[CallT]):
    """The memory of a process's calls (an Evictor); `end` ends evicted calls."""

    def __init__(
        self,
        memory: Memory,
        calls: Iterable[CallT],
        end: Callable[[Sequence[CallT]], Awaitable[object]],
    ) -> None:
        self._memory = memory
        self._calls = calls
        self._end = end
        self._held: dict[CallT, _Held[CallT]] = {}
        self._doomed: list[CallT] = []
        self._nap = trio.CancelScope()
        memory.join(self)

    async def run(self) -> NoReturn:
        """Measure the calls every LOOK_S, and end the evicted ones."""
        while True:
            if not self._doomed:
                with trio.CancelScope(deadline=trio.current_time() + LOOK_S) as self._nap:
                    await trio.sleep_forever()
            # `evict` has already credited the memory of these calls: no new measurement is needed.
            if not self._doomed:
                await self._look()
            doomed = self._doomed[:ENDED_PER_PASS]
            del self._doomed[:ENDED_PER_PASS]
            if doomed:
                await self._end(doomed)

    async def _look(self) -> None:
        now, calls = trio.current_time(), list(self._calls)
        for at in range(0, len(calls), LOOKED_AT_PER_PASS):
            for call in calls[at : at + LOOKED_AT_PER_PASS]:
                size = call.held_bytes
                if call.evicted:
                    self._doomed.append(call)
                if size:
                    self._hold(call, size, now)
                elif self._held:
                    self._release(call)
            await trio.lowlevel.checkpoint()
        # The current set of calls, not the list: some have ended since.
        gone, slices = self._held.keys() - set(self._calls), Chunks()
        while gone:
            if slices.over:
                await slices.next()
            self._release(gone.pop())
        self._memory.relieve()

    def _hold(self, call: CallT, size: int, now: float) -> None:
        moved, before = call.moved_bytes, self._held.get(call)
        if before is not None:
            if before.moved_bytes == moved and before.held_bytes == size:
                return
            if before.moved_bytes == moved:
                now = before.moved_at
        self._memory.charge_outside(size if before is None else size - before.held_bytes)
        self._held[call] = _Held(call, call.group, size, moved, now)

    def _release(self, call: CallT) -> bool:
        held = self._held.pop(call, None)
        if held is None:
            return False
        self._memory.charge_outside(-held.held_bytes)
        return True

    def holders(self) -> Iterable[Holder]:
        """See Evictor."""
        return list(self._held.values())

    def evict(self, holder: Holder) -> None:
        """See Evictor. The call ends soon; its memory is credited now."""
        assert isinstance(holder, _Held)
        if self._release(holder.call):
            if not self._doomed:
                self._nap.cancel()
            self._doomed.append(holder.call)
