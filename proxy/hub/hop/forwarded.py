"""The second hub's side of forwarded calls: from the streams of a link to the sessions of its own relays.

The first hub has authenticated, decided and recorded a call. This hub splices it to the relay's session that
the context names, and mints the relay's token. It never forwards a call again: it looks only among its own
sessions (`Registry.find_session`), and no table or route leads it to a link.

It trusts the first hub's decision, but not its freshness. A call is served by no older snapshot than the
first hub decided by, and by none that is too old at all. The agent must be active here, and reach the cluster
by one of its teams; the token has no team that this hub's snapshot does not have. This is judged again after
each change, so a revocation ends a call also if the first hub hangs. That hub has JUDGED_LATER_S to end it by
itself, since its record has the reason then.

A refusal of this hub's own has `processed` NO, and the first hub may try another relay. Where this hub's
snapshot is newer, the first hub would decide otherwise by it: the code is then REVOKED, and none is tried.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import attrs
import trio

from proxy.exchange.engine import Exchange
from proxy.exchange.next_pass import NextPass
from proxy.hub.hop.call_context import BadContextError, CallContext
from proxy.hub.hop.splice_ports import PeerPort, SplicedPort
from proxy.hub.hop.target import Reach, Target
from proxy.hub.relays.contexts import AgentContext
from proxy.hub.relays.registry import Registry
from proxy.hub.store.directory import Directory
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.process.lifecycle.drain import Drained
from tunnel import Detached, Draining, SessionClosed, Stream, TooManyStreams
from tunnel.net.fairness import Chunks
from tunnel.net.waker import Waker

# How long a call waits for the version of the directory that the first hub decided by. A change is applied
# within milliseconds, or by the next poll.
VERSION_WAIT_S = 1.0
# The first hub applies a change within milliseconds of this one, or by its next poll. A revocation takes
# effect within two seconds at both.
JUDGED_LATER_S = 0.5
# Calls that wait for a version; further ones are refused at once. Each holds a stream and its request's head.
WAITING_MAX = 2000

_log = logging.getLogger("hawse.hub.hop")

_BEHIND = Failure(
    StreamCode.REFUSED, Processed.NO, "the relay's hub has not applied the directory's last change yet"
)
_FAULT = Failure(StreamCode.INTERNAL, Processed.MAYBE, "the relay's hub failed by a fault of its own")


class ForwardedCall:
    """A call that another hub has decided, while it is spliced here."""

    __slots__ = ("_calls", "_context", "_reach", "exchange", "incoming", "outgoing", "target")

    def __init__(
        self,
        calls: ForwardedCalls,
        target: Target,
        reach: Reach,
        context: AgentContext,
        incoming: Stream,
        outgoing: Stream,
        bodiless: bool,
    ) -> None:
        self._calls = calls
        self._reach = reach
        self._context = context
        self.target = target
        self.incoming = incoming
        self.outgoing = outgoing
        self.exchange = Exchange(
            PeerPort(incoming, calls.passes),
            SplicedPort(outgoing, calls.passes),
            self._done,
            bodiless=bodiless,
        )

    def _done(self, failure: Failure | None) -> None:
        try:
            if failure is not None:
                if failure.code is StreamCode.UNAUTHENTICATED:
                    self._renew_token()
                if not self.exchange.status:
                    refuse(self.incoming, failure)
        finally:
            self.incoming.close_nowait()
            self.outgoing.close_nowait()
            self._calls.leave(self)

    def _renew_token(self) -> None:
        """Mint another token, unless another call has done it, before the first hub tries again."""
        contexts, principal, now = self._reach.relay.contexts, self._reach.principal, time.time()
        try:
            if contexts.context_for(principal, now) is self._context:
                contexts.renew(principal, now)
        except SessionClosed:
            pass  # the next attempt finds that as well


class ForwardedCalls(Drained):
    """The calls that other hubs forward to this one; `serve` is called for each stream of a link."""

    def __init__(
        self,
        registry: Registry,
        directory: Directory,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic` is the directory's clock."""
        self.passes = NextPass()
        """Schedules calls for a later loop pass."""
        self._registry = registry
        self._directory = directory
        self._monotonic = monotonic
        self.begun = 0
        """Calls that were passed on to a relay, since the start."""
        self._calls: set[ForwardedCall] = set()
        self._waiting: dict[Stream, None] = {}
        self._changed = False
        self._judging = Waker("one task judges forwarded calls")

    # -- Drained. Whether a call is a watch is in its head, which this hub does not read. --

    @property
    def count(self) -> int:
        """See Drained."""
        return len(self._calls) + len(self._waiting)

    @property
    def long(self) -> int:
        """See Drained."""
        return self.count

    @property
    def any_long(self) -> bool:
        """See Drained."""
        return bool(self._calls or self._waiting)

    # -- calls of the hub --

    def serve(self, _link: object, stream: Stream) -> None:
        """Begin to serve a stream of a link. A bug in it affects no other stream."""
        try:
            self._serve(stream)
        except Exception:
            _log.exception("%r failed by a fault of ours", stream)
            refuse(stream, _FAULT)

    def reconsider(self) -> None:
        """Judge every call again, in the task of `run`; a listener of the directory."""
        self._changed = True
        self._judging.unpark()
        if self._waiting:
            self.passes.soon(self, self._serve_waiting)

    async def end_all(self, reason: str) -> int:
        """End every call because this hub may not serve any now; return their number."""
        failure = Failure(StreamCode.DRAINING, Processed.MAYBE, reason)
        ended, chunk = list(self._calls), Chunks()
        for call in ended:
            if chunk.over:
                await chunk.next()
            call.exchange.end(failure)
        return len(ended)

    async def run(self) -> NoReturn:
        """Make the calls of later passes, and judge the open calls after each change, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.passes.run)
            while True:
                if not self._changed:
                    await self._judging.park()
                self._changed = False
                await trio.sleep(JUDGED_LATER_S)
                await self._judge_all()

    def leave(self, call: ForwardedCall) -> None:
        """Remove a call that is over."""
        self._calls.discard(call)
        self._ended()

    # -- a call's beginning --

    def _serve(self, stream: Stream) -> None:
        directory = self._directory
        now_s = self._monotonic()
        if now_s >= directory.age.serves_until_s:
            refuse(stream, Failure(StreamCode.REFUSED, Processed.NO, directory.age.refusal(now_s)))
            return
        context = stream.context
        target = context.note
        if target is None:
            try:
                target = context.note = Target(CallContext.decode(context.payload))
            except BadContextError as error:
                refuse(stream, Failure(StreamCode.PROTOCOL, Processed.NO, f"the call's context: {error}"))
                return
        assert isinstance(target, Target)
        current = directory.current
        if target.awaits(current.version):
            self._await_version(stream)
            return
        verdict = target.judge(current, self._registry)
        if isinstance(verdict, Failure):
            refuse(stream, verdict)
        else:
            self._forward(stream, target, verdict)

    def _forward(self, stream: Stream, target: Target, reach: Reach) -> None:
        relay, whole = reach.relay, stream.at_end
        try:
            context = relay.contexts.context_for(reach.principal, time.time())
            outgoing = relay.session.open_stream(stream.head, context=context.index, eof=whole)
        except (SessionClosed, Draining, TooManyStreams, Detached) as error:
            refuse(stream, Failure(StreamCode.REFUSED, Processed.NO, str(error)))
            return
        call = ForwardedCall(self, target, reach, context, stream, outgoing, whole)
        self._calls.add(call)
        self.begun += 1
        call.exchange.start()

    # -- waiting for a version --

    def _await_version(self, stream: Stream) -> None:
        """Keep a stream until this hub has the version that its context names, for VERSION_WAIT_S at most."""
        if len(self._waiting) >= WAITING_MAX:
            refuse(stream, _BEHIND)
            return
        self._directory.poll_soon()
        self._waiting[stream] = None
        self.passes.later(VERSION_WAIT_S, partial(self._give_up, stream))

    def _give_up(self, stream: Stream) -> None:
        if stream in self._waiting:
            del self._waiting[stream]
            refuse(stream, _BEHIND)
            self._ended()

    def _serve_waiting(self) -> None:
        """Begin the calls whose version is there now."""
        version = self._directory.current.version
        for stream in list(self._waiting):
            target = stream.context.note
            assert isinstance(target, Target)
            if stream.broken or not target.awaits(version):
                self.passes.soon(stream.peer, partial(self._serve_later, stream))

    def _serve_later(self, stream: Stream) -> None:
        # It may have been given up in the meantime.
        if stream in self._waiting:
            del self._waiting[stream]
            if stream.broken:
                stream.close_nowait()
            else:
                self.serve(None, stream)
            self._ended()

    # -- the end of calls --

    async def _judge_all(self) -> None:
        """End the calls that this hub's snapshot no longer allows."""
        current = self._directory.current
        chunk = Chunks()
        for call in list(self._calls):
            if chunk.over:
                await chunk.next()
            verdict = call.target.judge(current, self._registry)
            if isinstance(verdict, Failure) and verdict.code is StreamCode.REVOKED:
                call.exchange.end(attrs.evolve(verdict, processed=Processed.MAYBE))


def refuse(stream: Stream, failure: Failure) -> None:
    """Reset a stream whose answer has not begun, and leave it."""
    stream.reset(failure.code, processed=failure.processed, reason=failure.reason, in_line=True)
    stream.close_nowait()
