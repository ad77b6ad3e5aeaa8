"""Clusters whose relays are on their way: a hub that starts knows who was there before.

A call for such a cluster waits a little instead of being told that the cluster is offline, which it is not
for its user: the relay dials again within seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import trio

# How long one call waits. kubectl has no timeout of its own, but whoever looks at it has.
PARK_S = 5.0
# All calls that wait; the next one is told at once. Each holds a connection and its request's head.
PARKED_MAX = 2000
# How long after its start a hub waits for relays at all. They dial each second, those it refuses within 10 s,
# and ARRIVALS_PER_S are let in.
EXPECTED_S = 15.0
ARRIVALS_PER_S = 150


@attrs.define(eq=False)
class Arrivals:
    """Which clusters are expected, and who waits for them."""

    parked: int = 0
    _until: dict[str, float] = attrs.Factory(dict)
    _events: dict[str, trio.Event] = attrs.Factory(dict)

    def expect(self, cluster_ids: Iterable[str]) -> None:
        """From now on these may be waited for, for as long as all their relays need to come."""
        found = set(cluster_ids)
        until = trio.current_time() + EXPECTED_S + len(found) / ARRIVALS_PER_S
        self._until.update(dict.fromkeys(found, until))

    def arrived(self, cluster_id: str) -> None:
        """A relay of the cluster is here; whoever waits goes on, and nobody waits for it any more."""
        if self._until:
            self._until.pop(cluster_id, None)
        event = self._events.pop(cluster_id, None)
        if event is not None:
            event.set()

    async def wait_for(self, cluster_id: str) -> bool:
        """Wait for a relay of the cluster, PARK_S at most; returns whether one has come.

        False at once when none is expected, or PARKED_MAX calls wait already.
        """
        until = self._until.get(cluster_id)
        if until is None or self.parked >= PARKED_MAX:
            return False
        if trio.current_time() >= until:
            del self._until[cluster_id]
            return False
        event = self._events.setdefault(cluster_id, trio.Event())
        self.parked += 1
        try:
            with trio.move_on_after(PARK_S):
                await event.wait()
        finally:
            self.parked -= 1
            if not event.is_set() and not event.statistics().tasks_waiting:
                self._events.pop(cluster_id, None)
        return event.is_set()
