"""Tunnel mode: the streams that the hub opens in a session that this relay has dialled.

A stream's identity is the context that its OPEN names: the hub's token, verified once, with its claims stored
on the context. A refusal is a RESET. It states whether the API server may have seen the request, so the hub
knows whether to retry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from auth.hubclock import HubClocks, SessionClock, is_time
from auth.jws import TokenError
from proxy.exchange.groups import HUB_GROUP, RELAY_GROUP
from proxy.exchange.next_pass import NextPass
from proxy.kubernetes.statement import Statement
from proxy.message.failure import StreamCode
from proxy.message.head import LONG_HEAD_BYTES, HeadError, RequestHead
from proxy.process.clock import steady_s
from proxy.relay.denied import GuardrailDenied
from proxy.relay.exchange import Upstream, describe
from proxy.relay.tunnel_call import LEAVING, TunnelCall, fail
from proxy.relay.verify import Refused, Verifier, refusal
from tunnel import CloseCode, Context, Hello, Session, SessionClosed, Stream
from tunnel.net.fairness import fairness
from tunnel.stream import StreamReset

# A hub signs its time when it answers HELLO. A time that arrives later than this is too old to be trusted. It
# is less than SESSION_LIVED_S, or the dialer would not back off from a hub that signs no time.
FIRST_TIME_S = 5.0
# For requests that the hub has sent before our GOAWAY reaches it: a round trip of most links.
CROSSING_S = 1.0
OLD_HUB = "the hub has signed no time for this session: it is older than this relay: upgrade the hub first"


# Returns the current fault of the hub's clock, by this machine's clock; "" if there is none.
ClockFault = Callable[[], str]


async def serve_session(
    session: Session,
    upstream: Upstream,
    *,
    hubs: HubClocks,
    trusted: Callable[[ClockFault], None] = lambda _: None,
) -> None:
    """Serve the hub's streams until the session ends. A bug in one stream affects no other.

    The session ends if the hub does not sign its time for it, or if the hub's clock differs too much.
    `trusted` is called once the hub's time is known, so that its tokens can be verified. Its argument returns
    the clock's current fault: a clock that is set later ends no session.
    """
    hello = session.local
    assert isinstance(hello, Hello)
    clock = SessionClock(hubs, hello.nonce)
    verifier = Verifier(
        hubs.keys, hubs.issuer, hubs.cluster_id, lambda: clock.at(time.time(), steady_s()), hello.nonce
    )
    known = trio.Event()
    fault = OLD_HUB

    def learn(context: Context) -> None:
        nonlocal fault
        if context.group != HUB_GROUP:
            # The time comes before any token, so this hub signs no time. It has to use another relay.
            known.set()
            return
        statement = context.payload.decode("ascii", "replace")
        if not is_time(statement):
            verifier.learn([statement])
            return
        try:
            clock.update(statement, own_s=time.time(), steady_s=steady_s())
        except TokenError as error:
            if clock.known:
                verifier.doubt(f"the hub's time is not believed: {error.reason}")
                return
            fault = error.reason
        known.set()

    def clock_fault() -> str:
        try:
            verifier.hub_clock()
        except TokenError as error:
            return error.reason
        return ""

    async def expect_time() -> None:
        with trio.move_on_after(FIRST_TIME_S):
            await known.wait()
        if clock.known:
            trusted(clock_fault)
        else:
            # Requests that cross the GOAWAY are refused unprocessed, so the hub can retry them elsewhere.
            session.go_away(code=CloseCode.AUTH, reason=fault)
            await trio.sleep(CROSSING_S)
            session.end(CloseCode.AUTH, fault)

    # Registered before streams are served: a stream's token may need a key that a context announces.
    session.on_context(learn)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_time)
        server = SessionServer(upstream, verifier, nursery)
        nursery.start_soon(server.passes.run)
        session.flush_after(upstream.readiness)
        session.on_stream(server.serve)
        try:
            await session.wait_closed()
        finally:
            session.on_stream(None)
            server.leave()
        # The session's end breaks all its streams, so no answer can be sent any more.
        nursery.cancel_scope.cancel()


class Stated:
    """The relay's statement in one session: first in the hello, then in a new context for each change."""

    def __init__(self, session: Session) -> None:
        self._session = session
        hello = session.local
        assert isinstance(hello, Hello), "a relay dials"
        self._text = hello.statement
        self._context: int | None = None

    def tell(self, statement: Statement) -> None:
        """Send a statement if it differs from the last one. Does nothing when the session is over.

        The previous context is retired, so at most two are live: a hub accepts 16.
        """
        text = str(statement)
        if text == self._text:
            return
        with suppress(SessionClosed):
            context = self._session.add_context(RELAY_GROUP, text.encode("ascii"))
            if self._context is not None:
                self._session.retire_context(self._context)
            self._text, self._context = text, context


class SessionServer:
    """Serves the streams of one session. Tasks of `nursery` do the work that waits (a dial, a long head)."""

    def __init__(self, upstream: Upstream, verifier: Verifier, nursery: trio.Nursery) -> None:
        self._upstream = upstream
        self._verifier = verifier
        self._nursery = nursery
        self.passes = NextPass()
        """See tunnel_call.Server."""

    def serve(self, stream: Stream, in_turn: bool = False) -> None:
        """Begin to serve a stream. A bug in it affects no other stream.

        One message can contain a dozen long heads. One of them is parsed per loop pass (`in_turn`).
        """
        head = stream.head
        if len(head) > LONG_HEAD_BYTES and not in_turn:
            self._nursery.start_soon(self._serve_in_turn, stream)
            return
        try:
            claims = self._verifier.of_context(stream.context)
            try:
                request = RequestHead.decode(head)
            except HeadError as error:
                raise refusal(StreamCode.PROTOCOL, str(error)) from error
            call = self._upstream.prepare(request, claims, partial(TunnelCall, self, stream))
        except Refused as refused:
            refuse(stream, refused, self._upstream)
            return
        except Exception:
            fail(stream)
            return
        call.attempt()

    async def _serve_in_turn(self, stream: Stream) -> None:
        try:
            await fairness().wait_alone(stream.peer)
            # The session may have ended during the wait. A request sent now would have no owner.
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            stream.reset(LEAVING.code, processed=LEAVING.processed, reason=LEAVING.reason, in_line=True)
            stream.close_nowait()
            raise
        if stream.broken:
            stream.close_nowait()
        else:
            self.serve(stream, in_turn=True)

    # -- calls from TunnelCall: see tunnel_call.Server

    def dial(self, call: TunnelCall, *, fresh: bool) -> None:
        self._nursery.start_soon(partial(call.dial, fresh=fresh))

    # --

    def leave(self) -> None:
        """End the open calls of this session."""
        for call in self._upstream.underway:
            if isinstance(call, TunnelCall) and call.server is self:
                call.leave()


def refuse(stream: Stream, refused: Refused, upstream: Upstream) -> None:
    """Log the refusal, and answer the stream with it."""
    failure = refused.failure
    upstream.log_refusal(f"refused a request: {describe(failure)}")
    if isinstance(refused, GuardrailDenied):
        # A guardrail's denial is a complete answer, which the agent reads and the hub records.
        with suppress(StreamReset):
            stream.send_answer_nowait(refused.head.encode(), refused.body, eof=True)
    else:
        stream.reset(failure.code, processed=failure.processed, reason=failure.reason)
    stream.close_nowait()
