"""The loopback proxy: SDKs that never refresh a token speak to it, and it speaks to the hub under fresh ones.

Whoever can read the kubeconfig that it writes (0600) acts as the agent while it runs: its own tokens stand
there, and nowhere else. It listens on 127.0.0.1 alone. A page in a browser on this machine can have requests
sent to that address too, by a name that it lets lead there (DNS rebinding) or across origins, so Host and
Origin have to be the proxy's own. What the proxy lets through the hub judges like any other request.
"""

from __future__ import annotations

import hmac
import logging
import re
import ssl
from collections.abc import Callable, Mapping

import attrs
import trio

from proxy.agent.account import Account, host_and_port
from proxy.agent.errors import AgentError
from proxy.agent.rotation import Tokens
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.forward import forward
from proxy.exchange.pool import Connections
from proxy.exchange.pooled import PooledOutbound
from proxy.exchange.server import ServerConnection
from proxy.listener.connection_limit import NoRoomError, Room
from proxy.message.failure import Failure, InboundBroken, OutboundBroken
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import loopback_request_head, loopback_response_head
from proxy.message.status import failure_response, status_response
from proxy.message.strict import BadRequest
from tunnel.net.connect import client_context, open_tcp, wrap_client, wrap_server
from tunnel.net.egress import ProxyRefused, ProxySettings, connect_through
from tunnel.net.loglimit import LogLimit

# One client with its watches, some at once.
CONNECTIONS_MAX = 512
# A handshake and a first request; the proxy is on the same machine.
STRANGER_S = 10.0

_TARGET = re.compile(rb"/clusters/([a-z0-9-]{1,63})(?:[/?].*)?", re.DOTALL)
_log = logging.getLogger("hawse.connect")


class NotAllowedError(Exception):
    """A request that is refused here; `status` and the message are its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen
class Guard:
    """Who may use the proxy: the holder of its token for a cluster, by its own name, for that cluster.

    One token for all would not do: what a client asks for next it takes from a cluster's own answers, and
    libraries resolve the dots in the version or the path that they find there. So one cluster could lead it
    to another.
    """

    port: int
    tokens: Mapping[str, str] = attrs.field(repr=False)
    """By the cluster, each of which is served."""

    def admit(self, head: RequestHead) -> str:
        """Return the cluster that a request is for; raises NotAllowedError."""
        ours = [f"{name}:{self.port}".encode() for name in ("127.0.0.1", "localhost")]
        if [value.lower() for value in head.header_values(b"host")] not in [[each] for each in ours]:
            raise NotAllowedError(403, "the Host is not this proxy's: it serves its own address alone")
        origins = [value.lower() for value in head.header_values(b"origin")]
        if origins and origins not in [[b"https://" + each] for each in ours]:
            raise NotAllowedError(
                403, "the Origin is not this proxy's: pages of others have no business here"
            )
        match = _TARGET.fullmatch(head.target)
        name = "" if match is None else match[1].decode("ascii")
        shown = head.header_values(b"authorization")
        if self._is_of(name, shown):
            return name
        # To look among all, of which there may be thousands, is for what is refused.
        shown_for = next((each for each in self.tokens if self._is_of(each, shown)), None)
        if shown_for is None:
            raise NotAllowedError(401, "the proxy's own token is needed: use the kubeconfig that it wrote")
        if name not in self.tokens:
            raise NotAllowedError(404, "this proxy serves no such cluster")
        raise NotAllowedError(403, f"the token is for the cluster {shown_for} alone, each has its own")

    def _is_of(self, cluster: str, shown: list[bytes]) -> bool:
        """Whether it is this cluster's token that is shown."""
        token = self.tokens.get(cluster)
        if token is None or len(shown) != 1:
            return False
        return hmac.compare_digest(shown[0], b"Bearer " + token.encode("ascii"))


class HubSide:
    """The way to the hub, through the egress proxy of the environment where there is one."""

    def __init__(self, account: Account, proxy: ProxySettings) -> None:
        """Raises AgentError for a CA that is none."""
        self._host, self._port = host_and_port(account.hub)
        self._proxy = proxy
        self.authority = account.hub.removeprefix("https://").encode("ascii")
        self.name = account.hub
        try:
            self._context = client_context(account.ca_pem)
        except ValueError as error:
            raise AgentError(
                "the stored CA is no certificate: run `hawse login` again with --ca FILE"
            ) from error

    async def dial(self) -> trio.abc.Stream:
        """Connect; raises OSError or HandshakeFailed. Cancelled, nothing is left open."""
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
            # Cancelled, it closes before its first checkpoint.
            await trio.aclose_forcefully(stream)  # noqa: ASYNC102
            raise


