"""The loopback proxy, for SDKs that never refresh a token: it adds a fresh token to each request to the hub.

The kubeconfig that it writes (0600) holds the proxy's own tokens, and no other file does. Any reader of that
file can act as the agent while the proxy runs. It listens on 127.0.0.1 only. A web page in a local browser
can still reach that address, through DNS rebinding or a cross-origin request, so Host and Origin must be the
proxy's own. The hub applies its usual checks to requests that pass.
"""

from __future__ import annotations

import hmac
import logging
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress

import attrs
import trio

from proxy.agent.connect.tokens import Tokens
from proxy.agent.local.account import Account, host_and_port
from proxy.agent.local.errors import AgentError
from proxy.exchange.client import ClientConnection
from proxy.exchange.client_port import ClientPort
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_exchange import ParkedExchange
from proxy.exchange.pool import Connections, may_send_again
from proxy.exchange.server import ServerConnection
from proxy.exchange.upstream_port import UpstreamPort
from proxy.listener.connection_limit import ConnectionLimit, ConnectionLimitError
from proxy.message.failure import Failure, InboundBroken, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import loopback_request_head, loopback_response_head
from proxy.message.status import failure_response, status_response
from proxy.message.strict import BadRequest
from tunnel.net.connect import client_context, open_tcp, wrap_client, wrap_server
from tunnel.net.egress import ProxyRefused, ProxySettings, connect_through
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness

# One client with its watches, and a few more clients beside it.
CONNECTIONS_MAX = 512
# Enough for a handshake and a first request from the same machine.
PENDING_S = 10.0

_TOKEN_REFUSED = Failure(StreamCode.UNAUTHENTICATED, Processed.NO, "the hub refuses the agent's token")
_TARGET = re.compile(rb"/clusters/([a-z0-9-]{1,63})(?:[/?].*)?", re.DOTALL)
_log = logging.getLogger("hawse.connect")


class NotAllowedError(Exception):
    """A request that the proxy refuses with `status` and this message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen
class Guard:
    """Admits requests that carry the proxy's token for their cluster, under the proxy's own host name.

    Each cluster has its own token. Clients build their next request from a cluster's answers, and libraries
    resolve dot segments in versions and paths found there. With one shared token, one cluster could redirect
    the client to another.
    """

    port: int
    tokens: Mapping[str, str] = attrs.field(repr=False)
    """One for each served cluster, by the cluster's name."""

    def admit(self, head: RequestHead) -> str:
        """Return the request's cluster; raises NotAllowedError."""
        ours = [f"{name}:{self.port}".encode() for name in ("127.0.0.1", "localhost")]
        if [value.lower() for value in head.header_values(b"host")] not in [[each] for each in ours]:
            raise NotAllowedError(403, "Host is not this proxy's address: use the kubeconfig that it wrote")
        origins = [value.lower() for value in head.header_values(b"origin")]
        if origins and origins not in [[b"https://" + each] for each in ours]:
            raise NotAllowedError(403, "Origin is not this proxy: requests from web pages are refused")
        match = _TARGET.fullmatch(head.target)
        name = "" if match is None else match[1].decode("ascii")
        shown = head.header_values(b"authorization")
        if self._is_of(name, shown):
            return name
        # There may be thousands of tokens, so only refusals pay for this search.
        shown_for = next((each for each in self.tokens if self._is_of(each, shown)), None)
        if shown_for is None:
            raise NotAllowedError(
                401, "missing or wrong proxy token: use the kubeconfig that the proxy wrote"
            )
        if name not in self.tokens:
            raise NotAllowedError(404, "this proxy serves no cluster of that name")
        raise NotAllowedError(
            403, f"this token is only for the cluster {shown_for}: each cluster has its own"
        )

    def _is_of(self, cluster: str, shown: list[bytes]) -> bool:
        """Whether the request shows this cluster's token."""
        token = self.tokens.get(cluster)
        if token is None or len(shown) != 1:
            return False
        return hmac.compare_digest(shown[0], b"Bearer " + token.encode("ascii"))


