"""Counted memory: every byte that a session holds for somebody is charged to an account.

A session's account has the process's as its parent, which has none, and what is charged to one is charged to
both. The level of the fuller one decides (PROTOCOL.md, "Memory"):

    below 1/2     windows may grow
    from 1/2      they stay as they are
    above 3/4     nothing is granted beyond the initial window, new OPENs of busy groups are REFUSED
    at the limit  the group that holds the most loses streams (RESET, OVERLOADED), the longest unmoved first

Only payload is counted. A Python object costs more than its payload (about 1 KB a stream), but their number
is bounded by the limits on streams and contexts, so it is a constant of the formula and not a variable.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
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
    @property
    def group(self) -> Hashable:
        """Whose bytes they are, whatever session they are in."""


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

    Each time the group that holds the most loses one: so none that holds less than an equal part of all does
    while another holds more, however it moves its streams and however many it has.
    """
    groups: dict[Hashable, list[_Candidate]] = {}
    for evictor in evictors:
        for holder in evictor.holders():
            held = holder.held_bytes
            if held > 0:
                groups.setdefault(holder.group, []).append(_Candidate(held, holder, evictor))
    # The number decides between equal ones: what is in a group cannot be compared.
    largest = [
        (-sum(candidate.held for candidate in group), number, _in_order(group))
        for number, group in enumerate(groups.values())
    ]
    heapq.heapify(largest)
    chosen: list[Callable[[], None]] = []
    while excess > 0 and largest:
        less, number, order = largest[0]
        candidate = next(order)
        chosen.append(candidate.evict)
        excess -= candidate.held
        less += candidate.held
        if less:
            heapq.heapreplace(largest, (less, number, order))
        else:
            heapq.heappop(largest)
    return chosen


@attrs.frozen(eq=False)
class _Candidate:
    held: int
    holder: Holder
    evictor: Evictor

    def evict(self) -> None:
        self.evictor.evict(self.holder)


def _in_order(group: list[_Candidate]) -> Iterator[_Candidate]:
    """Who goes first of a group: of its largest, those with at least half of what the largest one has, the
    one that has not moved for the longest time. It is the likeliest to be stuck, and the cheapest to do
    without.
    """
    group.sort(key=lambda candidate: candidate.held, reverse=True)
    start = 0
    while start < len(group):
        threshold = group[start].held / 2
        stop = start
        while stop < len(group) and group[stop].held >= threshold:
            stop += 1
        yield from sorted(group[start:stop], key=lambda candidate: candidate.holder.moved_at)
        start = stop
