"""A request that came by a stream of the tunnel: an exchange of two ports, in which nothing waits.

Most requests find a kept connection, and have no task from their first byte to their last one. They begin
where their stream is accepted, and are answered where the API server's bytes are read. A task is made for a
dial, which waits, and ends when the exchange starts.

An attempt that fails before its answer has begun may be followed by one more (`_next_attempt`). Everything
else is an end: RESET, with the reason and whether the API server may have seen the request.
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
    """Whose streams they are; it has them `leave` when it ends."""

    def soon(self, call: Callable[[], None]) -> None:
        """Have something called in a later pass, out of the midst of the tunnel's work."""
        ...

    def dial(self, call: TunnelCall, *, fresh: bool) -> None:
        """Have a task `dial` for the call."""
        ...

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something called after so many seconds."""
        ...


class TunnelCall(Call):
    """One request on its way; make the first `attempt`."""

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
        """`server` is whose stream it is; raises RewriteError."""
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
        """See Call. The tunnel counts what its stream holds."""
        return self._port.held_bytes

    @property
    def moved_bytes(self) -> int:
        """See Call."""
        return self._stream.bytes_sent + self._stream.bytes_received

    def attempt(self, *, fresh: bool = False) -> None:
        """Send the request, or have a task dial for it; on a `fresh` connection when it was sent before."""
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
        """Get a connection, and start."""
        exchange, port = self._exchange, self._port
        try:
            if await port.dial(fresh=fresh):
                exchange.start()
        except OutboundBroken as broken:
            exchange.broken(port, broken.failure)
        except Exception as error:
            exchange.crash(error)

    def leave(self) -> None:
        """End it because the relay is going away; what has come of the answer still arrives."""
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
        """Whether the request is sent again, on a fresh connection; nothing of it can have had an effect."""
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
        """Say why it did not end well."""
        gone = failure.code is StreamCode.CANCEL
        # After an answer has begun its processed flag is another, so it is another object.
        leaving = failure.code is StreamCode.DRAINING
        if not leaving:
            self.log_failure(self.revoked or failure, gone=gone)
        if not (self._exchange.status or gone):
            self._stream.reset(
                failure.code, processed=failure.processed, reason=failure.reason, in_line=leaving
            )


def fail(stream: Stream) -> None:
    """Say that a bug of ours has ended the stream; called where it was caught."""
    log.exception("%r failed by a fault of ours", stream)
    stream.reset(StreamCode.INTERNAL, reason="the relay failed by a fault of its own", in_line=True)
    stream.close_nowait()
