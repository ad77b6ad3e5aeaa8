"""The public listener: admits connections, reads requests, and routes each to a part of the hub.

One task for each connection, which handles its requests in sequence. Unauthenticated connections have tight
limits: on the time for the handshake, the head and the hub's own answers, on the connections of an address,
and on the bytes that all of them together may occupy. After authentication the agent's limits apply.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

import attrs
import trio

from audit.record import Kind
from audit.recording.recorder import Recorder
from auth.principal import Principal
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_connection import Begun
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.admission import PREFIX
from proxy.hub.authorize.events import Trail
from proxy.hub.calls.begin import begin
from proxy.hub.calls.calls import CLIENT_LEFT, Calls
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.hosts import ClusterHosts
from proxy.hub.identity.connections import AgentConnections
from proxy.hub.identity.enrol import EnrolmentEndpoint
from proxy.hub.identity.token import TokenEndpoint
from proxy.hub.own_paths import OwnPaths
from proxy.hub.relay_dials import RelayDials
from proxy.hub.relays.dial_auth import DialAuth
from proxy.hub.relays.endpoint import RelayEndpoint
from proxy.listener.balancers import Balancers
from proxy.listener.client_address import Admitter, address_of
from proxy.listener.unauthenticated import PENDING_S, MeteredStream, PendingConnection, UnauthenticatedLimits
from proxy.message.head import RequestHead
from proxy.message.status import status_response
from proxy.message.strict import BadRequest
from tunnel.net.connect import close_forcefully, wrap_server
from tunnel.net.fairness import UnknownPeer
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream
from tunnel.websocket.upgrade import TUNNEL_PATH

HANDSHAKE_S = 10.0
_TUNNEL_PATH = TUNNEL_PATH.encode("ascii")

_FAILED = "a client's connection failed by a fault of ours"
_FAULT = "the hub failed by a fault of its own; whether the API server has seen the request is not known"

_LAST = ((b"connection", b"close"),)

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class Front:
    """Routes the requests of the public listener."""

    certificate: Certificate
    calls: Calls
    relays: RelayEndpoint
    dial_auth: DialAuth
    tokens: TokenEndpoint
    enrolment: EnrolmentEndpoint
    recorder: Recorder
    trail: Trail
    clock: Callable[[], float]
    ready: bool = False
    """False while the hub starts or stops; /readyz answers with it."""
    unauthenticated: UnauthenticatedLimits = attrs.Factory(UnauthenticatedLimits)
    deadlines: Deadlines = attrs.Factory(Deadlines)
    connections: AgentConnections = attrs.field(init=False)
    _readiness: Readiness = attrs.Factory(Readiness)
    _passes: NextPass = attrs.Factory(NextPass)
    _turned_away: LogLimit = attrs.Factory(lambda: LogLimit(_log))
    admitter: Admitter = attrs.field(init=False)
    _own_paths: OwnPaths = attrs.field(init=False)
    dials: RelayDials = attrs.field(init=False)

    @connections.default
    def _connections_of_agents(self) -> AgentConnections:
        calls = self.calls
        return AgentConnections(calls.config.limits, calls.memory, lambda: calls.live.count)

    @admitter.default
    def _configured_admitter(self) -> Admitter:
        balancers = Balancers.of(self.calls.config.listen_proxy_from)
        return Admitter(self.unauthenticated, self._turned_away, balancers)

    @_own_paths.default
    def _paths_of_the_hub(self) -> OwnPaths:
        return OwnPaths(
            self.tokens, self.enrolment, self.recorder, self.trail, self.calls.hosts, self._why_unready
        )

    @dials.default
    def _dials_of_relays(self) -> RelayDials:
        return RelayDials(
            self.dial_auth, self.relays, self.calls.directory, self.recorder, self.trail, self.clock,
            self._readiness, self._turned_away,
        )  # fmt: skip

    def _why_unready(self) -> str:
        return self.calls.directory.refusal() if self.ready else "the hub starts or stops"

    async def run(self) -> None:
        """Run the background tasks of the connections, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.deadlines.run)
            nursery.start_soon(self.connections.run)
            nursery.start_soon(self._passes.run)
            nursery.start_soon(self._readiness.run)

    async def handle_client(self, tcp: trio.abc.Stream) -> None:
        """Serve one connection to its end. A fault in it is logged and affects no other connection."""
        pending = await self.admitter.admit(tcp)
        if pending is None:
            return
        address = address_of(tcp)
        tls = wrap_server(tcp, self.certificate.context)
        try:
            await self._shake_hands(tls, pending)
            await self._serve(tls, pending, address)
        except CLIENT_LEFT:
            pass  # the client disconnected, or its handshake failed: there is nothing to answer
        except Exception:
            _log.exception(_FAILED)
        finally:
            pending.release()
            await close_forcefully(tls)  # noqa: ASYNC102 - as trio.aclose_forcefully

    async def _shake_hands(self, tls: TLSStream, pending: PendingConnection) -> None:
        """Finish the handshake. Raises HandshakeFailed, and ClosedResourceError after HANDSHAKE_S."""
        late = self.deadlines.watch(_Handshake(tls.transport_stream))
        self.deadlines.begin(late, HANDSHAKE_S)
        try:
            await tls.do_handshake(pending.hello_received)
            if late.due_at == math.inf:
                # The last flight had arrived, and waited for its pass.
                raise trio.ClosedResourceError("the handshake took too long")
        finally:
            self.deadlines.leave(late)

    async def _serve(self, tls: TLSStream, pending: PendingConnection, address: str) -> None:
        metered = MeteredStream(tls, pending)
        with ServerConnection(metered, self.deadlines, tls, self._readiness, self._passes) as connection:
            connection.peer = UnknownPeer(pending.network)
            connection.serve_parked(metered, partial(self._begin_first, tls, pending, address))
            try:
                await self._serve_requests(connection, tls, pending, address)
                return
            except CLIENT_LEFT:
                raise
            except Exception:
                _log.exception(_FAILED)
            finally:
                self.connections.leave(connection)
            if connection.awaits_answer:
                # A part of the body may still arrive. Closing at once could reset the connection, and the
                # client would lose the answer.
                with trio.move_on_after(PENDING_S):
                    await connection.answer(*status_response(500, "", _FAULT, headers=_LAST))
                    await connection.aclose()

    async def _serve_requests(
        self, connection: ServerConnection, tls: TLSStream, pending: PendingConnection, address: str
    ) -> None:
        while True:
            try:
                head = await connection.next_request()
            except BadRequest as error:
                self.recorder.complete(
                    self.trail.unauthenticated(Kind.MALFORMED, client_ip=address, note=error.message)
                )
                with trio.move_on_after(PENDING_S):
                    await connection.answer(*status_response(error.status, "", error.message))
                    await connection.aclose()
                return
            if head is None:
                return
            if (begun := connection.take_begun()) is not None:
                await begun.carry_on()
                continue
            # The peer is unauthenticated until its first request.
            first = pending.counted
            if self.calls.hosts is not None:
                placed = self.calls.placed(head)
                if placed is None:
                    await self._answer_no_cluster(connection, self.calls.hosts)
                    return
                head = placed
            if head.target.startswith(PREFIX):
                # No timeout here: a call may be a watch of any length.
                await self.calls.handle(
                    connection,
                    head,
                    address,
                    authenticated=partial(self._known, connection, tls, pending, address)
                    if first
                    else _do_nothing,
                )
            elif not first:
                if await self._route(connection, tls, head, _do_nothing, address):
                    return
            else:
                with trio.move_on_after(PENDING_S) as request_scope:
                    pending.request_scope = request_scope
                    if await self._route(connection, tls, head, _KnownRelay(pending, request_scope), address):
                        return
                if request_scope.cancelled_caught:
                    return
            if first:
                # The earlier data was answered, and no longer counts as unauthenticated.
                pending.release_bytes()

    def _begin_first(
        self,
        tls: TLSStream,
        pending: PendingConnection,
        address: str,
        connection: ServerConnection,
        head: RequestHead,
    ) -> Begun | None:
        """Begin the first request of a connection without its task, if it is an agent's."""
        known = partial(self._known, connection, tls, pending, address)
        begun = begin(self.calls, address, connection, head, known)
        if begun is None and connection.parked is not None:
            # The task verifies this request again. The next ones of a stranger are verified only there.
            connection.parked.leave_to_task()
        return begun

    def _known(
        self,
        connection: ServerConnection,
        tls: TLSStream,
        pending: PendingConnection,
        address: str,
        agent: Principal,
    ) -> None:
        """Note that the connection is an agent's, and serve its next requests without waking its task."""
        pending.release()
        connection.peer = agent.agent_id
        self.connections.enter(agent, connection)
        connection.serve_parked(tls, partial(begin, self.calls, address))

    async def _route(
        self,
        connection: ServerConnection,
        tls: TLSStream,
        head: RequestHead,
        known: Callable[[], None],
        address: str,
    ) -> bool:
        """Answer a request that is for no cluster; returns whether the connection has ended.

        `known` is called once the peer is authenticated as a relay.
        """
        path = head.target.partition(b"?")[0]
        if path == _TUNNEL_PATH:
            return await self.dials.answer(connection, tls, head, known, address)
        with trio.move_on_after(PENDING_S) as scope:
            await self._own_paths.answer(connection, head, path, address)
        return scope.cancelled_caught

    async def _answer_no_cluster(self, connection: ServerConnection, hosts: ClusterHosts) -> None:
        message = f"no cluster of this hub has that host: they are {hosts.pattern}, by the cluster's name"
        with trio.move_on_after(PENDING_S):
            await connection.answer(*status_response(404, "", message, headers=_LAST))
            await connection.aclose()


@attrs.frozen
class _KnownRelay:
    """Notes that the connection is a relay's: it no longer counts as unauthenticated, and has no timeout."""

    pending: PendingConnection
    request_scope: trio.CancelScope

    def __call__(self) -> None:
        self.pending.release()
        self.request_scope.deadline = math.inf


@attrs.frozen
class _Handshake:
    """The wait for a client's part of the handshake (Waiting)."""

    tcp: trio.abc.Stream

    async def aclose(self) -> None:
        await close_forcefully(self.tcp)


def _do_nothing(*_: Principal) -> None: ...
