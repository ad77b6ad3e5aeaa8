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

import attrs
import trio

from proxy.agent.connect.tokens import Tokens
from proxy.agent.local.account import Account, host_and_port
from proxy.agent.local.errors import AgentError
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.forward import forward
from proxy.exchange.pool import Connections
from proxy.exchange.pooled import PooledOutbound
from proxy.exchange.server import ServerConnection
from proxy.listener.connection_limit import ConnectionLimit, ConnectionLimitError
from proxy.message.failure import Failure, InboundBroken, OutboundBroken
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import loopback_request_head, loopback_response_head
from proxy.message.status import failure_response, status_response
from proxy.message.strict import BadRequest
from tunnel.net.connect import client_context, open_tcp, wrap_client, wrap_server
from tunnel.net.egress import ProxyRefused, ProxySettings, connect_through
from tunnel.net.loglimit import LogLimit

# One client with its watches, and a few more clients beside it.
CONNECTIONS_MAX = 512
# Enough for a handshake and a first request from the same machine.
PENDING_S = 10.0

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
    """Serves connections from this machine."""

    context: ssl.SSLContext
    guard: Guard
    hub: HubSide
    tokens: Tokens
    connections: Connections
    deadlines: Deadlines = attrs.Factory(Deadlines)
    """The task that serves connections runs it too."""
    connection_limit: ConnectionLimit = attrs.Factory(lambda: ConnectionLimit(LogLimit(_log)))
    """Bounds unauthenticated connections: any user of this machine can connect."""

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
                with ServerConnection(tls, self.deadlines) as connection:
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
            exchange = HubExchange(self, head, cluster)
            outcome = await exchange.run(connection)
        except AgentError as error:
            await connection.answer(*status_response(503, "", f"cannot get a token from the hub: {error}"))
            return
        except OutboundBroken as error:
            failure = error.failure
        else:
            if outcome is None:
                return
            failure = outcome
        upgrade = head.upgrade is not None
        explained = attrs.evolve(
            failure, reason=f"between this machine and {self.hub.name}: {failure.reason}"
        )
        await connection.answer(*failure_response(explained, head.method, upgrade=upgrade))


class HubExchange:
    """One request to the hub."""

    def __init__(self, proxy: LoopbackProxy, head: RequestHead, cluster: str) -> None:
        self._proxy = proxy
        self._request = head
        self._cluster = cluster

    async def run(self, connection: ServerConnection) -> Failure | None:
        """Forward the request. Returns the failure to answer the client with, or None if it has its answer.

        Raises AgentError without a token, OutboundBroken if the hub can't be reached.
        """
        token = await self._proxy.tokens.token(self._cluster)
        outbound = RenewingOutbound(self, token)
        try:
            await outbound.start()
            outcome = await forward(connection, outbound, self._request, on_head=self._pass_head)
        finally:
            await outbound.aclose()
        return outcome.failure if outcome.unanswered else None

    @property
    def connections(self) -> Connections:
        """The pool of connections to the hub."""
        return self._proxy.connections

    def head(self, token: str) -> RequestHead:
        """The request's head with this token."""
        return loopback_request_head(self._request, self._proxy.hub.authority, token)

    async def renewed(self, refused: str) -> str:
        """Return a new token, or the refused one if it is recent; raises AgentError."""
        return await self._proxy.tokens.token(self._cluster, refused=refused)

    def _pass_head(self, head: ResponseHead) -> ResponseHead:
        return loopback_response_head(head, self._proxy.hub.authority, f"/clusters/{self._cluster}".encode())


class RenewingOutbound(PooledOutbound):
    """An exchange with the hub that retries once with a new token if the hub answers 401."""

    def __init__(self, exchange: HubExchange, token: str) -> None:
        super().__init__(exchange.connections, exchange.head(token))
        self._exchange = exchange
        self._token = token

    async def receive_head(self) -> ResponseHead:
        """See Outbound. On a 401, get a new token and send a request without a body again.

        Raises AgentError if the request has no body and no token is available.
        """
        head, request = await super().receive_head(), self._head
        assert request is not None, "the head is kept until the exchange ends"
        if head.status != 401:
            return head
        has_body = request.body_length != 0
        try:
            token = await self._exchange.renewed(self._token)
        except AgentError:
            if has_body:
                return head
            raise
        if token == self._token or has_body:
            return head
        await self.send_again(self._exchange.head(token))
        return await super().receive_head()
