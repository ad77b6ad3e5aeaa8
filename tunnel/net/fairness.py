"""The budget of a pass of trio's loop, shared by all peers of a process.

A session's reader takes in frames in the loop that every other task needs. A session that brings very many
frames has to let other tasks run in between. That is not enough when a hundred sessions do it in the same
pass. So all sessions share a budget of frames, larger than honest peers use together. A session over budget
waits here, and one such session goes on in each pass. Sessions that bring little do not wait.

The same holds for the tasks that one peer can wake together: by many answer heads or ends of watches in one
message, or by bytes on hundreds of connections at once. Each task does little, but all of them in one pass
would delay every other task. So a woken task that has much to do asks whether this pass has room for it
(`admits`), and otherwise waits for another pass (`wait`).

A flooding peer delays only its own tasks: waiting tasks queue by peer, and the queues are served one after
the other. All peers that have not authenticated share one queue. Otherwise thousands of addresses would get a
thousand times the share of one agent.
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
    "CHUNK_S",
    "FRAMES_PERIOD_S",
    "SHARED_FRAMES",
    "SMALL_PIECE_BYTES",
    "STEP_S",
    "TASKS_PER_PASS",
    "TASKS_PER_PASS_MAX",
    "Chunks",
    "Fairness",
    "UnknownPeer",
    "fairness",
    "in_chunks",
]

# The frames of all sessions in a period: 3 ms of the dearest. A hub that is busy with small requests takes
# in 400.
SHARED_FRAMES = 512
FRAMES_PERIOD_S = 0.010
# A woken task takes 0.1 to 0.3 ms up to its next wait, for a head, a handshake, or the end of a call.
TASKS_PER_PASS = 16
# Where passes are long, as beside many downloads, more tasks go on in each, or they would starve: one for
# each STEP_S of the pass before.
STEP_S = 0.0005
TASKS_PER_PASS_MAX = 32
# A task that was woken for more bytes than this does not ask: so many bytes cannot come for hundreds of
# tasks in a pass, and a large body would pay for the question with each of its pieces.
SMALL_PIECE_BYTES = 4096
# For work over thousands of calls. One of them may take a microsecond, or as long as a policy's conditions.
CHUNK_S = 0.002

T = TypeVar("T")
U = TypeVar("U")


class UnknownPeer(NamedTuple):
    """A peer that has not authenticated: only its address is known."""

    address: str


class Fairness:
    """The budget of one run of trio."""

    def __init__(self) -> None:
        self._alone = False
        self._wait_alone = _PeerQueues()
        self._frames_left = 0
        self._period_ends_at = -math.inf
        self._tasks_left = TASKS_PER_PASS
        self._waiting = _PeerQueues()
        self._renewer: Waker | None = None

    # --- frames ---

    def frames_left(self, now: float) -> int:
        """Return how many frames are left for all sessions in this period."""
        if now >= self._period_ends_at:
            self._frames_left, self._period_ends_at = SHARED_FRAMES, now + FRAMES_PERIOD_S
        return self._frames_left

    def take_frames(self, frames: int) -> None:
        """Take so many of them; more than are left take all."""
        self._frames_left = self._frames_left - frames if frames < self._frames_left else 0

    async def wait_alone(self, peer: Hashable = None) -> None:
        """Wait for a pass, one at least, in which no other caller of this goes on.

        `peer` caused the work; the peers are served one after the other, however much one of them brings.
        """
        if self._alone:
            await self._wait_alone.park(peer)
        else:
            self._alone = True
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                self._wake_next()
                raise
        self._wake_next()

    def _wake_next(self) -> None:
        self._alone = self._wait_alone.unpark(1) > 0

    # --- tasks ---

    def admits(self) -> bool:
        """Whether this pass has room for the calling task; otherwise it has to `wait`."""
        if not self._tasks_left:
            return False
        self._tasks_left -= 1
        if not self._tasks_left:
            self._renew_soon()
        return True

    async def wait(self, peer: Hashable = None) -> None:
        """Wait for a pass with room, behind tasks that wait already; for `peer` see `wait_alone`."""
        await self._waiting.park(peer)

    def _renew_soon(self) -> None:
        if self._renewer is None:
            self._renewer = Waker("one task renews the budget")
            trio.lowlevel.spawn_system_task(self._renew, self._renewer)
        else:
            self._renewer.unpark()

    async def _renew(self, waker: Waker) -> None:
        """Renew the budget in each pass behind one that used it up."""
        before = trio.current_time()
        while True:
            now = trio.current_time()
            tasks = max(TASKS_PER_PASS, min(TASKS_PER_PASS_MAX, int((now - before) / STEP_S)))
            before = now
            self._tasks_left = tasks - self._waiting.unpark(tasks)
            if self._tasks_left:
                await waker.park()
                before = trio.current_time()
            else:
                await trio.lowlevel.checkpoint()


class _PeerQueues:
    """Waiting tasks in a queue for each peer: one of a queue is woken, and then one of the next."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, trio.lowlevel.ParkingLot | _PeerQueues] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    async def park(self, peer: Hashable) -> None:
        key = UnknownPeer if isinstance(peer, UnknownPeer) else peer
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _PeerQueues() if key is UnknownPeer else trio.lowlevel.ParkingLot()
        if isinstance(queue, _PeerQueues):
            assert isinstance(peer, UnknownPeer)
            await queue.park(peer.address)
        else:
            await queue.park()

    def unpark(self, count: int) -> int:
        """Wake so many tasks; returns how many it woke."""
        left = count
        while left and self._queues:
            peer, queue = self._queues.popitem(last=False)
            # A task that was cancelled may have left an empty queue.
            left -= queue.unpark(1) if isinstance(queue, _PeerQueues) else len(queue.unpark())
            if queue:
                self._queues[peer] = queue
        return count - left


class Chunks:
    """The time of a task that goes over very many things: CHUNK_S in each pass."""

    def __init__(self) -> None:
        self._ends_at = time.perf_counter() + CHUNK_S

    @property
    def over(self) -> bool:
        """Whether it is time for the `next` one."""
        return time.perf_counter() >= self._ends_at

    async def next(self) -> None:
        """Let other tasks run."""
        await trio.lowlevel.checkpoint()
        self._ends_at = time.perf_counter() + CHUNK_S


async def in_chunks(function: Callable[[T], U], things: Iterable[T]) -> list[U]:
    """Return what `function` returns for each of very many things; other tasks run meanwhile."""
    results: list[U] = []
    chunks = Chunks()
    for thing in things:
        if chunks.over:
            await chunks.next()
        results.append(function(thing))
    return results


_fairness: trio.lowlevel.RunVar[Fairness] = trio.lowlevel.RunVar("tunnel.net.fairness")


def fairness() -> Fairness:
    """Return the Fairness of this run."""
    try:
        return _fairness.get()
    except LookupError:
        found = Fairness()
        _fairness.set(found)
        return found
