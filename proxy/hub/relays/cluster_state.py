"""The state of a cluster, in a word, for the agents that may reach it."""

from __future__ import annotations

from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.registry import Registry
from proxy.hub.store.entities import Cluster, Mode

ONLINE, OFFLINE = "online", "offline"
API_SERVER_DOWN = "API server down"
"""A relay is connected, and its API server does not answer it."""
UNKNOWN = "not tried"
"""In direct mode the hub dials no relay before the first call."""


def cluster_state(cluster: Cluster, registry: Registry, direct: DirectRelays) -> str:
    """Return one of the words above; sends nothing."""
    if cluster.mode is Mode.DIRECT:
        statement = direct.heard(cluster)
        if statement is None:
            return UNKNOWN if direct.is_new(cluster) else OFFLINE
    else:
        relay = registry.session(cluster.id)
        if relay is None:
            return OFFLINE
        statement = relay.statement
    return API_SERVER_DOWN if statement.api_server is False else ONLINE
