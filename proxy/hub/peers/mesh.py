"""The mesh: this hub's links to all others.

Of two hubs one dials (proxy/hub/peers/dialling.py). A link outlives its connection as a relay's session does:
the side that has dialled it dials again. When ids run out, the next link begins beside the old one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import attrs
import trio

from proxy.exchange.groups import HUB_GROUP
from proxy.hub.membership.member import ENDED, Member
from proxy.hub.peers.accepting import Accepting
from proxy.hub.peers.asks import Answer, Answerer, refuse
from proxy.hub.peers.dialling import Connect, Dialling, Membership
from proxy.hub.peers.link import ASK, ROUTES, PeerLink
from proxy.hub.peers.links import HubLinks
from proxy.hub.peers.routes import Announcer, BadRoutesError, LocalRoutes, RouteFactory, RouteTable
from tunnel import (
    CloseCode,
    Memory,
    Role,
    Settings,
    Stream,
    Transport,
)
from tunnel.net.readiness import Readiness

# What the streams of a link get whose ids run out, as those of a relay's session do.
REPLACED_S: Final = 900.0
# How long its routes are announced beside those of the next link, which is dialled at once.
TAKEOVER_S: Final = 5.0

_log = logging.getLogger("hawse.hub.peers")


@attrs.define(eq=False)
class Mesh:
    """Keeps a link with each other hub, and hands the streams of the others to their handlers."""

    members: Membership
    connect: Connect
    local_routes: LocalRoutes
    route: RouteFactory
    memory: Memory | None = None
    """The process's account."""
    readiness: Readiness | None = None
    """Notices the agents' requests that are served without a task: their streams leave at the end of its
    pass."""
    settings: Settings = attrs.Factory(Settings)
    links: HubLinks = attrs.field(init=False, factory=HubLinks)
    streams: dict[bytes, Callable[[PeerLink, Stream], None]] = attrs.field(init=False)
    """Handlers of the others' streams under group 0, by their head. Called as by Session.on_stream."""
    on_call: Callable[[PeerLink, Stream], None] | None = attrs.field(init=False, default=None)
    """Handler of the others' streams under the group of an agent; without one they are refused."""
    _answerer: Answerer = attrs.field(init=False, factory=Answerer)
    _announcer: Announcer = attrs.field(init=False)
    _table: RouteTable = attrs.field(init=False)
    _nursery: trio.Nursery = attrs.field(init=False)
    _dialling: Dialling = attrs.field(init=False)
    _accepting: Accepting = attrs.field(init=False)

    @streams.default
    def _own_streams(self) -> dict[bytes, Callable[[PeerLink, Stream], None]]:
        return {ROUTES: self._on_routes, ASK: self._on_ask}

    @_dialling.default
    def _dialling_of_members(self) -> Dialling:
        return Dialling(self.members, self.connect, self.settings, self.memory, self._keep)

    @_accepting.default
    def _accepting_of_links(self) -> Accepting:
        return Accepting(self.members, self.links, self.settings, self.memory, self._keep)

    @_announcer.default
    def _announcer_of_routes(self) -> Announcer:
        return Announcer(self.local_routes)

    @_table.default
    def _table_of_routes(self) -> RouteTable:
        return RouteTable(self.route)

    @property
    def answers(self) -> dict[str, Answer]:
        """Handlers of the others' questions, by name. A handler that raises AskFailed refuses, with that
        text."""
        return self._answerer.answers

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Ids of living hubs that this one has to dial, and could not for UNREACHABLE_S."""
        return self._dialling.unreachable

    def routes_changed(self) -> None:
        """Tell the others at once that a session has come or gone."""
        self._announcer.changed()

    def leave(self, *, replaced: bool = False) -> None:
        """Tell the others that this hub leaves. Links go on, both sides still open streams, and dials are
        still accepted: calls, questions and resumptions have to reach a hub that drains.

        If another process has the listener now (`replaced`), links that this hub has not dialled end with
        their connection: no dial leads here any more.
        """
        self._announcer.leave()
        if replaced:
            for link in self.links:
                if link.session.role is Role.LISTENER:
                    link.session.forgo_resumption("no dial leads to a hub that was replaced")

    async def run(self) -> NoReturn:
        """Keep the links until cancelled; then each ends with a GOAWAY."""
        async with trio.open_nursery() as self._nursery:
            self.members.on_change(self._follow)
            self._follow()
            await self._announcer.run()
        raise AssertionError("the announcer never returns")

    def _follow(self) -> None:
        """Act on the rows that have changed."""
        for link in list(self.links):
            row = self.members.by_boot(link.member.boot)
            if row is None or row.state in ENDED:
                link.session.end(CloseCode.FORBIDDEN, f"hub {link.member.hub} has ended, by its row")
            elif link.session.detached and not row.living:
                link.session.abandon(f"hub {link.member.hub} has not renewed its lease for {row.age_s:.0f} s")
        self._dialling.follow(self._nursery)

    # --- links ---

    async def accept(self, member: Member, transport: Transport) -> None:
        """Serve the connection of a hub that has proved itself, until it is lost or its link has ended.

        Raises Rejected, SessionClosed, RemoteProtocolError.
        """
        await self._accepting.accept(member, transport)

    async def _keep(self, link: PeerLink) -> None:
        """Serve a link until it has ended."""
        session, name = link.session, link.member.name
        if self.readiness is not None:
            session.flush_after(self.readiness)
        self.links.append(link)
        self._table.attach(link)
        self.links.came_up()
        reason = "this hub stops"
        _log.info("linked to hub %s at %s", name, session.peer_name)
        try:
            session.on_stream(partial(self._dispatch, link))
            self._announcer.attach(link)
            # The row may have changed during the dial.
            self._follow()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_replaced, link)
                nursery.start_soon(self._note_losses, link)
                reason = await session.wait_closed()
                nursery.cancel_scope.cancel()
        finally:
            session.end(CloseCode.NORMAL, reason)
            _log.info("the link to hub %s has ended: %s", name, reason)
            self.links.remove(link)
            self._announcer.detach(link)
            self._table.lose(link)

    async def _note_losses(self, link: PeerLink) -> None:
        """Tell the routes of a link when it has lost its connection, and when it has another one."""
        while await link.session.wait_detached():
            self._table.away(link)
            if await link.session.wait_attached():
                self._table.back(link)
                self.links.came_up()

    async def _end_when_replaced(self, link: PeerLink) -> None:
        """End a link that was asked to open no more, once the next one has its place and it is quiet."""
        session = link.session
        if await session.wait_going_away() is None or session.closed:
            return
        # The side that dials may have said it, and learns by this that the next link is up to it.
        session.go_away(reason="the next link takes over")
        with trio.move_on_after(REPLACED_S):
            await trio.sleep(TAKEOVER_S)
            self._announcer.detach(link)
            await session.wait_quiet()
        session.end(CloseCode.NORMAL, "the next link has taken over")

    # --- streams of the others ---

    def _dispatch(self, link: PeerLink, stream: Stream) -> None:
        of_hub = stream.context.group == HUB_GROUP
        handler = self.streams.get(stream.head) if of_hub else self.on_call
        if handler is None:
            refuse(stream, "this hub does not serve that kind of stream")
        else:
            handler(link, stream)

    def _on_ask(self, link: PeerLink, stream: Stream) -> None:
        self._nursery.start_soon(self._answerer.answer, link, stream)

    def _on_routes(self, link: PeerLink, stream: Stream) -> None:
        self._nursery.start_soon(self._receive_routes, link, stream)

    async def _receive_routes(self, link: PeerLink, stream: Stream) -> None:
        try:
            await self._table.receive(link, stream)
        except BadRoutesError as error:
            link.session.end(CloseCode.PROTOCOL, f"its routes cannot be read: {error}")
