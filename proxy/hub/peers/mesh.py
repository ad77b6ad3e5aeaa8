"""The mesh: this hub's links to all others.

Of two hubs one dials (`dials`), and tries again each second until there is a link or the other one is not
living any more. A link outlives its connection as a relay's session does: the side that has dialled it dials
again. When ids run out, or another session is asked for, the next link begins beside the old one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, NoReturn, Protocol

import attrs
import trio

from audit.ids import new_eid
from proxy.exchange.groups import HUB_GROUP
from proxy.hub.membership.member import ENDED, Member
from proxy.hub.peers.asks import Answer, Answerer, refuse
from proxy.hub.peers.link import ASK, ROUTES, PeerLink
from proxy.hub.peers.linking import Linking
from proxy.hub.peers.routes import Announcer, BadRoutesError, LocalRoutes, RouteFactory, RouteTable
from tunnel import (
    RESUME,
    RESUME_TTL_S,
    CloseCode,
    Hello,
    Memory,
    Rejected,
    Role,
    Settings,
    Stream,
    Transport,
    Welcome,
    hear_hello,
    open_session,
    read_hello,
)
from tunnel.net.readiness import Readiness

# A dial fails for a moment at each restart, and that is no news.
UNREACHABLE_S: Final = 5.0
# What the streams of a link get whose ids run out, as those of a relay's session do.
REPLACED_S: Final = 900.0
# How long its routes are told beside those of the next link, which is dialled at once.
TAKEOVER_S: Final = 5.0

_log = logging.getLogger("hawse.hub.peers")


class Membership(Protocol):
    """What the mesh needs of `membership.Members`; a test has one of its own."""

    @property
    def me(self) -> Member:
        """This hub."""

    def others(self) -> list[Member]:
        """The other hubs: neither gone nor dead, and not this boot."""

    def by_boot(self, boot: str) -> Member | None:
        """The hub of this boot in any state."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call after each reading that differs."""


