"""Counted memory: every byte that a session holds for somebody is charged to an account.

A session's account has the process's as its parent, which has none, and what is charged to one is charged to
both. The level of the fuller one decides (PROTOCOL.md, "Memory"):

    below 1/2     windows may grow
    from 1/2      they stay as they are
    above 3/4     nothing is granted beyond the initial window, new OPENs of busy groups are REFUSED
    at the limit  the largest holders are RESET(OVERLOADED), the longest unmoved first

Only payload is counted. A Python object costs more than its payload (about 1 KB a stream), but their number
is bounded by the limits on streams and contexts, so it is a constant of the formula and not a variable.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Protocol

import attrs

# Eviction frees down to this share of the limit, so that the next byte does not evict again.
RELIEF_NUMERATOR, RELIEF_DENOMINATOR = 15, 16


class Level(enum.IntEnum):
    FREE = 0
    HALF = 1
    SQUEEZED = 2
    FULL = 3


class Holder(Protocol):
    """A stream, as memory sees it."""

    @property
    def held_bytes(self) -> int: ...
    @property
    def moved_at(self) -> float: ...


class Evictor(Protocol):
    """A connection, as memory sees it."""

    def holders(self) -> Iterable[Holder]: ...
    def evict(self, holder: Holder) -> None: ...


@attrs.define(eq=False)
class Memory:
    """One account. `parent` is the process's account, of which every session's is a part."""

    limit_bytes: int
    parent: Memory | None = None
    used_bytes: int = 0
    squeezed_above: int = attrs.field(init=False)
    """How many bytes may be used at most before it is SQUEEZED."""
    _evictors: dict[Evictor, None] = attrs.field(init=False, factory=dict)

    @squeezed_above.default
    def _three_quarters(self) -> int:
        return self.limit_bytes * 3 // 4

    def __attrs_post_init__(self) -> None:
        assert self.parent is None or self.parent.parent is None, "an account has one above it at most"

    # These are asked for every stream, and so they see to the parent themselves: a call costs as much as the
    # sum.

    def charge(self, count: int) -> bool:
        """Charge so many bytes; returns whether that leaves this account, or that above it, at its limit."""
        self.used_bytes += count
        full = self.used_bytes >= self.limit_bytes
        above = self.parent
        if above is not None:
            above.used_bytes += count
            if above.used_bytes >= above.limit_bytes:
                return True
        return full

    def release(self, count: int) -> None:
        self.used_bytes -= count
        # What is above holds no less than this.
        assert self.used_bytes >= 0
        above = self.parent
        if above is not None:
            above.used_bytes -= count

    @property
    def full(self) -> bool:
        """At the limit, here or above: `level() is FULL`."""
        if self.used_bytes >= self.limit_bytes:
            return True
        above = self.parent
        return above is not None and above.used_bytes >= above.limit_bytes

    @property
    def headroom_bytes(self) -> int:
        """What may be charged until it is SQUEEZED; negative beyond."""
        least = self.squeezed_above - self.used_bytes
        return least if self.parent is None else min(least, self.parent.headroom_bytes)

    def level(self) -> Level:
        used, limit = self.used_bytes, self.limit_bytes
        if used * 2 < limit:
            own = Level.FREE
        elif used <= self.squeezed_above:
            own = Level.HALF
        elif used < limit:
            own = Level.SQUEEZED
        else:
            own = Level.FULL
        return own if self.parent is None else max(own, self.parent.level())

    @property
    def squeezed(self) -> bool:
        """`level() >= SQUEEZED`."""
        if self.used_bytes > self.squeezed_above:
            return True
        above = self.parent
        return above is not None and above.used_bytes > above.squeezed_above

    def join(self, evictor: Evictor) -> None:
        """Let this account, and those above it, take memory back from `evictor`."""
        self._evictors[evictor] = None
        if self.parent is not None:
            self.parent.join(evictor)

    def leave(self, evictor: Evictor) -> None:
        self._evictors.pop(evictor, None)
        if self.parent is not None:
            self.parent.leave(evictor)

    def relieve(self) -> None:
        """Evict until no account is at its limit; does nothing below it."""
        if self.used_bytes >= self.limit_bytes:
            self._evict_down_to(self.limit_bytes * RELIEF_NUMERATOR // RELIEF_DENOMINATOR)
        if self.parent is not None:
            self.parent.relieve()

    def _evict_down_to(self, target: int) -> None:
        for evict in victims(self._evictors, self.used_bytes - target):
            evict()


def victims(evictors: Iterable[Evictor], excess: int) -> list[Callable[[], None]]:
    """Whom to evict, in order, so that at least `excess` bytes come free (or nothing is left to take).

    The largest holders are those with at least half of what the largest one has. Among them the one that
    has not moved for the longest time goes first: it is the likeliest to be stuck, and the cheapest to do
    without.
    """
    candidates = [
        (holder, evictor) for evictor in evictors for holder in evictor.holders() if holder.held_bytes > 0
    ]
    candidates.sort(key=lambda pair: pair[0].held_bytes, reverse=True)
    chosen: list[Callable[[], None]] = []
    start = 0
    while excess > 0 and start < len(candidates):
        threshold = candidates[start][0].held_bytes / 2
        stop = start
        while stop < len(candidates) and candidates[stop][0].held_bytes >= threshold:
            stop += 1
        for holder, evictor in sorted(candidates[start:stop], key=lambda pair: pair[0].moved_at):
            if excess <= 0:
                break
            chosen.append(_eviction(evictor, holder))
            excess -= holder.held_bytes
        start = stop
    return chosen


def _eviction(evictor: Evictor, holder: Holder) -> Callable[[], None]:
    return lambda: evictor.evict(holder)
