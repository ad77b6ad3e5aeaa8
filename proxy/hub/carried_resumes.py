"""Resumes that come to another hub than the session's: their connections are carried over a link, unread.

A session cannot move to another hub. Behind a load balancer, a relay whose connection was cut reaches any of
the hubs. That hub verifies the relay's token, and asks the hub of the session for it on a stream of the kind
RESUME: one line of JSON (`Wanted`). The answer's head is HERE or UNKNOWN. After HERE, the stream has what the
relay's connection has inside TLS, from the request of the upgrade on, and the session's hub serves it as a
dial of its own: it verifies the token, records its use, and resumes.

The connection is carried for as long as it lasts. If this hub or the link ends, the relay has lost a
connection once more, and resumes by the next one.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

import attrs
import trio

from proxy.exchange.server import ServerConnection
from proxy.hub.calls.calls import CLIENT_LEFT
from proxy.hub.membership.member import Member
from proxy.hub.peers.link import RESUME, LinkDown, PeerLink, read_object
from proxy.hub.peers.streams import PeerStream
from proxy.hub.relay_dials import RelayDials, SessionAwayError, Wanted
from proxy.hub.relays.registry import Registry
from proxy.listener.unauthenticated import PENDING_S, network_of
from proxy.message.strict import BadRequest
from tunnel import Processed, Stream, StreamCode, StreamReset
from tunnel.net.fairness import UnknownPeer
from tunnel.websocket.upgrade import SESSION_HEADER

HERE: Final = b"here"
UNKNOWN: Final = b"unknown"
# A relay gives a dial up after 5 s (tunnel.dialing.resumption.RESUME_DIAL_S), and the session's hub may take
# 2 s to record its token.
ANSWER_S: Final = 2.0
# Connections that one link carries at once: a fleet of 1,500 relays behind three hubs, when the load balancer
# has cut all connections. Each has the window of one stream in each direction.
CARRIED_PER_LINK_MAX: Final = 1000
# Of the line that names the session: three names and an address.
LINE_BYTES_MAX: Final = 1024

_log = logging.getLogger("hawse.hub.relays")


class Membership(Protocol):
    """The part of `membership.Members` that carried resumes use."""

    @property
    def me(self) -> Member:
        """This hub."""
        ...

    def others(self) -> list[Member]:
        """The other boots that are not gone and not dead."""
        ...

    def of_hub(self, hub: str) -> list[Member]:
        """Those of one hub id, this one included, newest first."""
        ...

    async def read(self) -> None:
        """Return once all hubs have been read again."""
        ...


class Links(Protocol):
    """The part of `peers.HubLinks` that carried resumes use."""

    def link_to(self, boot: str) -> PeerLink | None:
        """The link to a boot that is up, or None."""
        ...


@attrs.frozen(eq=False)
class ResumeCarrier:
    """Finds the hub of a session that a relay wants to resume (RelayDials.carrier)."""

    members: Membership
    links: Links

    async def find(self, hub: str, wanted: Wanted) -> FoundSession | None:
        """Return a session at another hub; None if no hub has it.

        `hub` is the id that the relay names; a relay of an earlier version names none (""), and all hubs are
        asked. Raises SessionAwayError if a hub that may have the session cannot be asked now.
        """
        unasked, candidates = False, self._candidates(hub)
        for member in candidates:
            link = self.links.link_to(member.boot)
            if link is not None:
                with suppress(LinkDown, StreamReset, trio.TooSlowError):
                    stream = await _ask_for(link, wanted)
                    if stream is not None:
                        return FoundSession(stream)
                    continue
            unasked = True
        if unasked or await self._others_began(hub, candidates):
            raise SessionAwayError("the hub of this session cannot be reached now: ask again")
        return None

    async def _others_began(self, hub: str, before: Sequence[Member]) -> bool:
        """Whether a hub that may have the session has begun since the last reading; True if none can be read.

        A hub is in the table before it has a session. So after this reading, the relay's session is over.
        """
        known = {member.boot for member in before}
        with trio.move_on_after(ANSWER_S):
            await self.members.read()
            return any(member.boot not in known for member in self._candidates(hub))
        return True

    def _candidates(self, hub: str) -> Sequence[Member]:
        """Return the boots that may have the session. A hub that was replaced has two."""
        found = self.members.of_hub(hub) if hub else self.members.others()
        return [member for member in found if member.boot != self.members.me.boot]


async def _ask_for(link: PeerLink, wanted: Wanted) -> PeerStream | None:
    """Return a stream to a hub that has the session; None if it does not have it.

    Raises LinkDown, StreamReset, TooSlowError.
    """
    line = json.dumps(attrs.asdict(wanted), separators=(",", ":")).encode() + b"\n"
    stream = PeerStream(link.open(RESUME))
    answer = b""
    try:
        with trio.fail_after(ANSWER_S):
            await stream.send_all(line)
            answer = await stream.receive_head()
    finally:
        if answer != HERE:
            await trio.aclose_forcefully(stream)  # noqa: ASYNC102 - it waits for nothing
    return stream if answer == HERE else None


@attrs.frozen(eq=False)
class FoundSession:
    """A session at another hub, and a stream to that (RelayDials.Found)."""

    stream: PeerStream

    async def carry(self, connection: trio.abc.Stream, received: bytes) -> None:
        """Carry a relay's connection until it or the stream ends, beginning with what was `received`.

        Closes the stream; the connection is the caller's to close.
        """
        async with self.stream, trio.open_nursery() as nursery:

            async def pass_on(source: trio.abc.Stream, sink: trio.abc.Stream, data: bytes = b"") -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await sink.send_all(data)
                    while data := bytes(await source.receive_some()):
                        await sink.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(pass_on, connection, self.stream, received)
            nursery.start_soon(pass_on, self.stream, connection)


class CarriedStream(PeerStream):
    """A relay's connection that another hub carries; what was sent before it is closed still arrives."""

    async def aclose(self) -> None:
        """See PeerStream."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self.raw.write(b"", eof=True)
        await super().aclose()


@attrs.define(eq=False)
class CarriedResumes:
    """Serves the connections that other hubs carry to this one."""

    registry: Registry
    dials: RelayDials
    handlers: trio.Nursery
    _carried: Counter[PeerLink] = attrs.Factory(Counter)

    def accept(self, link: PeerLink, raw: Stream) -> None:
        """Serve a stream of the kind RESUME (Mesh.streams)."""
        if self._carried[link] >= CARRIED_PER_LINK_MAX:
            reason = f"the link carries {CARRIED_PER_LINK_MAX} connections of relays, the limit"
            raw.reset(StreamCode.REFUSED, processed=Processed.NO, reason=reason)
            raw.close_nowait()
            return
        self._carried[link] += 1
        self.handlers.start_soon(self._serve, link, raw)

    async def _serve(self, link: PeerLink, raw: Stream) -> None:
        """Serve one connection to its end. A fault in it is logged and affects nothing else of the hub."""
        try:
            async with CarriedStream(raw) as stream:
                with suppress(*CLIENT_LEFT):
                    await self._serve_stream(stream)
        except Exception:
            _log.exception("a connection that hub %s carries failed by a fault of ours", link.member.hub)
        finally:
            self._carried[link] -= 1
            if not self._carried[link]:
                del self._carried[link]

    async def _serve_stream(self, stream: CarriedStream) -> None:
        wanted = None
        with trio.move_on_after(ANSWER_S):
            wanted = await _receive_wanted(stream)
        if wanted is None:
            stream.raw.reset(StreamCode.PROTOCOL, processed=Processed.NO, reason="no line names a session")
            return
        if self.registry.find_session(wanted.cluster, wanted.session) is None:
            stream.raw.send_answer_nowait(UNKNOWN, eof=True)
            return
        stream.raw.send_answer_nowait(HERE)
        with ServerConnection(stream) as connection:
            connection.peer = UnknownPeer(network_of(wanted.address))
            # The other hub has verified the relay's token, but its bytes arrive at the relay's pace.
            with trio.move_on_after(PENDING_S) as scope, suppress(BadRequest):
                head = await connection.next_request()
                if head is not None and head.header(SESSION_HEADER) is not None:
                    known = partial(setattr, scope, "deadline", math.inf)
                    await self.dials.answer(connection, stream, head, known, wanted.address, carried=True)
            await connection.aclose()


async def _receive_wanted(stream: PeerStream) -> Wanted | None:
    """Receive the line that names a session; None for anything else."""
    received = b""
    while not received.endswith(b"\n"):
        data = await stream.receive_some()
        received += data
        if not data or len(received) > LINE_BYTES_MAX:
            return None
    try:
        stated = read_object(received)
    except ValueError:
        return None
    names = [field.name for field in attrs.fields(Wanted)]
    if not all(isinstance(stated.get(name), str) for name in names):
        return None
    # Unknown keys are ignored: a later hub may send some.
    return Wanted(**{name: str(stated[name]) for name in names})