@attrs.define(eq=False)
class LoopbackProxy:
    """Serves the loopback connections."""

    context: ssl.SSLContext
    guard: Guard
    hub: HubSide
    tokens: Tokens
    connections: Connections
    deadlines: Deadlines = attrs.Factory(Deadlines)
    """Whoever serves connections runs it beside."""
    room: Room = attrs.Factory(lambda: Room(LogLimit(_log)))
    """Every user of this machine can connect."""

    async def handle_client(self, tcp: trio.abc.Stream) -> None:
        """Serve one connection to its end; a fault in it is logged and reaches no other."""
        try:
            with self.room.entered(CONNECTIONS_MAX) as guest:
                await self._handle(tcp, guest.known)
        except NoRoomError:
            await trio.aclose_forcefully(tcp)

    async def _handle(self, tcp: trio.abc.Stream, known: Callable[[], None]) -> None:
        tls = wrap_server(tcp, self.context)
        try:
            with trio.move_on_after(STRANGER_S) as handshake:
                await tls.do_handshake()
            if not handshake.cancelled_caught:
                with ServerConnection(tls, self.deadlines) as connection:
                    await self._serve(connection, known)
        except (trio.BrokenResourceError, trio.ClosedResourceError, InboundBroken):
            pass  # the client left, or its handshake failed
        except Exception:
            _log.exception("a connection failed by a fault of ours")
        finally:
            await trio.aclose_forcefully(tls)

    async def _serve(self, connection: ServerConnection, known: Callable[[], None]) -> None:
        while True:
            try:
                head = await connection.next_request()
                if head is None:
                    return
                cluster = self.guard.admit(head)
                known()
            except BadRequest as error:
                await self._refuse(connection, error.status, error.message)
                return
            except NotAllowedError as error:
                # Nobody who is refused keeps a place here.
                await self._refuse(connection, error.status, str(error))
                return
            await self._carry(connection, head, cluster)

    async def _refuse(self, connection: ServerConnection, status: int, message: str) -> None:
        with trio.move_on_after(STRANGER_S):
            await connection.answer(*status_response(status, "", message))
            await connection.aclose()

    async def _carry(self, connection: ServerConnection, head: RequestHead, cluster: str) -> None:
        """Answer one request that is allowed. Cancelled, both sides are cut."""
        try:
            exchange = HubExchange(self, head, cluster)
            outcome = await exchange.run(connection)
        except AgentError as error:
            await connection.answer(*status_response(503, "", f"no token from the hub: {error}"))
            return
        except OutboundBroken as error:
            failure = error.failure
        else:
            if outcome is None:
                return
            failure = outcome
        upgrade = head.upgrade is not None
        told = attrs.evolve(failure, reason=f"between this machine and {self.hub.name}: {failure.reason}")
        await connection.answer(*failure_response(told, head.method, upgrade=upgrade))


class HubExchange:
    """One request on its way to the hub."""

    def __init__(self, proxy: LoopbackProxy, head: RequestHead, cluster: str) -> None:
        self._proxy = proxy
        self._request = head
        self._cluster = cluster

    async def run(self, connection: ServerConnection) -> Failure | None:
        """Carry it to its end; returns why the client is still to be answered, None when it was.

        Raises AgentError without a token, OutboundBroken when the hub cannot be reached.
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
        """Where connections to the hub come from."""
        return self._proxy.connections

    def head(self, token: str) -> RequestHead:
        """The request's head under a token."""
        return loopback_request_head(self._request, self._proxy.hub.authority, token)

    async def renewed(self, refused: str) -> str:
        """Another token than the refused one, or the same if that is new; raises AgentError."""
        return await self._proxy.tokens.token(self._cluster, refused=refused)

    def _pass_head(self, head: ResponseHead) -> ResponseHead:
        return loopback_response_head(head, self._proxy.hub.authority, f"/clusters/{self._cluster}".encode())


class RenewingOutbound(PooledOutbound):
    """An exchange with the hub that takes another token, once, when the hub does not accept the first."""

    def __init__(self, exchange: HubExchange, token: str) -> None:
        super().__init__(exchange.connections, exchange.head(token))
        self._exchange = exchange
        self._token = token

    async def receive_head(self) -> ResponseHead:
        """See Outbound. A 401 brings another token, under which a request without a body is asked again.

        Raises AgentError when it is to be, and there is no token.
        """
        head, request = await super().receive_head(), self._head
        assert request is not None, "it is held to the end"
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
