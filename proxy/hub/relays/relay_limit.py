"""How many relays of a cluster may be here, and which: decided when one more has come.

A relay's key is in each of its pods, and whoever has a copy can connect as one more of them. So their number
is limited, those that go away not counted, and nobody takes the place of one that is alive: of two processes
under one instance's name the first stays. Alive is who answers. A half-open connection, or one whose machine
is gone, does not, and is ended as soon as somebody stands in line behind it.
"""

from __future__ import annotations

import attrs
import trio

from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.process.plural import counted

# Relays answer within a round trip. A link that is so slow has lost most of its streams' patience, too.
ANSWER_S = 5.0


class RelayRefusedError(Exception):
    """A relay may not come in now; the message is for its log, and for the trail."""


@attrs.frozen
class Places:
    """The rule of one hub: so many relays of a cluster, besides those that go away."""

    registry: Registry
    relays_per_cluster: int

    async def make_room(self, relay: LiveRelay) -> None:
        """Have whoever stands in the relay's way answer, and end those that do not; waits ANSWER_S at most.

        Cancelled, those that have not answered yet stay.
        """
        in_the_way = self._in_the_way(relay)
        async with trio.open_nursery() as nursery:
            for other in in_the_way:
                nursery.start_soon(_end_unless_it_answers, other, relay)

    def check(self, relay: LiveRelay) -> None:
        """Raise RelayRefusedError if anybody still stands in the relay's way; never waits."""
        in_the_way = self._in_the_way(relay)
        if not in_the_way:
            return
        first = in_the_way[0]
        if first.instance == relay.instance:
            raise RelayRefusedError(
                f"another process is connected as relay {relay.instance} of cluster {relay.cluster_name}, "
                f"from {first.address}: give each an instance of its own"
            )
        names = ", ".join(sorted(other.instance for other in in_the_way))
        taken = f"{counted(len(in_the_way), 'relay')} here ({names})"
        raise RelayRefusedError(
            f"cluster {relay.cluster_name} has {taken}, the limit is "
            f"{self.relays_per_cluster}: stop one of them, or raise limits.relays_per_cluster at the hub"
        )

    def _in_the_way(self, relay: LiveRelay) -> list[LiveRelay]:
        others = [
            other
            for other in self.registry.relays()
            if other.cluster_id == relay.cluster_id and other is not relay and other.stays
        ]
        for other in others:
            if other.instance == relay.instance:
                # The same process that dials again knows better than a socket that it left behind.
                return [other] if other.boot != relay.boot else []
        return others if len(others) >= self.relays_per_cluster else []


async def _end_unless_it_answers(other: LiveRelay, relay: LiveRelay) -> None:
    if other.instance == relay.instance and other.session.detached:
        other.end_with("another process of its name came while its connection was lost")
    elif not await other.session.answers(ANSWER_S):
        other.end_with(f"it did not answer within {ANSWER_S:.0f} s when {relay.instance} came")
