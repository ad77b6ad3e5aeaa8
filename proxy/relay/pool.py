"""One request to the API server: on which connection, with which token, and when it may be sent again.

The API server takes its client's word per request (a bearer token, and whom to impersonate), so requests of
different agents may follow one another on a connection. An upgrade is another matter and gets a connection of
its own, which nothing else ever uses, whatever the answer was (see proxy.exchange.pool).

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
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import SAFE_METHODS, RequestHead, ResponseHead
from proxy.message.rewrite import IdentityLines, relay_request_head
from proxy.relay.service_account import ClusterAccess
from tunnel.net.connect import open_tls
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness

log = logging.getLogger("hawse.relay")

Dial = Callable[[ClusterAccess], Awaitable[trio.abc.Stream]]


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
        self.own_token = LogLimit(log)

    async def exchange(self, inner: RequestHead, identity: IdentityLines, tail: bool = False) -> Exchange:
        """Send the request of an inner head under an identity, and return its answering side.

        Raises RewriteError and OutboundBroken; when cancelled, the connection is closed. See also Exchange.
        """
        exchange = Exchange(self, inner, identity, tail)
        await exchange.start()
        return exchange


class Exchange(PooledOutbound):
    """The answering side of one request (an Outbound), on a connection of the pool.

    `start` it, and `aclose` it whatever happens. `tail` says that a backend behind the API server answers, so
    that a 401 is the backend's own.

    There is a way without waits, and so without a task: `start_nowait`, `look` at what comes until the head
    is there, and then take the body from its `connection`. Where that does not lead on, its watch is ended
    and a task goes on, which does not `start` what was `started`.
    """

    __slots__ = ("_head_ahead", "_identity", "_inner", "_pool", "_tail", "_token", "_token_renewed")

    def __init__(self, pool: Pool, inner: RequestHead, identity: IdentityLines, tail: bool = False) -> None:
        """Make ready to send what the relay's head for an inner one is; raises RewriteError."""
        self._pool = pool
        self._inner = inner
        self._identity = identity
        self._tail = tail
        self._token_renewed = False
        # It was received without a wait, and is still to be asked for.
        self._head_ahead: ResponseHead | None = None
        super().__init__(pool.connections, self._build_head())

    def _build_head(self) -> RequestHead:
        """The head as it is sent, under the token that the relay has now."""
        access = self._pool.access
        self._token = token = access.token()
        return relay_request_head(self._inner, access.authority, token, self._identity, self._tail)

    @property
    def started(self) -> bool:
        """Whether the request was sent, or some of it, on a connection that is there."""
        return self.connection is not None

    @property
    def may_be_seen(self) -> bool:
        """Whether some of the request was sent, also where its connection was cut since."""
        # One that nobody waits for is sent on a kept connection.
        return self.started or self._reused

    def start_nowait(self, on_input: Callable[[], None]) -> bool:
        """Send the head without a wait; False when it has to be left to a task.

        From then on `on_input` is called, out of the midst of everything, whenever there may be something to
        `look` at.
        """
        head = self._head
        assert head is not None, "it is not sent yet"
        if head.method not in SAFE_METHODS or not head.fields.only_asks:
            return False
        connection = self._connections.acquire_watched(on_input)
        if connection is None:
            return False
        self.connection = connection
        self._reused = True
        return connection.send_request_nowait(head)

    def look(self) -> ResponseHead | None:
        """Take in what has come, and return the answer's head once it is there.

        Raises OutboundBroken where there is more to do than to pass that on: a task has to see to it, by
        `receive_head`, and nothing is lost of what has come.
        """
        connection = self.connection
        assert connection is not None, "it is looked at what was started"
        if connection.take_in_nowait() is None:
            return None
        self._head_ahead = head = connection.receive_head_nowait()
        if head is not None and head.status == 401 and not self._tail:
            raise _own_token_refused()
        return head

    def keep_no_request(self) -> None:
        """Hold the head as it was written no longer: its answer has begun, and it is sent no more.

        The relay's token is in it, and a watch goes on for hours. It is no upgrade: that one is asked at the
        end whether its connection may be kept.
        """
        self._head = self._head_ahead = None
        self._acquiring = None

    def watch(self, on_input: Callable[[], None]) -> bool:
        """Have `on_input` called again; False without a connection that can be watched.

        It may have been abandoned just now.
        """
        connection = self.connection
        return connection is not None and self._connections.watch(connection, on_input)

    def end_watch(self) -> None:
        """Have nobody called any more, until it is watched again or a task goes on."""
        if self.connection is not None:
            self.connection.end_watch()

    def release_nowait(self) -> None:
        """Give back the connection of an answer that was received without a wait, or cut it."""
        connection, self.connection = self.connection, None
        assert connection is not None, "its answer has just been received"
        self._connections.release_watched(connection)

    def cut_nowait(self) -> None:
        """Cut the connection of an exchange that was started without a wait."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.cut_nowait()

    async def receive_head(self) -> ResponseHead:
        """Return the answer's head, of the second try where there was one. See Outbound."""
        head, self._head_ahead = self._head_ahead, None
        while True:
            if head is None:
                head = await super().receive_head()
            if head.status != 401 or self._tail:
                return head
            await self._answer_401()
            head = None

    async def _answer_401(self) -> None:
        """Send the request again under a newer token; raises OutboundBroken if there is none.

        The agent has shown no credential to the API server, so a 401 from there is never the agent's: passed
        on, it would send kubectl looking for a new one.
        """
        access, own_token, head = self._pool.access, self._pool.own_token, self._head
        assert head is not None, "its answer has not begun"
        newer = access.refresh_token() or access.token() != self._token
        if not newer or head.body_length != 0 or self._token_renewed:
            own_token.warning("the API server refuses the relay's own token (401)", trio.current_time())
            await self._cut()
            raise _own_token_refused()
        message = "the API server refused an old token; sending the request again with the new one"
        own_token.line(logging.INFO, message, trio.current_time())
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


def _own_token_refused() -> OutboundBroken:
    reason = "the API server refuses the relay's own service-account token"
    return OutboundBroken(Failure(StreamCode.DIAL_FAILED, Processed.NO, reason))
