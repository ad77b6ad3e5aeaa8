"""The routes that this hub announces to the others: those of its own sessions."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.hub.peers.routes import Route
from proxy.hub.relays.registry import Registry


def local_routes(registry: Registry) -> Iterator[Route]:
    """Return a route for each session of this hub on which streams may be opened now."""
    for relay in registry.relays():
        session = relay.session
        if relay.usable or session.detached:
            yield Route(
                session=session.session_id,
                cluster=relay.cluster_id,
                instance=relay.instance,
                boot=relay.boot,
                version=relay.version,
                kid=relay.kid,
                address=relay.address,
                connected_at=relay.connected_at,
                streams=session.stream_count,
                leaving=session.draining,
                away=session.away,
                api_server=relay.statement.api_server,
            )
