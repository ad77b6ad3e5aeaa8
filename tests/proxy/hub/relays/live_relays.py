"""Relays as the registry keeps them."""

from __future__ import annotations

from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.registry import LiveRelay
from tunnel import Session


def live(session: Session, instance: str = "relay-1", cluster: str = "c1") -> LiveRelay:
    contexts = TokenContexts(session, lambda principal: "token", tuple)
    return LiveRelay(cluster, "prod", instance, "boot", "1", "192.0.2.1", 0.0, session, contexts)
