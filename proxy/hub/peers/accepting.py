"""Accepts the connections of the hubs that dial this one: for a link that goes on, or for a new one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import attrs

from audit.ids import new_eid
from proxy.hub.membership.member import Member
from proxy.hub.peers.dialling import Membership
from proxy.hub.peers.link import PeerLink
from tunnel import (
    RESUME,
    RESUME_TTL_S,
    CloseCode,
    Hello,
    Memory,
    Rejected,
    Role,
    Settings,
    Transport,
    Welcome,
    hear_hello,
    open_session,
    read_hello,
)

# Of one process: the current link, one that it replaces, and some that this hub has not lost yet.
LINKS_OF_A_HUB_MAX: Final = 8


@attrs.frozen(eq=False)
class Accepting:
    """The listener's side of links."""

    members: Membership
    links: list[PeerLink]
    """The mesh's."""
    settings: Settings
    memory: Memory | None
    keep: Callable[[PeerLink], Awaitable[None]]
    """Serves a link until it has ended."""

    def _welcome(self, member: Member, hello: Hello) -> Welcome:
        if hello.resume is not None:
            raise Rejected(CloseCode.RESUME_UNKNOWN, "this hub does not have that link, or no longer has it")
        if sum(link.member.boot == member.boot for link in self.links) >= LINKS_OF_A_HUB_MAX:
            raise Rejected(CloseCode.LIMITS, f"it has {LINKS_OF_A_HUB_MAX} links to this hub, the limit")
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
            answer_hello=partial(self._welcome, member),
            settings=self.settings,
            memory=self.memory,
        ) as session:
            self._give_up_lost(member)
            await self.keep(PeerLink(member, session))

    def _give_up_lost(self, member: Member) -> None:
        """End the links that a hub has given up: it has begun another one, and they wait for its dial."""
        for link in list(self.links):
            if link.member.boot == member.boot and link.session.detached and not link.session.draining:
                link.session.abandon("the other hub has begun another link")
