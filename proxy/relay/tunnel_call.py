"""A request from a stream of the tunnel: an exchange of two ports that never waits.

Most requests find a kept connection and never need a task. They begin in the callback that accepts the
stream. They are answered in the callback that reads the API server's bytes. A task is started only for a
dial, which waits. The task ends when the exchange starts.

A failure that ends the call ends its stream by a RESET. It has the reason, and states whether the API server
may have seen the request.
"""

from __future__ import annotations

import logging
from typing import Protocol

from auth.requestinfo import RequestInfo
from auth.tokens import RelayClaims
from proxy.exchange.engine import Exchange
from proxy.exchange.next_pass import NextPass
from proxy.exchange.tunnel_port import TunnelPort
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.rewrite import IdentityLines
from proxy.relay.exchange import Call, Upstream
from tunnel import Stream

log = logging.getLogger("hawse.relay")

LEAVING = Failure(StreamCode.DRAINING, Processed.MAYBE, "the relay is going away")


class Server(Protocol):
    """Serves the streams of a session. When it ends, it calls `leave` of each open call."""

    passes: NextPass
    """Schedules calls for a later loop pass, or after a delay."""

    def dial(self, call: TunnelCall, *, fresh: bool) -> None:
        """Start a task that runs `dial` of the call."""
        ...


class TunnelCall(Call):
    """One open request; the caller makes the first `attempt`."""

    __slots__ = ("_client", "_stream", "server")

    def __init__(
        self,
        server: Server,
        stream: Stream,
        upstream: Upstream,
        request: RequestHead,
        claims: RelayClaims,
        info: RequestInfo,
        long: bool,
        identity: IdentityLines,
    ) -> None:
        """`server` serves the stream. Raises RewriteError."""
        super().__init__(upstream, request, claims, info, long, identity)
        self.server = server
        self._stream = stream
        self._client = TunnelPort(stream, server.passes, upstream.pass_bytes, request.fields.body_length)

    @property
    def moved_bytes(self) -> int:
        """See Call."""
        return self._stream.bytes_sent + self._stream.bytes_received

    def attempt(self, *, fresh: bool = False) -> None:
        """Send the request on a kept connection, or start a dial. `fresh`: use a new connection."""
        fields, port = self.request.fields, self._port
        upgrade = fields.upgrade is not None
        self._exchange = exchange = Exchange(
            self._client,
            port,
            self._done,
            self._half_closed,
            bodiless=fields.body_length == 0 and not upgrade,
            upgrade=upgrade,
        )
        try:
            if not fresh and port.take_kept():
                exchange.start()
            else:
                self.server.dial(self, fresh=fresh)
        except Exception as error:
            exchange.crash(error)

    async def dial(self, *, fresh: bool) -> None:
        """Get a connection and start the exchange."""
        exchange = self._exchange
        if await self._connect(fresh=fresh):
            exchange.start()

    def leave(self) -> None:
        """End the call because the relay is going away. The received part of the answer is still sent."""
        self._exchange.end(LEAVING, drop=False)

    def _half_closed(self, patience_s: float) -> None:
        self.server.passes.later(patience_s, self._exchange.expire)

    def _done(self, failure: Failure | None) -> None:
        if failure is not None:
            try:
                if self._next_attempt(failure):
                    self.attempt(fresh=True)
                    return
                self._fail(failure)
            except Exception:
                fail(self._stream)
        if self._port.connection is not None:
            self._port.close()
        self._stream.close_nowait()
        self.upstream.underway.end(self, self._exchange.status)

    def _fail(self, failure: Failure) -> None:
        """Log the failure, and reset the stream if its answer has not begun."""
        gone = failure.code is StreamCode.CANCEL
        # Compare the code, not the object: the exchange copies a failure to change `processed`.
        leaving = failure.code is StreamCode.DRAINING
        if not leaving:
            self.log_failure(self.revoked or failure, gone=gone)
        if not (self._exchange.status or gone):
            self._stream.reset(
                failure.code, processed=failure.processed, reason=failure.reason, in_line=leaving
            )


def fail(stream: Stream) -> None:
    """Log a bug of ours and reset its stream. Call it in the exception's handler."""
    log.exception("%r failed by a fault of ours", stream)
    stream.reset(StreamCode.INTERNAL, reason="the relay failed by a fault of its own", in_line=True)
    stream.close_nowait()