Connect = Callable[[Member, str], AbstractAsyncContextManager[Transport]]
"""Connects to a hub, for the session of this id or a new one (""); raises LinkFailed. See PeerDialer."""


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
    links: list[PeerLink] = attrs.field(init=False, factory=list)
    """All that have not ended, the oldest first. A hub may have two, while a new one replaces the first."""
    streams: dict[bytes, Callable[[PeerLink, Stream], None]] = attrs.field(init=False)
    """Handlers of the others' streams under group 0, by their head. Called as by Session.on_stream."""
    on_call: Callable[[PeerLink, Stream], None] | None = attrs.field(init=False, default=None)
    """Handler of the others' streams under the group of an agent; without one they are refused."""
    _answerer: Answerer = attrs.field(init=False, factory=Answerer)
    _announcer: Announcer = attrs.field(init=False)
    _table: RouteTable = attrs.field(init=False)
    _on_link: list[Callable[[PeerLink], None]] = attrs.field(init=False, factory=list)
    _on_loss: list[Callable[[PeerLink], None]] = attrs.field(init=False, factory=list)
    _nursery: trio.Nursery = attrs.field(init=False)
    _linkings: dict[str, Linking] = attrs.field(init=False, factory=dict)
    """By boot, of the hubs that this one dials."""

    @streams.default
    def _own_streams(self) -> dict[bytes, Callable[[PeerLink, Stream], None]]:
        return {ROUTES: self._on_routes, ASK: self._on_ask}

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
        until = trio.current_time() - UNREACHABLE_S
        return tuple(
            sorted({each.member.hub for each in self._linkings.values() if each.failing_since < until})
        )

    def link_to(self, boot: str) -> PeerLink | None:
        """Return the newest link to this boot of a hub that is up, or None."""
        for link in reversed(self.links):
            if link.member.boot == boot and link.up:
                return link
        return None

    def on_link(self, callback: Callable[[PeerLink], None]) -> None:
        """Call for each link that begins, before the other side's first stream."""
        self._on_link.append(callback)

    def on_loss(self, callback: Callable[[PeerLink], None]) -> None:
        """Call for each link that has ended. A link that is only detached has not."""
        self._on_loss.append(callback)

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

    # --- who dials ---

    def dials(self, member: Member) -> bool:
        """Whether this hub has to dial the other one, by the rows of both: each side finds the same.

        One that has no address, or whose listener a newer process of the same hub has, dials the others. Of
        two that can be dialled, the one with the smaller id dials.
        """
        here, there = self._is_dialable(self.members.me), self._is_dialable(member)
        if here and there:
            return self.members.me.hub < member.hub
        return there

    def _is_dialable(self, member: Member) -> bool:
        rows = (self.members.me, *self.members.others())
        return bool(member.address) and not any(
            each.hub == member.hub and each.epoch > member.epoch for each in rows
        )

    def _wanted(self, boot: str) -> Member | None:
        """The row of a boot, while this hub has to dial it."""
        for member in self.members.others():
            if member.boot == boot:
                return member if member.living and self.dials(member) else None
        return None

    def _follow(self) -> None:
        """Act on the rows that have changed."""
        for link in list(self.links):
            row = self.members.by_boot(link.member.boot)
            if row is None or row.state in ENDED:
                link.session.end(CloseCode.FORBIDDEN, f"hub {link.member.hub} has ended, by its row")
            elif link.session.detached and not row.living:
                link.session.abandon(f"hub {link.member.hub} has not renewed its lease for {row.age_s:.0f} s")
        for member in self.members.others():
            if member.boot not in self._linkings and self._wanted(member.boot) is not None:
                self._nursery.start_soon(self._keep_linked, member)

    async def _keep_linked(self, member: Member) -> None:
        linking = self._linkings[member.boot] = Linking(
            member, self.connect, self._hello(), self.settings, self.memory, self._keep
        )
        try:
            await linking.run(partial(self._wanted, member.boot))
        finally:
            del self._linkings[member.boot]
        # It may be wanted again, while its last link ended.
        self._follow()

    # --- links ---

    def _hello(self) -> Hello:
        me = self.members.me
        return self.settings.stated_in(
            Hello(features=(RESUME,), instance=me.hub, boot_id=me.boot, software=me.software)
        )

    def _welcome(self, hello: Hello) -> Welcome:
        if hello.resume is not None:
            raise Rejected(CloseCode.RESUME_UNKNOWN, "this hub does not have that link, or no longer has it")
        me = self.members.me
        return Welcome(
            session_id=new_eid(),
            features=(RESUME,),
            resume_ttl_s=int(RESUME_TTL_S),
            replica=me.hub,
            boot_id=me.boot,
            software=me.software,
        )

    async def accept(self, member: Member, transport: Transport) -> None:
        """Serve the connection of a hub that has proved itself, until it is lost or its link has ended.

        Raises Rejected, SessionClosed, RemoteProtocolError.
        """
        greeting = await hear_hello(transport)
        resume = read_hello(greeting).resume
        for link in self.links:
            session = link.session
            if (
                resume is not None
                and (link.member.boot, session.session_id) == (member.boot, resume.session_id)
                and session.role is Role.LISTENER
                and not session.is_outdated(resume)
            ):
                if session.may_resume(resume):
                    await session.resume(transport, greeting)
                    return
                session.abandon("the other hub's state does not match this one's")
                break
        async with open_session(
            transport,
            Role.LISTENER,
            greeting=greeting,
            answer_hello=self._welcome,
            settings=self.settings,
            memory=self.memory,
        ) as session:
            await self._keep(PeerLink(member, session))

    async def _keep(self, link: PeerLink) -> None:
        """Serve a link until it has ended."""
        session, name = link.session, link.member.name
        if self.readiness is not None:
            session.flush_after(self.readiness)
        self.links.append(link)
        self._table.attach(link)
        reason = "this hub stops"
        _log.info("linked to hub %s at %s", name, session.peer_name)
        try:
            for call in self._on_link:
                call(link)
            session.on_stream(partial(self._dispatch, link))
            self._announcer.attach(link)
            # The row may have changed during the dial.
            self._follow()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_replaced, link)
                reason = await session.wait_closed()
                nursery.cancel_scope.cancel()
        finally:
            session.end(CloseCode.NORMAL, reason)
            _log.info("the link to hub %s has ended: %s", name, reason)
            self.links.remove(link)
            self._announcer.detach(link)
            self._table.lose(link)
            for call in self._on_loss:
                call(link)

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
