"""Answers the dials of relays: the checks before a tunnel, in the order of what they cost."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from email.utils import formatdate
from typing import Protocol

import attrs
import trio

from audit.record import Kind
from audit.recording.recorder import Recorder
from auth.jws import TokenError
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.events import Trail
from proxy.hub.identity.replay import ReplayedError
from proxy.hub.identity.replay_store import ReplayStoreUnavailableError
from proxy.hub.relays.accept_limit import CLUSTER_RETRY_AFTER_S, Arrival, TooManyDialsError
from proxy.hub.relays.dial_auth import DialAuth, WrongClockError
from proxy.hub.relays.endpoint import RelayEndpoint, signature_of
from proxy.hub.store.directory import Directory
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.status import status_response
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness
from tunnel.websocket.upgrade import AT_HEADER, ELSEWHERE_HEADER, HUB_TIME_HEADER, SESSION_HEADER, TUNNEL_PATH

# The next dial or call may find another hub, and this one polls its database twice a second.
LATER_RETRY_AFTER_S = 1
LEAVING = "this hub stops, and others serve: ask again"

# PROTOCOL.md, "Several hubs".
_HUB_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_log = logging.getLogger("hawse.hub")


@attrs.frozen
class Wanted:
    """A session that a relay wants to resume, by the claims of its token."""

    session: str
    cluster: str
    """The cluster's id."""
    address: str
    """The relay's, for the log and `relay list`."""


class SessionAwayError(Exception):
    """A hub that may have the session cannot be asked now; the message is for the relay's log."""


class Found(Protocol):
    """A session at another hub, and a stream to that."""

    async def carry(self, connection: trio.abc.Stream, received: bytes) -> None:
        """Carry a relay's connection to that hub until it ends, beginning with what was `received`."""
        ...


class Carrier(Protocol):
    """Finds the sessions of other hubs (proxy.hub.carried_resumes)."""

    async def find(self, hub: str, wanted: Wanted) -> Found | None:
        """Return a session at another hub; None if no hub has it. `hub` is the one that the relay names.

        Raises SessionAwayError.
        """
        ...


