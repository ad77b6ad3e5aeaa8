"""Limits the relays of a cluster, and decides which relays stay when another one connects.

Each of a cluster's pods has the relay's key, and a thief of the key can connect as one more relay. So their
number is limited, not counting relays that drain. A live relay is never displaced: of two processes with one
instance name, the first stays. A relay is live if it answers a probe. A half-open connection, or one to a
machine that is gone, does not, and is ended when another relay needs its slot.
"""

from __future__ import annotations

import attrs
import trio

from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.process.plural import counted

# Relays answer within a round trip. On a slower link most streams have timed out already.
ANSWER_S = 5.0


class RelayRefusedError(Exception):
    """A relay is not accepted now; the message is for its log, and for the trail."""


@attrs.frozen
class RelayLimit:
    """The limit of one hub: relays per cluster, not counting those that drain."""

    registry: Registry
    relays_per_cluster: int

    async def probe_conflicting(self, relay: LiveRelay) -> None:
        """Probe the relays that conflict with this one, and end those that do not answer within ANSWER_S.

        When cancelled, relays that have not answered yet stay.
        """
        conflicting = self._conflicting(relay)
        async with trio.open_nursery() as nursery:
            for other in conflicting:
                nursery.start_soon(_end_unless_it_answers, other, relay)

    def check(self, relay: LiveRelay) -> None:
        """Raise RelayRefusedError if another relay conflicts with this one; never waits."""
        conflicting = self._conflicting(relay)
        if not conflicting:
            return
        first = conflicting[0]
        if first.instance == relay.instance:
            raise RelayRefusedError(
                f"another process is connected as relay {relay.instance} of cluster {relay.cluster_name}, "
                f"from {first.address}: give each its own instance name"
            )
        names = ", ".join(sorted(other.instance for other in conflicting))
        taken = f"{counted(len(conflicting), 'relay')} here ({names})"
        raise RelayRefusedError(
            f"cluster {relay.cluster_name} has {taken}, the limit is "
            f"{self.relays_per_cluster}: stop one of them, or raise limits.relays_per_cluster at the hub"
        )

    def _conflicting(self, relay: LiveRelay) -> list[LiveRelay]:
        others = [
            other
            for other in self.registry.relays()
            if other.cluster_id == relay.cluster_id and other is not relay and other.stays
        ]
        for other in others:
            if other.instance == relay.instance:
                # The same process has dialled again, so its old socket is dead.
                return [other] if other.boot != relay.boot else []
        return others if len(others) >= self.relays_per_cluster else []


async def _end_unless_it_answers(other: LiveRelay, relay: LiveRelay) -> None:
    if other.instance == relay.instance and other.session.detached:
        other.end_with("another process of the same instance connected while its connection was lost")
    elif not await other.session.answers(ANSWER_S):
        other.end_with(f"no answer within {ANSWER_S:.0f} s when relay {relay.instance} connected")
