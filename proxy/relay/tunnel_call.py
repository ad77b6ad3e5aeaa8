"""A request from a stream of the tunnel: an exchange of two ports that never waits.

Most requests find a kept connection and never need a task. They begin in the callback that accepts the
stream. They are answered in the callback that reads the API server's bytes. A task is started only for a
dial, which waits. The task ends when the exchange starts.

An attempt that fails before its answer has begun may be repeated (`_next_attempt`). Any other failure ends
the stream by a RESET. It has the reason, and states whether the API server may have seen the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import attrs

from auth.requestinfo import RequestInfo
from auth.tokens import RelayClaims
from proxy.exchange.engine import OVER, Exchange
from proxy.exchange.pool import may_send_again
from proxy.exchange.tunnel_port import TunnelPort
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.rewrite import IdentityLines, is_tail
from proxy.relay.exchange import Call, Upstream
from proxy.relay.pool import OWN_TOKEN_REFUSED
from tunnel import Stream

log = logging.getLogger("hawse.relay")

LEAVING = Failure(StreamCode.DRAINING, Processed.MAYBE, "the relay is going away")


class Server(Protocol):
    """Serves the streams of a session. When it ends, it calls `leave` of each open call."""

    def soon(self, call: Callable[[], None]) -> None:
        """Schedule a call for a later loop pass, outside of the tunnel's own work."""
        ...

    def dial(self, call: TunnelCall, *, fresh: bool) -> None:
        """Start a task that runs `dial` of the call."""
        ...

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Schedule a call after `delay_s` seconds."""
        ...


class TunnelCall(Call):
    """One open request; the caller makes the first `attempt`."""

    __slots__ = (
        "_attempts",
        "_client",
        "_exchange",
        "_identity",
        "_port",
        "_stream",
        "_token",
        "_token_renewed",
        "server",
    )

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
        self.server = server
        self.upstream = upstream
        self.request = request
        self.claims = claims
        self.info = info
        self.long = long
        self.revoked = None
        self._stream = stream
        self._identity = identity
        self._exchange: Exchange = OVER
        self._attempts = 0
        self._token_renewed = False
        self._port, self._token = upstream.pool.port(request, identity, is_tail(info), long)
        self._client = TunnelPort(stream, server.soon, upstream.pass_bytes, request.fields.body_length)

    @property
    def held_bytes(self) -> int:
        """See Call. The tunnel itself counts the stream's memory."""
        return self._port.held_bytes

    @property
    def moved_bytes(self) -> int:
        """See Call."""
        return self._stream.bytes_sent + self._stream.bytes_received

    def attempt(self, *, fresh: bool = False) -> None:
        """Send the request on a kept connection, or start a dial. `fresh`: use a new connection."""
        self._attempts += 1
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
        exchange, port = self._exchange, self._port
        try:
            if await port.dial(fresh=fresh):
                exchange.start()
        except OutboundBroken as broken:
            exchange.broken(port, broken.failure)
        except Exception as error:
            exchange.crash(error)

    def leave(self) -> None:
        """End the call because the relay is going away. The received part of the answer is still sent."""
        self._exchange.end(LEAVING, drop=False)

    async def revoke(self, failure: Failure) -> None:
        """See Call."""
        if self.revoked is None:
            self.revoked = failure
            if not (self._port.may_be_seen or self._attempts > 1):
                failure = attrs.evolve(failure, processed=Processed.NO)
            self._exchange.end(failure)

    def _half_closed(self, patience_s: float) -> None:
        self.server.later(patience_s, self._exchange.expire)

    def _done(self, failure: Failure | None) -> None:
        if failure is not None:
            try:
                if not self._exchange.status and self._next_attempt(failure):
                    return
                self._fail(failure)
            except Exception:
                fail(self._stream)
        if self._port.connection is not None:
            self._port.close()
        self._stream.close_nowait()
        self.upstream.underway.end(self)

    def _next_attempt(self, failure: Failure) -> bool:
        """Send the request again on a fresh connection, if it cannot have had an effect; return whether."""
        port, request = self._port, self.request
        if failure is OWN_TOKEN_REFUSED:
            pool = self.upstream.pool
            if self._token_renewed or not pool.renew_token(self._token, request):
                pool.log_own_token_refused()
                return False
            self._token_renewed = True
        elif not (port.reused and may_send_again(request, failure)):
            return False
        port.close()
        tail = is_tail(self.info)
        self._port, self._token = self.upstream.pool.port(request, self._identity, tail, self.long)
        self.attempt(fresh=True)
        return True

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
