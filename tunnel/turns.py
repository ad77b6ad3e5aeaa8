"""What the readers of all sessions may take in at once, and the turns that they have for more.

A session's frames are taken in by its reader, in the loop that everybody else waits for. One that brings very
many of them is made to let the others pass; were it only that, a hundred such sessions would each have their
part in the same pass. So there is an amount that all of them have in common, which is more than honest ones
bring together, and for what goes beyond it they wait for their turns here, one in a pass. Those that bring
little are not among the waiting.
"""

from __future__ import annotations

import math

import trio

__all__ = ["SPARE_FRAMES", "SPELL_S", "Turns", "turns"]

# Together in a spell: 3 ms of the dearest. A hub that is busy with nothing but small requests takes in 400.
SPARE_FRAMES = 512
SPELL_S = 0.010


class Turns:
    """Those of one run of trio."""

    def __init__(self) -> None:
        self._lock = trio.StrictFIFOLock()
        self._spare = 0
        self._spell_ends_at = -math.inf

    def spare(self, now: float) -> int:
        """How many frames are left for all in this spell."""
        if now >= self._spell_ends_at:
            self._spare, self._spell_ends_at = SPARE_FRAMES, now + SPELL_S
        return self._spare

    def take(self, frames: int) -> None:
        """So many were taken. If that is more than were left, who brings little does not wait for it."""
        self._spare = self._spare - frames if frames < self._spare else 0

    async def turn(self) -> None:
        """Wait for a turn: for a pass at least, and whoever is next has its turn in the pass behind that."""
        async with self._lock:
            pass


_turns: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("tunnel.turns")


def turns() -> Turns:
    """Return those of this run."""
    try:
        return _turns.get()
    except LookupError:
        found = Turns()
        _turns.set(found)
        return found
