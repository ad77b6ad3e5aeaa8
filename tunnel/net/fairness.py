"""What may be done in one pass of the scheduler, by all peers of a process together, and the turns for more.

A session's frames are taken in by its reader, in the loop that everybody else waits for. One that brings very
many of them is made to let the others pass; were it only that, a hundred such sessions would each have their
part in the same pass. So there is an amount that all of them have in common, which is more than honest ones
bring together, and for what goes beyond it they wait for their turns here, one in a pass. Those that bring
little are not among the waiting.

The same holds for the tasks that one peer can wake together: by the heads of answers, or the ends of watches,
that stand in one message, or by hundreds of connections on which it says something at the same time. Each
does little, and all of them would be one pass. So those that were woken and have much to do ask whether there
is room for them in this pass (`admits`), and wait for another one (`wait`) where there is none. Who has
brought about that hundreds wait delays none but his own: those of each peer wait in a lane of their own. All
who have not said who they are have one lane between them, or thousands of addresses would have thousands of
turns for each one of an agent.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeVar

import trio

from tunnel.net.waker import Waker

__all__ = [
    "SLICE_S",
    "SMALL_PIECE_BYTES",
    "SPARE_FRAMES",
    "SPELL_S",
    "STEP_S",
    "TASKS_PER_PASS",
    "TASKS_PER_PASS_MAX",
    "Slices",
    "Turns",
    "Unknown",
    "in_slices",
    "turns",
]

# Together in a spell: 3 ms of the dearest. A hub that is busy with nothing but small requests takes in 400.
SPARE_FRAMES = 512
SPELL_S = 0.010
# What a woken task does, up to its next wait: 0.1 to 0.3 ms for a head, a handshake, or the end of a call.
TASKS_PER_PASS = 16
# Where passes are long, as beside many downloads, more of them go on in each, or they would starve: one for
# each STEP_S of the pass before.
STEP_S = 0.0005
TASKS_PER_PASS_MAX = 32
# Whoever was woken for more bytes than that does not ask: so many cannot come in a pass for hundreds, and a
# large body would pay for it with each of its pieces.
SMALL_PIECE_BYTES = 4096
# Of whoever looks at thousands of calls: what a look takes may be a microsecond, or a policy's conditions.
SLICE_S = 0.002

T = TypeVar("T")
U = TypeVar("U")


class Unknown(NamedTuple):
    """A peer of which only the address is known."""

    place: str


class Turns:
    """Those of one run of trio."""

    def __init__(self) -> None:
        self._taken = False
        self._lined_up = _Lanes()
        self._spare = 0
        self._spell_ends_at = -math.inf
        self._room = TASKS_PER_PASS
        self._waiting = _Lanes()
        self._renewer: Waker | None = None

    def spare(self, now: float) -> int:
        """How many frames are left for all in this spell."""
        if now >= self._spell_ends_at:
            self._spare, self._spell_ends_at = SPARE_FRAMES, now + SPELL_S
        return self._spare

    def take(self, frames: int) -> None:
        """So many were taken. If that is more than were left, who brings little does not wait for it."""
        self._spare = self._spare - frames if frames < self._spare else 0

    async def turn(self, peer: Hashable = None) -> None:
        """Wait for a turn: for a pass at least, and whoever is next has its turn in the pass behind that.

        `peer` is who has brought it about; one after the other has a turn, however much it brings.
        """
        if self._taken:
            await self._lined_up.park(peer)
        else:
            self._taken = True
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                self._pass_on()
                raise
        self._pass_on()

    def _pass_on(self) -> None:
        self._taken = self._lined_up.unpark(1) > 0

    def admits(self) -> bool:
        """Whether there is room in this pass for the task that asks; where there is not, it is to `wait`."""
        if not self._room:
            return False
        self._room -= 1
        if not self._room:
            self._renew_soon()
        return True

    async def wait(self, peer: Hashable = None) -> None:
        """Wait for a pass with room, behind those that wait already; for `peer` see `turn`."""
        await self._waiting.park(peer)

    def _renew_soon(self) -> None:
        if self._renewer is None:
            self._renewer = Waker("one task renews the room")
            trio.lowlevel.spawn_system_task(self._renew, self._renewer)
        else:
            self._renewer.unpark()

    async def _renew(self, spot: Waker) -> None:
        """Make room again in each pass behind one that has none left."""
        before = trio.current_time()
        while True:
            now = trio.current_time()
            room = max(TASKS_PER_PASS, min(TASKS_PER_PASS_MAX, int((now - before) / STEP_S)))
            before = now
            self._room = room - self._waiting.unpark(room)
            if self._room:
                await spot.park()
                before = trio.current_time()
            else:
                await trio.lowlevel.checkpoint()


class _Lanes:
    """Tasks that wait, those of each peer in a lane: of each lane one goes on, and then of the next."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[Hashable, trio.lowlevel.ParkingLot | _Lanes] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    async def park(self, peer: Hashable) -> None:
        key = Unknown if isinstance(peer, Unknown) else peer
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lanes() if key is Unknown else trio.lowlevel.ParkingLot()
        if isinstance(lane, _Lanes):
            assert isinstance(peer, Unknown)
            await lane.park(peer.place)
        else:
            await lane.park()

    def unpark(self, count: int) -> int:
        """Let so many go on; returns how many did."""
        left = count
        while left and self._lanes:
            peer, lane = self._lanes.popitem(last=False)
            # One that was cancelled may have left an empty lane.
            left -= lane.unpark(1) if isinstance(lane, _Lanes) else len(lane.unpark())
            if lane:
                self._lanes[peer] = lane
        return count - left


class Slices:
    """The time of a task that goes over all there is: a little of it in each pass."""

    def __init__(self) -> None:
        self._ends_at = time.perf_counter() + SLICE_S

    @property
    def over(self) -> bool:
        """Whether it is time for the `next` one."""
        return time.perf_counter() >= self._ends_at

    async def next(self) -> None:
        """Let the others have their turn."""
        await trio.lowlevel.checkpoint()
        self._ends_at = time.perf_counter() + SLICE_S


async def in_slices(function: Callable[[T], U], things: Iterable[T]) -> list[U]:
    """Return what `function` says of each of very many things; others have their turn meanwhile."""
    said: list[U] = []
    slices = Slices()
    for thing in things:
        if slices.over:
            await slices.next()
        said.append(function(thing))
    return said


_turns: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("tunnel.net.fairness")


def turns() -> Turns:
    """Return those of this run."""
    try:
        return _turns.get()
    except LookupError:
        found = Turns()
        _turns.set(found)
        return found
