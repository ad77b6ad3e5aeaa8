"""Limits the relays of a cluster, and decides which relays stay when another one connects.

Each of a cluster's pods has the relay's key, and a thief of the key can connect as one more relay. So their
number is limited, not counting relays that drain. A live relay is never displaced: of two processes with one
instance name, the first stays. A relay is live if it answers a probe. A half-open connection, or one to a
machine that is gone, does not, and is ended when another relay needs its slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias

import attrs
import trio

from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.store import Store
from proxy.process.plural import counted

# Relays answer within a round trip. On a slower link most streams have timed out already.
ANSWER_S = 5.0
# The last write about a relay, also while the hub stops.
LAST_NOTE_S = 1.0

NoteRelay: TypeAlias = Callable[[Callable[[Store], str | None]], Awaitable[str | None]]
"""Write to the store that a relay connected or disconnected; None if it was not written."""


class RelayRefusedError(Exception):
    """A relay is not accepted now; the message is for its log, and for the trail."""


class RelayLimit(Protocol):
    """Relays per cluster: of one hub alone, or of all hubs."""

    def admitted(self, relay: LiveRelay) -> AbstractAsyncContextManager[None]:
        """Hold a slot for the relay during the block; raises RelayRefusedError."""
        ...

    async def connected(self, relay: LiveRelay) -> str:
        """Note that an admitted relay is registered; returns what is new about it."""
        ...


@attrs.frozen
class LocalRelayLimit:
    """The limit of a hub that is alone: its sessions in memory decide."""

    registry: Registry
    relays_per_cluster: int
    note: NoteRelay

    @asynccontextmanager
    async def admitted(self, relay: LiveRelay) -> AsyncIterator[None]:
        """Hold a slot for the relay; raises RelayRefusedError.

        Relays that conflict with it are probed, and those that do not answer within ANSWER_S are ended. When
        cancelled, relays that have not answered yet stay. Nothing waits between the decision and the block.
        """
        async with trio.open_nursery() as nursery:
            for other in self._conflicting(relay):
                nursery.start_soon(end_unless_it_answers, other, relay.instance)
        self._check(relay)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_NOTE_S):
                await self.note(
                    lambda store: store.relay_disconnected(relay.cluster_id, relay.instance, relay.boot)
                )

    async def connected(self, relay: LiveRelay) -> str:
        """Note that a relay is connected."""
        contact = contact_of(relay)
        return await self.note(lambda store: store.relay_connected(contact)) or ""

    def _check(self, relay: LiveRelay) -> None:
        conflicting = self._conflicting(relay)
        if not conflicting:
            return
        first = conflicting[0]
        if first.instance == relay.instance:
            raise two_processes(relay, first.address)
        raise too_many_relays(relay, {other.instance for other in conflicting}, self.relays_per_cluster)

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


def contact_of(relay: LiveRelay) -> RelayContact:
    """Return what the store keeps of a relay."""
    return RelayContact(relay.cluster_id, relay.instance, relay.boot, relay.version, relay.address)


async def end_unless_it_answers(other: LiveRelay, instance: str) -> None:
    """Probe a relay whose slot an instance wants, and end it if it does not answer within ANSWER_S."""
    if other.instance == instance and other.session.detached:
        other.end_with("another process of the same instance connected while its connection was lost")
    elif not await other.session.answers(ANSWER_S):
        other.end_with(f"no answer within {ANSWER_S:.0f} s when relay {instance} connected")


def two_processes(relay: LiveRelay, address: str, hub: str = "") -> RelayRefusedError:
    """The refusal of a second process of an instance; the first one is connected from an address."""
    where = f" at hub {hub}" if hub else ""
    return RelayRefusedError(
        f"another process is connected{where} as relay {relay.instance} of cluster {relay.cluster_name}, "
        f"from {address}: give each its own instance name"
    )


def too_many_relays(relay: LiveRelay, instances: Collection[str], limit: int) -> RelayRefusedError:
    """The refusal of a relay above the limit, beside these instances."""
    taken = f"{counted(len(instances), 'relay')} here ({', '.join(sorted(instances))})"
    return RelayRefusedError(
        f"cluster {relay.cluster_name} has {taken}, the limit is "
        f"{limit}: stop one of them, or raise limits.relays_per_cluster at the hub"
    )