class HubSide:
    """Dials the hub, through the environment's egress proxy if there is one."""

    def __init__(self, account: Account, proxy: ProxySettings) -> None:
        """Raises AgentError if the stored CA is not a certificate."""
        self._host, self._port = host_and_port(account.hub)
        self._proxy = proxy
        self.authority = account.hub.removeprefix("https://").encode("ascii")
        self.name = account.hub
        try:
            self._context = client_context(account.ca_pem)
        except ValueError as error:
            raise AgentError(
                "the stored CA is not a certificate: run `hawse login` again with --ca FILE"
            ) from error

    async def dial(self) -> trio.abc.Stream:
        """Connect; raises OSError or HandshakeFailed. On cancellation nothing stays open."""
        proxy = self._proxy.proxy_for(self._host, self._port)
        if proxy is None:
            return await wrap_client(
                await open_tcp(self._host, self._port), self._context, server_hostname=self._host
            )
        stream: trio.abc.Stream = await open_tcp(proxy.host, proxy.port)
        try:
            if proxy.tls:
                stream = await wrap_client(stream, self._context, server_hostname=proxy.host)
            await connect_through(stream, proxy, self._host, self._port)
            return await wrap_client(stream, self._context, server_hostname=self._host)
        except ProxyRefused as error:
            await trio.aclose_forcefully(stream)
            raise OSError(str(error)) from error
        except BaseException:
            # When cancelled, it closes before its first checkpoint.
            await trio.aclose_forcefully(stream)  # noqa: ASYNC102
            raise


