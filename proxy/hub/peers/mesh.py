"""The mesh: this hub's links to all others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

import attrs

from proxy.hub.peers.link import PeerLink
from proxy.hub.peers.routes import LocalRoutes, RouteFactory
from tunnel import Stream

if TYPE_CHECKING:
    from proxy.hub.membership.member import Member


class Membership(Protocol):
    """What the mesh needs of `membership.Members`; a test has one of its own."""

    @property
    def me(self) -> Member:
        """This hub."""

    def others(self) -> list[Member]:
        """The other hubs: neither gone nor dead, and not this boot."""

    def by_boot(self, boot: str) -> Member | None:
        """The hub of this boot, None once it is gone or dead."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call after each reading that differs."""


@attrs.define(eq=False)
class Mesh:
    """Keeps a link with each other hub, and hands the streams of the others to their handlers."""

    members: Membership
    local_routes: LocalRoutes
    route: RouteFactory
    links: list[PeerLink] = attrs.Factory(list)
    """All that have not ended, the oldest first. A hub may have two, while a new one replaces the first."""
    streams: dict[bytes, Callable[[PeerLink, Stream], None]] = attrs.Factory(dict)
    """Handlers of the others' streams under group 0, by their head. Called as by Session.on_stream."""
    answers: dict[str, Callable[[PeerLink, dict[str, object]], Awaitable[dict[str, object]]]] = attrs.Factory(
        dict
    )
    """Handlers of the others' questions, by name. A handler that raises AskFailed refuses, with that text."""
    on_call: Callable[[PeerLink, Stream], None] | None = None
    """Handler of the others' streams under the group of an agent; without one they are refused."""

    def link_to(self, boot: str) -> PeerLink | None:
        """Return the newest link to this boot of a hub that is up, or None."""

    def on_link(self, callback: Callable[[PeerLink], None]) -> None:
        """Call for each link that begins, before the other side's first stream."""

    def on_loss(self, callback: Callable[[PeerLink], None]) -> None:
        """Call for each link that has ended. A link that is only detached has not."""

    def routes_changed(self) -> None:
        """Tell the others at once that a session has come or gone."""

    def leave(self) -> None:
        """Tell the others that this hub leaves. Links go on, both sides still open streams, and dials are
        still accepted: calls, questions and resumptions have to reach a hub that drains."""

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Ids of living hubs that this one has to dial, and could not for UNREACHABLE_S."""

    async def run(self) -> NoReturn:
        """Keep the links until cancelled; then each ends with a GOAWAY."""
