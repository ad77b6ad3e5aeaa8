"""Turns that the readers of all sessions take one after the other, so that no pass of the loop has two.

A session's frames are taken in by its reader, in the loop that everybody else waits for. One that brings very
many of them is made to let the others pass; were it only that, a hundred such sessions would each have their
part in the same pass. So whoever has had more than its share waits for its turn here, and those that bring
little are not among the waiting.
"""

from __future__ import annotations

import trio

__all__ = ["turns"]

_turns: trio.lowlevel.RunVar[trio.StrictFIFOLock] = trio.lowlevel.RunVar("tunnel.turns")


def turns() -> trio.StrictFIFOLock:
    """Return what a turn is had by: to acquire it and release it at once.

    Acquiring takes a pass at least, and whoever is next acquires it in the pass behind that.
    """
    try:
        return _turns.get()
    except LookupError:
        lock = trio.StrictFIFOLock()
        _turns.set(lock)
        return lock
