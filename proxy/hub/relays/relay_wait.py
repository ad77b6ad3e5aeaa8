"""Holds calls for clusters whose relays are expected.

They are after the hub's start and another hub's death, and while the link to their hub is dialled again. Such
a call waits a little instead of failing with "offline": the relay, or the hub, dials again within seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import trio

# How long one call waits. kubectl has no timeout of its own, but its user has little patience.
PARK_S = 5.0
# Waiting calls in all; further ones fail at once. Each holds a connection and its request's head.
PARKED_MAX = 2000
# How long after its start a hub waits for relays. Relays dial each second, refused ones within 10 s, and
# ARRIVALS_PER_S are accepted.
EXPECTED_S = 15.0
ARRIVALS_PER_S = 150


@attrs.define(eq=False)
class RelayWait:
    """The clusters whose relays are expected, and the calls that wait for them."""

    parked: int = 0
    _until: dict[str, float] = attrs.Factory(dict)
    _events: dict[str, trio.Event] = attrs.Factory(dict)

    def expect(self, cluster_ids: Iterable[str]) -> None:
        """Allow calls to wait for these clusters, for the time that all their relays need to reconnect."""
        found = set(cluster_ids)
        until = trio.current_time() + EXPECTED_S + len(found) / ARRIVALS_PER_S
        self._until.update(dict.fromkeys(found, until))

    def arrived(self, cluster_id: str) -> None:
        """Wake the calls that wait for this cluster; later calls do not wait for it."""
        if self._until:
            self._until.pop(cluster_id, None)
        event = self._events.pop(cluster_id, None)
        if event is not None:
            event.set()

    async def wait_for(self, cluster_id: str) -> bool:
        """Wait for a relay of the cluster, PARK_S at most; return whether one has connected.

        Returns False at once when none is expected, or PARKED_MAX calls wait already.
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
