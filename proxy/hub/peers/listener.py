"""`/v1/peer`: the listener for the other hubs.

It has its own address and its own TLS, by the certificate in this hub's row. Connections are bounded as at
the public listener until their sender is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import attrs
import trio

from auth.jws import TokenError
from auth.keys import PublicKey
from proxy.exchange.server import ServerConnection
from proxy.hub.identity.replay import ReplayedError, ReplayMemory
from proxy.hub.membership.member import Member
from proxy.hub.peers.dial import PEER_PATH
from proxy.hub.peers.hello import HubHelloClaims, hub_party, verify_hub_hello
from proxy.hub.peers.identity import LinkIdentity, key_in
from proxy.hub.peers.mesh import Mesh
from proxy.listener.client_address import Admitter, address_of
from proxy.listener.unauthenticated import PENDING_S, MeteredStream, PendingConnection, UnauthenticatedLimits
from proxy.message.failure import InboundBroken
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.status import status_response
from proxy.message.strict import BadRequest
from tunnel import Rejected, RemoteProtocolError, SessionClosed, TransportClosed
from tunnel.net.connect import TLSStream, close_forcefully, wrap_server
from tunnel.net.loglimit import LogLimit
from tunnel.websocket.upgrade import WebSocketRefused, accept_websocket

HANDSHAKE_S: Final = 10.0
# A hub dials another one each second at most, and a hello is kept for three minutes.
HELLOS_OF_A_HUB_MAX: Final = 1000
# Of as many hubs as one PostgreSQL serves.
HELLOS_MAX: Final = 64 * HELLOS_OF_A_HUB_MAX

_PATH: Final = PEER_PATH.encode("ascii")
_LAST: Final = ((b"connection", b"close"),)
_CLIENT_LEFT: Final = (InboundBroken, trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger("hawse.hub.peers")


class _Refused(Exception):
    """A connection that is no link; answered with this status and text."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@attrs.define(eq=False)
class PeerListener:
    """Serves the connections of other hubs."""

    mesh: Mesh
    identity: LinkIdentity
    clock: Callable[[], float]
    unauthenticated: UnauthenticatedLimits = attrs.Factory(UnauthenticatedLimits)
    _turned_away: LogLimit = attrs.Factory(lambda: LogLimit(_log))
    _hellos: ReplayMemory = attrs.Factory(
        lambda: ReplayMemory("hub's hello", HELLOS_MAX, HELLOS_OF_A_HUB_MAX)
    )
    _admitter: Admitter = attrs.field(init=False)

    @_admitter.default
    def _admitter_of_limits(self) -> Admitter:
        return Admitter(self.unauthenticated, self._turned_away)

    async def handle_client(self, tcp: trio.abc.Stream) -> None:
        """Serve one connection to its end. A fault in it is logged and affects no other connection."""
        pending = await self._admitter.admit(tcp)
        if pending is None:
            return
        address = address_of(tcp)
        tls = wrap_server(tcp, self.identity.context)
        try:
            await self._serve(tls, pending, address)
        except _CLIENT_LEFT:
            pass  # the client disconnected, or its handshake failed
        except (WebSocketRefused, Rejected, SessionClosed, RemoteProtocolError, TransportClosed) as error:
            self._turned_away.warning(f"a hub at {address} got no link: {error}", trio.current_time())
        except Exception:
            _log.exception("a link's connection failed by a fault of ours")
        finally:
            pending.release()
            await close_forcefully(tls)  # noqa: ASYNC102 - as trio.aclose_forcefully

    async def _serve(self, tls: TLSStream, pending: PendingConnection, address: str) -> None:
        with trio.move_on_after(HANDSHAKE_S) as handshake:
            await tls.do_handshake(pending.hello_received)
        if handshake.cancelled_caught:
            return
        connection = ServerConnection(MeteredStream(tls, pending))
        with trio.move_on_after(PENDING_S) as pending.request_scope:
            try:
                member = await self._identify(connection)
            except _Refused as error:
                self._turned_away.warning(f"refused a link from {address}: {error}", trio.current_time())
                await connection.answer(*_refusal(error))
                await connection.aclose()
                return
        if pending.request_scope.cancelled_caught or member is None:
            return
        pending.release()
        raw_head = connection.raw_head
        _, leftover = connection.detach()
        async with accept_websocket(tls, request_head=raw_head, leftover=leftover) as transport:
            await self.mesh.accept(member, transport)

    async def _identify(self, connection: ServerConnection) -> Member | None:
        """Return the hub that dials, None when it left before it said anything; raises _Refused."""
        try:
            head = await connection.next_request()
        except BadRequest as error:
            raise _Refused(error.status, error.message) from error
        if head is None:
            return None
        if head.target.partition(b"?")[0] != _PATH:
            raise _Refused(404, f"this listener is for other hubs alone, at {PEER_PATH}")
        if head.method != b"GET" or (head.upgrade or b"").lower() != b"websocket":
            raise _Refused(400, f"{PEER_PATH} is a WebSocket for other hubs")
        try:
            return self._authenticate(head)
        except (TokenError, ReplayedError) as error:
            raise _Refused(401, str(error)) from error

    def _authenticate(self, head: RequestHead) -> Member:
        """Return the hub whose hello this is; raises TokenError, ReplayedError."""
        scheme, _, token = (head.header(b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer" or len(head.header_values(b"authorization")) != 1:
            raise TokenError("a hub authenticates by one bearer token")
        members = {hub_party(each.hub, each.boot): each for each in self.mesh.members.others()}
        keys = _keys_of(members)
        me, now = self.mesh.members.me, self.clock()
        claims = verify_hub_hello(
            token.decode("ascii", "replace"), keys.get, reader=hub_party(me.hub, me.boot), now=now
        )
        self._use(claims, now)
        return members[claims.party]

    def _use(self, claims: HubHelloClaims, now: float) -> None:
        # In memory alone: no other process accepts this hello.
        self._hellos.use(claims.party, claims.jti, claims.kept_until, now)


def _keys_of(members: dict[str, Member]) -> dict[str, tuple[str, PublicKey]]:
    """Return the owners and keys by kid.

    It takes 11 µs a hub. An unauthenticated client makes a TLS handshake for each reading, which costs more.
    """
    keys = {}
    for party, member in members.items():
        try:
            key = key_in(member.certificate)
        except ValueError:
            # It has no [peer], so it dials none.
            continue
        keys[key.kid] = (party, key)
    return keys


def _refusal(refused: _Refused) -> tuple[ResponseHead, bytes]:
    return status_response(refused.status, "", str(refused), headers=_LAST)
