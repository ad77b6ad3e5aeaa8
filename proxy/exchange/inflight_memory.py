"""What calls hold, counted in the memory that the tunnels have.

Theory of operation. A call holds its connections, for hours where nothing happens on them, and a piece or two
each way, which it has in hand for as long as a receiver stands still: up to 128 KiB as they came, as they are
framed, and as they are encrypted. It is nobody's window, so no tunnel counts it, and in direct mode there is
no tunnel. To count each call and each piece as it comes and goes would cost all of them; so one task looks at
all calls, every LOOK_S, and charges what it finds. In between the sum may be wrong by the calls that begin
meanwhile, and by what some can get held up with.

From there on PROTOCOL.md, "Memory", holds: when memory is short, the agent that holds the most makes room,
and of its calls and streams those that have not moved for the longest time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Generic, NoReturn, Protocol, TypeVar

import attrs
import trio

from tunnel import Memory
from tunnel.net.fairness import Chunks
from tunnel.protocol.memory import Holder

# Between two looks at all calls. A relay in direct mode begins 1,000 in that time at most, each with two
# handshakes of TLS: 80 MiB.
LOOK_S = 2.0
# So many are looked at in one go; then the others may run. A look takes 2 µs a call.
LOOKED_AT_PER_PASS = 500
# To make room can take more than a thousand calls at once, and each one's end some 50 µs, TLS and all.
ENDED_PER_PASS = 64


class HoldingCall(Protocol):
    """A call under way."""

    @property
    def group(self) -> Hashable:
        """Whose it is, as the streams of its agent have it."""

    @property
    def held_bytes(self) -> int:
        """What it takes of memory that no tunnel counts."""

    @property
    def evicted(self) -> bool:
        """Whether its stream has made room already, so that it has to end as well."""

    @property
    def moved_bytes(self) -> int:
        """What has crossed so far, both ways."""


CallT = TypeVar("CallT", bound=HoldingCall)


@attrs.frozen(eq=False)
class _Held(Generic[CallT]):
    """A call as it was at the last look (a Holder)."""

    call: CallT
    group: Hashable
    held_bytes: int
    moved_bytes: int
    moved_at: float


class HeldUp(Generic[CallT]):
    """The calls of a process, as its memory sees them (an Evictor); `end` is to end some for its sake."""

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
        """Look at the calls again and again, and end those that make room."""
        while True:
            if not self._doomed:
                with trio.CancelScope(deadline=trio.current_time() + LOOK_S) as self._nap:
                    await trio.sleep_forever()
            # Whoever needs the room has found it already, by what was charged.
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
        # By those that there are now: some have ended since the list was made.
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
        """See Evictor. The call is ended soon; what it holds is given back now."""
        assert isinstance(holder, _Held)
        if self._release(holder.call):
            if not self._doomed:
                self._nap.cancel()
            self._doomed.append(holder.call)
