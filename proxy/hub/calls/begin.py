"""Calls that begin without a task, in the callback of the client's socket.

Nearly every call can be begun, forwarded and recorded without a wait. To wake a task for it would cost more
than the rest of a small call. The intent of a write has to be durable first: the recorder calls `_recorded`
then. The client's task (`Calls.carry`) continues a call that has to wait, that has failed, or whose first
attempt is followed by another one. Nothing is decided here: admission, forwarding and recording are the
functions of `Calls`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from functools import partial

import attrs

from audit.errors import AuditUnavailable
from audit.ids import new_eid
from audit.record import Event, Phase
from auth.jws import TokenError
from auth.principal import Principal
from proxy.exchange.engine import Exchange
from proxy.exchange.parked_connection import Begun
from proxy.exchange.parked_exchange import check_fault
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.admission import Call, Refusal, parse_request
from proxy.hub.calls.attempt import outcome_of
from proxy.hub.calls.calls import Calls, refusal_response
from proxy.hub.calls.closing import hub_failed
from proxy.hub.calls.forwarding import ClusterOffline, OpenedStream, pass_head
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome, failed
from proxy.hub.calls.relay_port import RelayPort
from proxy.hub.relays.reachable import ReachableRelay
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead
from tunnel.net.waker import Waker

_LEFT = Failure(StreamCode.CANCEL, Processed.MAYBE, "the client or the hub went away")
_NOT_SENT = attrs.evolve(_LEFT, processed=Processed.NO)


def begin(
    calls: Calls,
    client_ip: str,
    connection: ServerConnection,
    head: RequestHead,
    authenticated: Callable[[Principal], None] | None = None,
) -> Begun | None:
    """Begin to answer a request; None if `Calls.handle` has to, and then nothing was done.

    `authenticated` is called once the sender is known, and not for a request that is left to `Calls.handle`.
    """
    now, now_s = time.time(), time.monotonic()
    if calls.hosts is not None:
        placed = calls.placed(head)
        if placed is None:
            return None
        head = placed
    if not calls.recorder.healthy:
        return None
    parsed = parse_request(head.method, head.target)
    try:
        caller = calls.admission.caller(head, parsed, now)
    except TokenError:
        return None
    # The conditions come before the admission, which counts the call and decides on it.
    cluster = caller.tunnelled
    if cluster is None:
        return None
    relay = calls.registry.session(cluster.id)
    if relay is None:
        return None
    if authenticated is not None:
        authenticated(caller.claims.principal)
    call = calls.admit(head, parsed, caller, client_ip, now, now_s)
    if isinstance(call, Refusal):
        return BegunRefusal(connection, head, call)
    if call.verdict.decision.ask is not None:
        asked = BegunAsked(calls, connection, call, now, now_s)
        calls.enter(asked)
        return asked
    live = BegunCall(calls, connection, call, relay, now, now_s)
    calls.enter(live)
    return live


class BegunRefusal:
    """A request that was refused and recorded without a task (Begun).

    The task answers it: refusals take the slow path on purpose.
    """

    def __init__(self, connection: ServerConnection, head: RequestHead, refusal: Refusal) -> None:
        self._connection = connection
        parked = connection.parked
        assert parked is not None, "it begins requests"
        self._parked = parked
        self._head = head
        self._refusal = refusal

    @property
    def peer(self) -> Hashable:
        """See Begun."""
        return self._connection.peer

    def start(self) -> None:
        """See Begun."""
        self._parked.hand_over()

    async def carry_on(self) -> None:
        """Answer, in the client's own task."""
        await self._connection.answer(*refusal_response(self._head, self._refusal))

    def give_up(self) -> None:
        """See Begun. Nothing is under way."""


