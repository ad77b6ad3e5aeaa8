"""Direct mode: the HTTPS listener that the hub dials, with the hub's token in each request.

The listener is public, so an unauthenticated peer gets a handshake, one head and a 401, and no more. A header
marks every answer of the relay itself, and is removed from upstream answers. So the hub can distinguish our
refusal from the API server's. The header also states whether the API server may have seen the request.

An open stream is bound to the hub's connection. It ends when the hub cuts the connection, or is unreachable
for tcp.CUT_S. That bounds how long an agent can continue that was revoked meanwhile.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Callable

import attrs
import trio

from auth.key_rotation import ROTATIONS_MAX
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.next_pass import NextPass
from proxy.exchange.server import ServerConnection
from proxy.kubernetes.statement import STATEMENT_TARGET, Statement
from proxy.listener.balancers import NO_BALANCERS, Balancers
from proxy.listener.client_address import Admitter
from proxy.listener.unauthenticated import MeteredStream, PendingConnection, UnauthenticatedLimits
from proxy.message.failure import Failure, InboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.relay_marks import failure_header
from proxy.message.rewrite import SUCCESSION_HEADER
from proxy.message.status import failure_response, status_response
from proxy.message.strict import BadRequest
from proxy.process.files import WatchedFile
from proxy.relay.denied import GuardrailDenied
from proxy.relay.direct_call import DirectCall
from proxy.relay.exchange import Upstream, describe
from proxy.relay.verify import Refused, Verifier, refusal
from tunnel import MODEST_USERS_MAX, Memory
from tunnel.net.connect import bind_to_peer, close_forcefully, peer_address, wrap_server
from tunnel.net.fairness import UnknownPeer
from tunnel.net.loglimit import LogLimit
from tunnel.net.tcp import Bonds, TCPStream

log = logging.getLogger("hawse.relay")

HANDSHAKE_S = 10.0
# Only hubs are expected here, from an address or two. An unauthenticated connection takes up to 50 KiB, and
# 16 KiB for a head. These bounds allow 82 MiB in all, from the memory beside `memory_mib`.
PENDING_MAX = 1024
PENDING_BYTES_MAX = 16 * 1024 * 1024

_BEARER = re.compile(rb"Bearer ([A-Za-z0-9._-]{1,8192})")


@attrs.define(eq=False)
class DirectServer:
    """Answers the hub's connections."""

    upstream: Upstream
    verifier: Verifier
    certificate: WatchedFile[ssl.SSLContext]
    memory: Memory
    """The budget for the memory of calls."""
    unauthenticated: UnauthenticatedLimits = attrs.Factory(
        lambda: UnauthenticatedLimits(connections_max=PENDING_MAX, bytes_max=PENDING_BYTES_MAX)
    )
    deadlines: Deadlines = attrs.Factory(Deadlines)
    bonds: Bonds = attrs.Factory(Bonds)
    statement: Callable[[], Statement] = Statement
    """Returns the relay's current statement, for a hub's inquiry."""
    balancers: Balancers = NO_BALANCERS
    """Load balancers, whose connections begin with a PROXY header."""
    admitter: Admitter = attrs.field(init=False)
    _passes: NextPass = attrs.Factory(NextPass)

    @admitter.default
    def _admitter_of_these(self) -> Admitter:
        return Admitter(self.unauthenticated, LogLimit(log), self.balancers)

    async def run(self) -> None:
        """Run the background tasks of the connections, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.deadlines.run)
            nursery.start_soon(self.bonds.run)
            nursery.start_soon(self._passes.run)

    async def handle_connection(self, tcp: TCPStream) -> None:
        """Serve one connection to its end. A bug in it is logged and affects no other connection."""
        pending = await self.admitter.admit(tcp)
        if pending is None:
            return
        peer = peer_address(tcp)
        tls = wrap_server(tcp, self.certificate.current())
        try:
            bind_to_peer(tcp, self.bonds)
            with trio.move_on_after(HANDSHAKE_S) as handshake:
                await tls.do_handshake(pending.hello_received)
            if not handshake.cancelled_caught:
                metered, readiness = MeteredStream(tls, pending), self.upstream.readiness
                with ServerConnection(metered, self.deadlines, tls, readiness, self._passes) as connection:
                    connection.peer = UnknownPeer(pending.network)
                    await self._serve(connection, pending, peer)
        except (trio.BrokenResourceError, trio.ClosedResourceError, InboundBroken, OSError):
            pass  # the peer left, or its handshake failed: there is no answer to send
        except Exception:
            # A bug in one connection's task must not end the others.
            log.exception("a connection of %s failed by a fault of ours", peer)
        finally:
            pending.release()
            await close_forcefully(tls)  # noqa: ASYNC102 - as trio.aclose_forcefully

    def _state(self) -> tuple[ResponseHead, bytes]:
        body = str(self.statement()).encode("ascii")
        headers = ((b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)))
        return ResponseHead.of(200, b"", headers), body

    async def _serve(self, connection: ServerConnection, pending: PendingConnection, peer: str) -> None:
        while True:
            try:
                request = await connection.next_request()
            except BadRequest as error:
                failure = Failure(StreamCode.PROTOCOL, Processed.NO, error.message)
                mark = (failure_header(failure),)
                await connection.answer(*status_response(error.status, "", error.message, headers=mark))
                await connection.aclose()
                return
            if request is None:
                return
            try:
                call = await self._begin(connection, request, pending)
            except Refused as refused:
                self.upstream.log_refusal(f"refused a request of {peer}: {describe(refused.failure)}")
                if isinstance(refused, GuardrailDenied):
                    await connection.answer(refused.head, refused.body)
                else:
                    await _answer_failed(connection, request, refused.failure)
                if pending.counted:
                    await connection.aclose()
                    return
                continue
            if call is not None and (failed := await call.carry(connection)) is not None:
                await _answer_failed(connection, request, failed)

    async def _begin(
        self, connection: ServerConnection, request: RequestHead, pending: PendingConnection
    ) -> DirectCall | None:
        """Make the call of a verified request; None for an inquiry, which is answered. Raises Refused."""
        token = _bearer(request)
        self.verifier.learn(_succession(request))
        if request.target == STATEMENT_TARGET:
            self.verifier.check_inquiry(token)
            pending.release()
            await connection.answer(*self._state())
            return None
        claims = self.verifier.of_token(token)
        pending.release()
        connection.peer = None
        if self.memory.short and self.upstream.underway.of_agent(claims.agent_id) > MODEST_USERS_MAX:
            # The same rule as in the tunnel (PROTOCOL.md, "Memory"), with the same answer by the hub.
            raise refusal(StreamCode.REFUSED, "memory is short")
        return self.upstream.prepare(request, claims, DirectCall)


async def _answer_failed(connection: ServerConnection, request: RequestHead, failure: Failure) -> None:
    """Answer a request that has failed, with the relay's mark."""
    mark, upgrade = (failure_header(failure),), request.upgrade is not None
    await connection.answer(*failure_response(failure, request.method, upgrade=upgrade, headers=mark))


def _bearer(request: RequestHead) -> bytes:
    values = request.header_values(b"authorization")
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise refusal(StreamCode.UNAUTHENTICATED, "the request has no bearer token of a hub")
    return match[1]


def _succession(request: RequestHead) -> list[str]:
    said = (request.header(SUCCESSION_HEADER) or b"").decode("ascii", "replace")
    # A hub sends no more. They are parsed before the peer is authenticated; 10,000 would take half a second.
    return said.rsplit(maxsplit=ROTATIONS_MAX)[-ROTATIONS_MAX:]
