"""One request to the API server: its connection, its token, and when it may be sent again.

The API server authenticates each request by its bearer token and impersonation headers. So requests of
different agents may share a connection. After an upgrade request no other request uses its connection,
regardless of the answer (see proxy.exchange.pool).

Two kinds of requests are sent again, each once. Neither can have had an effect before:

- A request on a kept connection that the API server had already closed. It must be a safe one without a body
  or an upgrade, and no answer may have begun. An unsafe request is not repeated: it may have been carried out
  just before the connection broke.
- A request that was answered 401 because the relay's own token is old. The disk must have a newer token, and
  no body may have been sent. The API server authenticates before it does anything else.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from proxy.exchange.pool import Connections
from proxy.exchange.upstream_port import UpstreamPort
from proxy.message.failure import Failure, Processed, StreamCode
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

    It connects straight to the address. It ignores the environment's proxies, because the relay's token is
    sent over this connection.
    """
    return await open_tls(access.host, access.port, access.ssl_context(), server_hostname=access.server_name)


class Pool:
    """The connections to one API server, and the relay's access; made by `open_pool`."""

    def __init__(self, access: ClusterAccess, connections: Connections, readiness: Readiness) -> None:
        self.access = access
        self.connections = connections
        self.readiness = readiness
        self._own_token = LogLimit(log)

    def port(
        self,
        inner: RequestHead,
        identity: IdentityLines,
        tail: bool,
        long: bool,
        rewrite: Callable[[ResponseHead], ResponseHead] | None = None,
    ) -> tuple[UpstreamPort, str]:
        """Return the port of a request, whose head the relay makes from an inner one, and the token in it.

        `tail`: a backend behind the API server answers, so a 401 is the backend's own. `rewrite` is applied
        to the answer's head. Raises RewriteError.
        """
        access = self.access
        token = access.token()
        head = relay_request_head(inner, access.authority, token, identity, tail)
        on_401 = None if tail else OWN_TOKEN_REFUSED
        port = UpstreamPort(self.connections, head, long=long, on_401=on_401, rewrite=rewrite)
        return port, token

    def renew_token(self, token: str, head: RequestHead) -> bool:
        """Whether a request that was refused with a token may be sent again, with a newer one.

        The agent's credential never reaches the API server, so a 401 from there is never about it. Passed on,
        the 401 would make kubectl look for a new credential.
        """
        newer = self.access.refresh_token() or self.access.token() != token
        if not newer or head.body_length != 0:
            return False
        message = "the API server refused an old token; sending the request again with the new one"
        self._own_token.line(logging.INFO, message, trio.current_time())
        return True

    def log_own_token_refused(self) -> None:
        """Log that the API server refuses the relay's own token."""
        self._own_token.warning("the API server refuses the relay's own token (401)", trio.current_time())


@asynccontextmanager
async def open_pool(access: ClusterAccess, dial: Dial = dial_tls) -> AsyncIterator[Pool]:
    """Open a pool for the block. Connections that idle too long are closed, and at the end all of them."""
    readiness = Readiness()
    connections = Connections(lambda: dial(access), access.authority.decode("ascii"), readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        nursery.start_soon(connections.sweep)
        nursery.start_soon(connections.keep_spare)
        try:
            yield Pool(access, connections, readiness)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                # The connections are cut, so this waits for no peer.
                await connections.aclose()