@attrs.define(eq=False)
class RelayDials:
    """Answers the requests for a tunnel."""

    auth: DialAuth
    relays: RelayEndpoint
    directory: Directory
    recorder: Recorder
    trail: Trail
    clock: Callable[[], float]
    readiness: Readiness
    turned_away: LogLimit
    leaving: bool = False
    """Other hubs serve in this one's place: it takes no new tunnel, and sessions resume."""
    carrier: Carrier | None = None
    """None for a hub without links to others."""
    # Only a token signed by a relay's key, possibly an old one, causes such a line. A cluster's relays, eight
    # at most, connect together.
    _wrong_clocks: LogLimit = attrs.Factory(lambda: LogLimit(_log, at_once=8))

    async def answer(
        self,
        connection: ServerConnection,
        stream: trio.abc.Stream,
        head: RequestHead,
        known: Callable[[], None],
        address: str,
        *,
        carried: bool = False,
    ) -> bool:
        """Serve a relay's WebSocket; returns whether the connection has ended.

        One that another hub has `carried` here resumes a session of this hub.
        """
        if head.method != b"GET" or (head.upgrade or b"").lower() != b"websocket":
            await connection.answer(*status_response(400, "", f"{TUNNEL_PATH} is a WebSocket for relays"))
            return False
        if _lists(head, self.relays.hub):
            # Before the verification: each of a fleet's relays may come here several times.
            why = "this relay has a tunnel to this hub, and wants one to another hub"
            await connection.answer(*retry_later(why, LATER_RETRY_AFTER_S, signature_of(self.relays.hub)))
            return False
        resumes = head.header(SESSION_HEADER) is not None
        # A session that resumes was admitted before. Its calls end when the snapshot is too old for them.
        if not resumes and (why := LEAVING if self.leaving else self.directory.refusal()):
            await connection.answer(*retry_later(why, LATER_RETRY_AFTER_S))
            return False
        wait_s = self.auth.limit.admit(trio.current_time(), resumes=resumes)
        if wait_s:
            # Before the verification, which is the expensive part.
            self.turned_away.warning("refused relays: too many connect at once", trio.current_time())
            message = f"too many relays connect at once: retry in {wait_s} s"
            await connection.answer(*retry_later(message, wait_s))
            return False
        arrival = self.auth.limit.arrive()
        try:
            return await self._accepted(connection, stream, head, known, address, arrival, carried=carried)
        finally:
            arrival.settle()

    async def _accepted(
        self,
        connection: ServerConnection,
        stream: trio.abc.Stream,
        head: RequestHead,
        known: Callable[[], None],
        address: str,
        arrival: Arrival,
        *,
        carried: bool,
    ) -> bool:
        """Authenticate a relay whose dial was accepted, and serve it; returns as `answer` does."""
        named = "" if carried else _named_hub(head)
        try:
            found = None if carried else await self._find_elsewhere(head, named, address, arrival)
            if found is not None:
                arrival.settle()
                known()
                raw_head = connection.raw_head
                _, leftover = connection.detach()
                await found.carry(stream, raw_head + leftover)
                return True
            dial = await self.auth.authenticate(head, self.clock(), arrival, address)
        except SessionAwayError as error:
            arrival.refuse()
            await connection.answer(*retry_later(str(error), LATER_RETRY_AFTER_S))
            return False
        except (TooManyDialsError, ReplayStoreUnavailableError, TokenError, ReplayedError) as error:
            # Before the answer, which may wait for a client that reads nothing.
            arrival.refuse()
            await self._refuse_relay(connection, head, address, error)
            return False
        known()
        if carried:
            dial = attrs.evolve(dial, only_resumes=True)
        elif self.carrier is not None and named not in ("", self.relays.hub):
            # No hub of that id has the session. Of another one, a relay would not believe it.
            dial = attrs.evolve(dial, only_resumes=True, answers_for=named)
        await self.relays.serve(connection, stream, dial, self.readiness)
        return True

    async def _find_elsewhere(
        self, head: RequestHead, hub: str, address: str, arrival: Arrival
    ) -> Found | None:
        """Return the session that a relay wants to resume, if another hub has it.

        Raises TokenError, TooManyDialsError and SessionAwayError. The token is verified before any hub is
        asked, and its use is recorded by the session's hub.
        """
        session = head.header(SESSION_HEADER)
        if self.carrier is None or session is None:
            return None
        claims, _ = self.auth.admit(head, self.clock(), arrival)
        if self.auth.has_session(head, claims):
            return None
        wanted = Wanted(session.decode("ascii", "replace"), claims.cluster_id, address)
        found = await self.carrier.find(hub, wanted)
        if found is not None:
            _log.info("the session %s of a relay at %s is carried to its hub", wanted.session, address)
        return found

    async def _refuse_relay(
        self,
        connection: ServerConnection,
        head: RequestHead,
        address: str,
        error: TooManyDialsError | ReplayStoreUnavailableError | TokenError | ReplayedError,
    ) -> None:
        """Answer a relay that is not authenticated."""
        match error:
            case TooManyDialsError():
                self.turned_away.warning(f"refused a relay: {error}", trio.current_time())
                await connection.answer(*retry_later(str(error), CLUSTER_RETRY_AFTER_S))
                return
            case ReplayStoreUnavailableError():
                # Logged by the store.
                await connection.answer(*retry_later(str(error), CLUSTER_RETRY_AFTER_S))
                return
        self.recorder.complete(
            self.trail.unauthenticated(Kind.AUTH_FAILED, client_ip=address, note=str(error), head=head)
        )
        # Relays of an earlier version correct their clock by the Date header.
        headers = [(b"date", formatdate(self.clock(), usegmt=True).encode("ascii"))]
        if isinstance(error, WrongClockError):
            self._wrong_clocks.warning(f"{address}: {error.advice}", trio.current_time())
            headers.append((HUB_TIME_HEADER, error.hub_time.encode("ascii")))
        await connection.answer(*status_response(401, "", str(error), headers=tuple(headers)))


def _lists(head: RequestHead, hub: str) -> bool:
    """Whether a relay that dials for one more tunnel says that it has one to this hub."""
    listed = head.header(ELSEWHERE_HEADER)
    if not listed or not hub:
        return False
    return hub.encode("ascii") in (each.strip() for each in listed.split(b","))


def _named_hub(head: RequestHead) -> str:
    """Return the hub that a relay names as that of its session; "" if it names none."""
    named = head.header(AT_HEADER)
    if head.header(SESSION_HEADER) is None or named is None or _HUB_ID.fullmatch(named) is None:
        return ""
    return named.decode("ascii")


def retry_later(
    message: str, wait_s: int, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> tuple[ResponseHead, bytes]:
    """Return a 503 that names the time to ask again."""
    return status_response(503, "", message, headers=((b"retry-after", b"%d" % wait_s), *headers))
