"""Counted memory: every byte that a session holds is charged to an account.

A session's account has the process's as its parent, and each charge is charged to both. The fuller one
decides (PROTOCOL.md, "Memory"):

    above 3/4     it is short: new OPENs of busy groups are REFUSED
    at the limit  the group that holds the most loses streams (RESET, OVERLOADED), the longest unmoved first

The process's account also has what no session holds (`charge_outside`), as open calls take it for hours with
nothing on its way. Windows are judged by what that leaves, and by what sessions hold of it:

    below 1/2     they may grow
    from 1/2      they stay as they are
    above 3/4     nothing is granted beyond the initial one

Only payload is counted. A Python object costs more than its payload (about 1 KB a stream), but their number
is bounded by the limits on streams and contexts, so it is a constant of the formula and not a variable.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from operator import itemgetter
from typing import Protocol, TypeAlias

import attrs

# Eviction frees down to this share of the limit, so that the next byte does not evict again.
RELIEF_NUMERATOR, RELIEF_DENOMINATOR = 15, 16


class Level(enum.IntEnum):
    """What there is for windows."""

    FREE = 0
    HALF = 1
    SQUEEZED = 2


class Holder(Protocol):
    """A stream, as memory sees it."""

    @property
    def held_bytes(self) -> int: ...
    @property
    def moved_at(self) -> float: ...
    @property
    def group(self) -> Hashable:
        """The owner of the bytes, the same in all sessions."""


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
    outside_bytes: int = attrs.field(init=False, default=0)
    """How much of that no session holds."""
    # Kept, since they are asked for often and change rarely.
    free_below: int = attrs.field(init=False)
    """From so many used bytes on it is not FREE."""
    squeezed_above: int = attrs.field(init=False)
    """How many may be used at most before it is SQUEEZED."""
    short_above: int = attrs.field(init=False)
    """The same for `short`."""
    _evictors: dict[Evictor, None] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        assert self.parent is None or self.parent.parent is None, "an account has one above it at most"
        self.short_above = self.limit_bytes * 3 // 4
        self._set_levels()

    def _set_levels(self) -> None:
        outside = self.outside_bytes
        left = self.limit_bytes - outside
        self.free_below = outside + left // 2
        self.squeezed_above = outside + left * 3 // 4

    def charge_outside(self, count: int) -> None:
        """Charge so many bytes that no session holds, or fewer than before where it is negative."""
        self.used_bytes += count
        self.outside_bytes += count
        assert self.outside_bytes >= 0
        self._set_levels()

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
        """At the limit, here or above."""
        if self.used_bytes >= self.limit_bytes:
            return True
        above = self.parent
        return above is not None and above.used_bytes >= above.limit_bytes

    @property
    def headroom_bytes(self) -> int:
        """What sessions may be charged until it is SQUEEZED; negative beyond."""
        least = self.squeezed_above - self.used_bytes
        return least if self.parent is None else min(least, self.parent.headroom_bytes)

    def level(self) -> Level:
        used = self.used_bytes
        if used < self.free_below:
            own = Level.FREE
        elif used <= self.squeezed_above:
            own = Level.HALF
        else:
            own = Level.SQUEEZED
        return own if self.parent is None else max(own, self.parent.level())

    @property
    def short(self) -> bool:
        """Whether groups that have much get no more, by this account or the one above."""
        if self.used_bytes > self.short_above:
            return True
        above = self.parent
        return above is not None and above.used_bytes > above.short_above

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
    """The evictions, in order, that free at least `excess` bytes (or all that there is).

    Each time the group that holds the most loses a stream. So a group that holds less than an equal part of
    all loses none while another holds more, however it moves its streams and however many it has.
    """
    groups: dict[Hashable, list[_Candidate]] = {}
    for evictor in evictors:
        for holder in evictor.holders():
            held = holder.held_bytes
            if held > 0:
                group = groups.get(key := holder.group)
                if group is None:
                    group = groups[key] = []
                group.append((held, holder, evictor))
    # The number decides between equal ones: what is in a group cannot be compared.
    largest = [
        (-sum(map(_held, group)), number, _in_order(group)) for number, group in enumerate(groups.values())
    ]
    heapq.heapify(largest)
    chosen: list[Callable[[], None]] = []
    while excess > 0 and largest:
        less, number, order = largest[0]
        held, holder, evictor = next(order)
        chosen.append(partial(evictor.evict, holder))
        excess -= held
        less += held
        if less:
            heapq.heapreplace(largest, (less, number, order))
        else:
            heapq.heappop(largest)
    return chosen


# Plain tuples, since there may be 30,000 at once.
_Candidate: TypeAlias = tuple[int, Holder, Evictor]
_held = itemgetter(0)


def _in_order(group: list[_Candidate]) -> Iterator[_Candidate]:
    """The order of eviction within a group. Of its largest holders (those with at least half of what the
    largest one has) the one that has not moved for the longest time goes first: it is the likeliest to be
    stuck, and the cheapest to lose.
    """
    group.sort(key=_held, reverse=True)
    start = 0
    while start < len(group):
        threshold = group[start][0] / 2
        stop = start
        while stop < len(group) and group[stop][0] >= threshold:
            stop += 1
        yield from sorted(group[start:stop], key=lambda candidate: candidate[1].moved_at)
        start = stop