@attrs.define(eq=False)
class LoopbackProxy:
    """Serves connections from this machine, while `run` runs."""

    context: ssl.SSLContext
    guard: Guard
    hub: HubSide
    tokens: Tokens
    reason: str = ""
    """The reason to state for requests that state none."""
    deadlines: Deadlines = attrs.Factory(Deadlines)
    readiness: Readiness = attrs.Factory(Readiness)
    passes: NextPass = attrs.Factory(NextPass)
    connections: Connections = attrs.field(init=False)
    """To the hub."""
    connection_limit: ConnectionLimit = attrs.Factory(lambda: ConnectionLimit(LogLimit(_log)))
    """Bounds unauthenticated connections: any user of this machine can connect."""

    @connections.default
    def _connections_to_the_hub(self) -> Connections:
        return Connections(self.hub.dial, f"the hub {self.hub.name}", self.readiness)

    async def run(self) -> None:
        """Run the background tasks of the connections, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.deadlines.run)
            nursery.start_soon(self.passes.run)
            nursery.start_soon(self.connections.sweep)
            nursery.start_soon(self.readiness.run)

    async def handle_client(self, tcp: trio.abc.Stream) -> None:
        """Serve one connection to its end. A bug in it is logged and affects no other connection."""
        try:
            with self.connection_limit.counted(CONNECTIONS_MAX) as connection:
                await self._handle(tcp, connection.set_client)
        except ConnectionLimitError:
            await trio.aclose_forcefully(tcp)

    async def _handle(self, tcp: trio.abc.Stream, authenticated: Callable[[], None]) -> None:
        tls = wrap_server(tcp, self.context)
        try:
            with trio.move_on_after(PENDING_S) as handshake:
                await tls.do_handshake()
            if not handshake.cancelled_caught:
                with ServerConnection(tls, self.deadlines, tls, self.readiness, self.passes) as connection:
                    await self._serve(connection, authenticated)
        except (trio.BrokenResourceError, trio.ClosedResourceError, InboundBroken):
            pass  # the client left, or its handshake failed
        except Exception:
            _log.exception("a connection failed because of a bug in hawse")
        finally:
            await trio.aclose_forcefully(tls)

    async def _serve(self, connection: ServerConnection, authenticated: Callable[[], None]) -> None:
        while True:
            try:
                head = await connection.next_request()
                if head is None:
                    return
                cluster = self.guard.admit(head)
                authenticated()
            except BadRequest as error:
                await self._refuse(connection, error.status, error.message)
                return
            except NotAllowedError as error:
                # A refused client must not hold a connection open.
                await self._refuse(connection, error.status, str(error))
                return
            await self._forward(connection, head, cluster)

    async def _refuse(self, connection: ServerConnection, status: int, message: str) -> None:
        with trio.move_on_after(PENDING_S):
            await connection.answer(*status_response(status, "", message))
            await connection.aclose()

    async def _forward(self, connection: ServerConnection, head: RequestHead, cluster: str) -> None:
        """Answer one admitted request. Cancellation cuts both sides."""
        try:
            with connection.as_port() as client:
                failure = await HubExchange(self, connection, client, head, cluster).run()
        except AgentError as error:
            await connection.answer(*status_response(503, "", f"cannot get a token from the hub: {error}"))
            return
        except OutboundBroken as error:
            failure = error.failure
        if failure is None:
            return
        upgrade = head.upgrade is not None
        explained = attrs.evolve(
            failure, reason=f"between this machine and {self.hub.name}: {failure.reason}"
        )
        await connection.answer(*failure_response(explained, head.method, upgrade=upgrade))


class HubExchange:
    """One request to the hub, in one attempt or several.

    A kept connection that the hub had closed is replaced once. A request without a body whose token the hub
    refuses is sent again with a new token, once.
    """

    def __init__(
        self,
        proxy: LoopbackProxy,
        connection: ServerConnection,
        client: ClientPort,
        request: RequestHead,
        cluster: str,
    ) -> None:
        """`client` is the port of `connection`, whose current request has this head."""
        self._proxy = proxy
        self._connection = connection
        self._client = client
        self._request = request
        self._cluster = cluster
        self._token = ""
        # The token that the hub has refused.
        self._refused = ""

    async def run(self) -> Failure | None:
        """Forward the request. Returns the failure to answer the client with, or None if it has its answer.

        Raises AgentError without a token, OutboundBroken if the hub can't be reached.
        """
        upstream, attempt = await self._attempt(fresh=False)
        while (failure := attempt.failure) is not None and not attempt.exchange.status:
            repeated = upstream.reused and may_send_again(self._request, failure)
            if failure is not _TOKEN_REFUSED and not repeated:
                gone = attempt.by_client and failure.code is StreamCode.CANCEL
                return None if gone else failure
            upstream, attempt = await self._attempt(fresh=True)
        if attempt.exchange.status == 401 and not self._refused and self._request.body_length != 0:
            # The request can't be sent again. The next one gets a new token.
            with suppress(AgentError):
                await self._proxy.tokens.token(self._cluster, refused=self._token)
        return None

    async def _attempt(self, *, fresh: bool) -> tuple[UpstreamPort, ParkedExchange]:
        """Carry one attempt to its end, on a new connection if `fresh`."""
        proxy = self._proxy
        upstream = UpstreamPort(
            proxy.connections, self._request, long=False, rewrite=self._pass_head, head_on=self._head_on
        )
        attempt = ParkedExchange(self._connection, self._client, upstream, self._request)

        async def open_hub() -> None:
            self._token = await proxy.tokens.token(self._cluster, refused=self._refused)
            if fresh or not upstream.take_kept():
                await upstream.dial(fresh=fresh)

        try:
            await attempt.run(proxy.hub.authority, open_hub)
        finally:
            upstream.close()
        return upstream, attempt

    def _head_on(self, _: ClientConnection) -> RequestHead:
        proxy = self._proxy
        return loopback_request_head(self._request, proxy.hub.authority, self._token, proxy.reason)

    def _pass_head(self, head: ResponseHead) -> ResponseHead:
        """Return the client's head of an answer; raises OutboundBroken for a token to replace."""
        replaceable = head.status == 401 and self._request.body_length == 0 and not self._refused
        if replaceable and self._proxy.tokens.replaces(self._cluster, self._token):
            self._refused = self._token
            raise OutboundBroken(_TOKEN_REFUSED)
        return loopback_response_head(head, self._proxy.hub.authority, f"/clusters/{self._cluster}".encode())
