"""One request to the API server: on which connection, with which token, and when it may be sent again.

The API server takes its client's word per request (a bearer token, and whom to impersonate), so requests of
different agents may follow one another on a connection. An upgrade is another matter and gets a connection of
its own, which nothing else ever uses, whatever the answer was (see proxy.connections).

Two requests are sent again, each once, and neither can have had an effect before:

- one that met a kept connection which the API server had already given up. It must be a safe one without a
  body, and no answer may have begun: what is not safe cannot be told from a request that was carried out just
  before the connection broke.
- one that was answered 401 because the relay's own token is old, if the disk has another by now and no body
  was sent. Authentication comes before everything else there.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from proxy.exchange.pool import Connections
from proxy.exchange.pooled import PooledOutbound
from proxy.exchange.upstream_port import UpstreamPort
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import IdentityLines, relay_request_head
from proxy.relay.service_account import ClusterAccess
from tunnel.net.connect import open_tls
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness

log = logging.getLogger("hawse.relay")

Dial = Callable[[ClusterAccess], Awaitable[trio.abc.Stream]]

OWN_TOKEN_REFUSED = Failure(
    StreamCode.DIAL_FAILED,
    Processed.NO,
    "the API server refuses the relay's own service-account token",
)


async def dial_tls(access: ClusterAccess) -> trio.abc.Stream:
    """Connect to the API server; raises OSError or HandshakeFailed.

    Straight to its address: no proxy of the environment is asked, since the token goes where this connects.
    """
    return await open_tls(access.host, access.port, access.ssl_context(), server_hostname=access.server_name)


class Pool:
    """The way to one API server; use `open_pool`."""

    def __init__(self, access: ClusterAccess, connections: Connections) -> None:
        self.access = access
        self.connections = connections
        self._own_token = LogLimit(log)

    async def exchange(self, inner: RequestHead, identity: IdentityLines, tail: bool = False) -> Exchange:
        """Send the request of an inner head under an identity, and return its answering side.

        Raises RewriteError and OutboundBroken; when cancelled, the connection is closed. See also Exchange.
        """
        exchange = Exchange(self, inner, identity, tail)
        await exchange.start()
        return exchange

    def port(
        self, inner: RequestHead, identity: IdentityLines, tail: bool, long: bool
    ) -> tuple[UpstreamPort, str]:
        """The port of a request, which is sent as the relay's head for an inner one, and its token.

        `tail` says that a backend behind the API server answers, so that a 401 is the backend's own. Raises
        RewriteError.
        """
        access = self.access
        token = access.token()
        head = relay_request_head(inner, access.authority, token, identity, tail)
        on_401 = None if tail else OWN_TOKEN_REFUSED
        return UpstreamPort(self.connections, head, long=long, on_401=on_401), token

    def renew_token(self, token: str, head: RequestHead) -> bool:
        """Whether a request that was refused under a token may be sent again, under a newer one.

        The agent has shown no credential to the API server, so a 401 from there is never the agent's: passed
        on, it would send kubectl looking for a new one.
        """
        newer = self.access.refresh_token() or self.access.token() != token
        if not newer or head.body_length != 0:
            return False
        message = "the API server refused an old token; sending the request again with the new one"
        self._own_token.line(logging.INFO, message, trio.current_time())
        return True

    def log_own_token_refused(self) -> None:
        """Say that the relay's own token is of no use."""
        self._own_token.warning("the API server refuses the relay's own token (401)", trio.current_time())


class Exchange(PooledOutbound):
    """The answering side of one request (an Outbound), on a connection of the pool.

    `start` it, and `aclose` it whatever happens. `tail` says that a backend behind the API server answers, so
    that a 401 is the backend's own.
    """

    __slots__ = ("_identity", "_inner", "_pool", "_tail", "_token", "_token_renewed")

    def __init__(self, pool: Pool, inner: RequestHead, identity: IdentityLines, tail: bool = False) -> None:
        """Make ready to send what the relay's head for an inner one is; raises RewriteError."""
        self._pool = pool
        self._inner = inner
        self._identity = identity
        self._tail = tail
        self._token_renewed = False
        super().__init__(pool.connections, self._build_head())

    def _build_head(self) -> RequestHead:
        """The head as it is sent, under the token that the relay has now."""
        access = self._pool.access
        self._token = token = access.token()
        return relay_request_head(self._inner, access.authority, token, self._identity, self._tail)

    async def receive_head(self) -> ResponseHead:
        """Return the answer's head, of the second try where there was one. See Outbound."""
        while True:
            head = await super().receive_head()
            if head.status != 401 or self._tail:
                return head
            await self._answer_401()

    async def _answer_401(self) -> None:
        """Send the request again under a newer token; raises OutboundBroken if there is none."""
        if self._token_renewed or not self._pool.renew_token(self._token, self._inner):
            self._pool.log_own_token_refused()
            await self._cut()
            raise OutboundBroken(OWN_TOKEN_REFUSED)
        self._token_renewed = True
        await self.send_again(self._build_head())


@asynccontextmanager
async def open_pool(access: ClusterAccess, dial: Dial = dial_tls) -> AsyncIterator[Pool]:
    """Keep connections for the block; closes those that idle too long, and at the end all of them."""
    readiness = Readiness()
    connections = Connections(lambda: dial(access), access.authority.decode("ascii"), readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        nursery.start_soon(connections.sweep)
        try:
            yield Pool(access, connections)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                # Waits for no peer: these connections are cut.
                await connections.aclose()
