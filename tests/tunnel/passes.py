"""How much of something is done in one pass of the scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Passes(trio.abc.Instrument):
    """Counts what is noted, pass by pass."""

    def __init__(self) -> None:
        self.noted: Counter[int] = Counter()
        self._number = 0

    def after_io_wait(self, timeout: float) -> None:
        self._number += 1

    def note(self) -> None:
        self.noted[self._number] += 1

    @property
    def most(self) -> int:
        """The most that was noted in one pass."""
        return max(self.noted.values())


@contextmanager
def counted_passes() -> Iterator[Passes]:
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    try:
        yield passes
    finally:
        trio.lowlevel.remove_instrument(passes)