class BegunAsked(LiveCall):
    """A call that was begun without a task, and that a rule asks about (Begun). The task answers it."""

    def __init__(
        self, calls: Calls, connection: ServerConnection, call: Call, began_at: float, began_s: float
    ) -> None:
        super().__init__(call, new_eid(), connection, began_at, began_s)
        self._calls = calls
        parked = connection.parked
        assert parked is not None, "it begins requests"
        self._parked = parked

    @property
    def peer(self) -> Hashable:
        """See Begun."""
        return self.connection.peer

    def start(self) -> None:
        """See Begun."""
        self._parked.hand_over()

    async def carry_on(self) -> None:
        """See Begun and AskedCalls."""
        calls = self._calls
        try:
            assert calls.asked is not None, "the hub sets it before it accepts"
            await calls.asked.carry(self.connection, self)
        finally:
            calls.leave(self)

    def give_up(self) -> None:
        """See Begun. The task was cancelled before it continued the call."""
        calls = self._calls
        try:
            outcome = failed(_NOT_SENT, CloseReason.CLIENT_GONE, self.tally)
            calls.close(self, calls.opening(self), outcome, self.began_s)
        finally:
            calls.leave(self)


class BegunCall(LiveCall):
    """A call that was begun without a task (Begun)."""

    opened: OpenedStream | None = None
    """The stream of the first attempt."""
    _intent: Event | None = None
    """The intent of a write; None for a read."""
    _failure: Failure | None = None
    """How the first attempt has failed."""
    _durable = True
    """False until the intent is on the disk."""
    _refused: AuditUnavailable | None = None
    """The intent cannot be recorded."""
    _left = False
    """The client or the hub went away, and the end is recorded."""
    _faulty = False
    """A bug ended it, and the task raises it."""

    def __init__(
        self,
        calls: Calls,
        connection: ServerConnection,
        call: Call,
        relay: ReachableRelay,
        began_at: float,
        began_s: float,
    ) -> None:
        super().__init__(call, new_eid(), connection, began_at, began_s)
        self._calls = calls
        self._connection = connection
        parked = connection.parked
        assert parked is not None, "it begins requests"
        self._parked = parked
        self._relay = relay

    @property
    def relay_of_first(self) -> ReachableRelay:
        """See FirstAttempt."""
        return self._relay

    @property
    def peer(self) -> Hashable:
        """See Begun."""
        return self._connection.peer if self.opened is None else self.opened.stream.peer

    def start(self) -> None:
        """See Begun."""
        call = self.call
        try:
            if call.parsed.durable or call.head.fields.upgrade is not None:
                self._durable = False
                self._intent = self._calls.opening(self, phase=Phase.INTENT)
                self._calls.recorder.begin_intent(self._intent, self._recorded)
            else:
                self._forward()
        except AuditUnavailable as error:
            self._refused = error
            self._hand_over()
        except Exception as error:
            self._fail(error)

    def _recorded(self, failure: str | None) -> None:
        """Forward the call, since its intent is durable, unless that failed."""
        if failure is not None:
            self._refused = AuditUnavailable(failure)
        else:
            self._durable = True
        port = self._parked.port
        if not port.passes.admits():
            # One commit can have hundreds of intents.
            port.passes.soon(port.peer, self._forward_recorded)
            return
        self._forward_recorded()

    def _forward_recorded(self) -> None:
        if self._left:
            return
        try:
            if self._refused is None:
                self._calls.forwarding.recheck(self)
            if self._refused is None and self.ended is None:
                self._forward()
            else:
                self._hand_over()
        except Exception as error:
            self._fail(error)

    def _hand_over(self) -> None:
        """Let the connection's task continue."""
        self._parked.hand_over()

    def _fail(self, error: Exception) -> None:
        """Let the connection's task raise a bug. Raised here, it would end the calls of others."""
        self._faulty = True
        self._parked.hand_over(error)

    def _forward(self) -> None:
        """Make the first attempt."""
        calls, call, port = self._calls, self.call, self._parked.port
        port.begin()
        try:
            self.opened = opened = calls.forwarding.open_stream(call, self.eid, self._relay, self.began_at)
        except (ClusterOffline, OutboundBroken):
            # The task looks for another relay, waits for one, and words the failure.
            self._hand_over()
            return
        stream, fields = opened.stream, call.head.fields
        upgrade = fields.upgrade is not None
        leave = None
        if self._intent is None and not call.parsed.tail:
            leave = partial(calls.forwarding.leave_doubted, self, opened, port)
        rewrite = partial(pass_head, calls.forwarding, self)
        relay = RelayPort(stream, call.head, call.cluster.name, rewrite, port.passes, leave)
        self.exchange = exchange = Exchange(
            port,
            relay,
            self._done,
            self._half_closed,
            bodiless=fields.body_length == 0 and not upgrade,
            upgrade=upgrade,
        )
        self.ports = port, relay
        if self.tally.held:
            exchange.hold()
        if self._connection.http.ended:
            port.attend()
        exchange.start()

    def _half_closed(self, patience_s: float) -> None:
        exchange = self.exchange
        assert exchange is not None, "it is half closed"
        self._parked.port.passes.later(patience_s, exchange.expire)

    def _done(self, failure: Failure | None) -> None:
        """Record a complete answer. The task continues after a failure."""
        try:
            if failure is not None:
                self.failure = self._failure = failure
                self._parked.hand_over()
                return
            calls, opened, ports, tally = self._calls, self.opened, self.ports, self.tally
            assert opened is not None, "the exchange has a stream"
            assert ports is not None, "the exchange has ports"
            client, relay = ports
            tally.bytes_in = client.bytes_delivered - relay.bytes_dropped
            tally.bytes_out = relay.bytes_passed
            self.exchange = self.ports = None
            opened.stream.close_nowait()
            try:
                if self._intent is None and self.call.parsed.small and not (self.guardrail or tally.bytes_in):
                    calls.close_read(self, opened, self.began_s)
                else:
                    self._close(outcome_of(self, client, None))
            finally:
                calls.leave(self)
            self._parked.complete()
        except Exception as error:
            self._fail(error)

    def show(self) -> None:
        """See LiveCall. A small read that is answered at once does not need this."""
        if self.relay is None and self.opened is not None:
            self.opened.show(self)

    async def carry_on(self) -> None:
        """Continue in the client's own task; see Calls.handle."""
        calls, connection = self._calls, self._connection
        try:
            if self._refused is not None:
                await calls.answer_unrecorded(connection, self, self._intent, self._refused)
                return
            if not self._durable:
                # The connection was closed meanwhile. A write without a durable intent is never forwarded.
                self._withdraw()
                return
            self.show()
            opening = self._intent or calls.opening(self)
            first = self if self._failure is not None else None
            await calls.carry(connection, self, opening, first, self.began_s)
        finally:
            self._leave_stream()
            calls.leave(self)

    async def outcome_of_first(self) -> Outcome:
        """See FirstAttempt."""
        connection, port = self._connection, self._parked.port
        waker = Waker("one task waits for an exchange")
        connection.on_port_cut = waker.unpark
        try:
            # The client still gets the part of a broken answer that has arrived.
            while port.cutting:
                await waker.park()
        finally:
            connection.on_port_cut = None
            self._leave_stream()
        check_fault(self._failure)
        return outcome_of(self, port, self._failure)

    def give_up(self) -> None:
        """See Begun. After a bug as well."""
        if self.over:
            return
        self._left = True
        calls, refused = self._calls, self._refused is not None
        try:
            if self.exchange is not None:
                self.exchange.end(_LEFT)
            self._leave_stream()
            if self._faulty:
                self._close(hub_failed(self._connection, self))
            elif not refused:
                if self._intent is None or self.opened is not None:
                    self._close(failed(self.failure or _LEFT, CloseReason.CLIENT_GONE, self.tally))
                else:
                    self._withdraw()
        finally:
            calls.leave(self)

    def _withdraw(self) -> None:
        """Record that a write was not forwarded."""
        assert self._intent is not None, "a write has an intent"
        self._left = True
        self._calls.recorder.withdraw(self._intent)

    def _leave_stream(self) -> None:
        self.leave_exchange()
        if self.opened is not None:
            self.opened.stream.close_nowait()

    def _close(self, outcome: Outcome) -> None:
        self.show()
        calls = self._calls
        calls.close(self, self._intent or calls.opening(self), outcome, self.began_s)
