"""Routes: what relays a hub has, as it tells them to each other hub over their link.

Each side opens one stream of the kind `routes` and sends lines of JSON on it: `here` for a session that it
has, also when something of it has changed, `gone` for one that has ended, and `leaving` when it leaves itself.
All that it has come first, then `whole`, then what changes. A hub tells of its own sessions only, never of
those that others have told it of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from proxy.hub.peers.link import PeerLink


@attrs.frozen
class Route:
    """A relay's session at another hub."""

    session: str
    """Its id, which is the same at all hubs; an audit event names it."""
    cluster: str
    """The cluster's id."""
    instance: str
    boot: str
    """The relay's boot, not the hub's."""
    version: str
    kid: str
    """The id of the relay key that it authenticated with."""
    address: str
    connected_at: float
    """Epoch seconds."""
    streams: int
    """Streams open on the session, at most a second old."""
    leaving: bool
    """It drains, or its hub leaves: the last choice for a new call."""
    away: bool
    """It is silent, has lost its connection, or its API server does not answer: see LiveRelay.doubtful."""


class RouteHandle(Protocol):
    """What the other side of a received route is here: hop's PeerRelay in the Registry."""

    def update(self, route: Route) -> None:
        """Take what has changed of the route; its session is the same."""

    def end(self) -> None:
        """The session has ended, or its hub cannot be reached: remove the relay from the Registry."""


RouteFactory = Callable[["PeerLink", Route], RouteHandle]
"""Registers a relay for a new route. The link is the one to open its streams on."""

LocalRoutes = Callable[[], Iterable[Route]]
"""Returns the sessions that this hub has, called once a second and when they have changed."""
