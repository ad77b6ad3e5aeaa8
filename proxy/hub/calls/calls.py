"""`/clusters/<name>/…`: one Kubernetes API call, from its head to its closing audit event.

The order of the steps makes a call secure. First the caller, by a token that the hub signed. Then the
request, parsed as the API server parses it. Then the decision. Then the record, which is durable before a
write or an upgrade is forwarded. Only then a stream to the relay opens, under the agent's own identity and
with a new head.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import attrs
import trio
from msgspec.structs import replace

from audit.errors import AuditUnavailable
from audit.ids import new_eid
from audit.record import Approval, Decision, Event, Kind, Phase, Response
from audit.recording.recorder import Recorder
from auth.jws import TokenError
from auth.principal import Principal
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.access import AccessTokens, next_step
from proxy.hub.authorize.admission import (
    PREFIX,
    Admission,
    Call,
    Caller,
    ParsedRequest,
    Refusal,
    parse_request,
)
from proxy.hub.authorize.decisions import Verdict
from proxy.hub.authorize.events import Trail
from proxy.hub.authorize.reconsider import reconsider
from proxy.hub.calls.asked import AskedCalls, goes_on
from proxy.hub.calls.closing import closing_event, hub_failed, recorded_tunnel, went_away
from proxy.hub.calls.forwarding import FirstAttempt, Forwarding, OpenedStream
from proxy.hub.calls.limits import Exceeded, Limits
from proxy.hub.calls.live import Ending, LiveCall, LiveCalls
from proxy.hub.calls.outcome import CloseReason, Outcome
from proxy.hub.home.config import HubConfig
from proxy.hub.home.hosts import ClusterHosts
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.registry import Registry
from proxy.hub.store.directory import Directory
from proxy.listener.unauthenticated import PENDING_S
from proxy.message.failure import InboundBroken, Processed
from proxy.message.head import LONG_HEAD_BYTES, RequestHead, ResponseHead
from proxy.message.status import DENIAL_BYTES_MAX, STATUS_BYTES_MAX, status_response, with_processed
from proxy.process.settings import MIB
from tunnel import Memory
from tunnel.net.fairness import fairness
from tunnel.net.loglimit import LogLimit

# The exceptions of a connection whose client is gone. Any other exception is a bug.
CLIENT_LEFT = (trio.BrokenResourceError, trio.ClosedResourceError, InboundBroken)

_log = logging.getLogger("hawse.hub.calls")


@attrs.define(eq=False)
class Calls:
    """Answers the requests for clusters."""

    config: HubConfig
    directory: Directory
    tokens: AccessTokens
    registry: Registry
    direct: DirectRelays
    recorder: Recorder
    trail: Trail
    observe: Callable[[Event], None]
    """Called with each call's closing event, for the metrics."""
    memory: Memory = attrs.field(init=False)
    """The budget of all tunnels' windows, ledgers and heads (PROTOCOL.md, "Memory"), and of calls."""
    live: LiveCalls = attrs.field(init=False)
    """The server runs it, and calls its `reconsider` when the directory has changed."""
    limits: Limits = attrs.field(init=False)
    """The server runs it, on `live`."""
    asked: AskedCalls | None = attrs.field(init=False, default=None)
    """Answers the calls that a rule asks about; set before the first call."""
    hosts: ClusterHosts | None = attrs.field(init=False)
    """The hosts of the clusters, if they have any."""

    admission: Admission = attrs.field(init=False)
    forwarding: Forwarding = attrs.field(init=False)
    _unrecorded: LogLimit = attrs.Factory(lambda: LogLimit(_log))

    @memory.default
    def _configured_memory(self) -> Memory:
        return Memory(self.config.memory_mib * MIB)

    @live.default
    def _live_calls(self) -> LiveCalls:
        return LiveCalls(self.judge)

    @admission.default
    def _admission_of_these(self) -> Admission:
        return Admission(self.tokens, self.directory)

    @forwarding.default
    def _forwarding_of_these(self) -> Forwarding:
        return Forwarding(self.registry, self.direct, self.prefix_of, partial(_recheck, self.directory))

    @hosts.default
    def _configured_hosts(self) -> ClusterHosts | None:
        return self.config.hosts

    @limits.default
    def _configured_limits(self) -> Limits:
        return Limits(self.config.limits, memory=self.memory, stored=self.recorder.take_stored)

    def judge(self, live: LiveCall) -> Ending | None:
        """Return why a live call must end: it would be refused now, or have another identity."""
        verdict = reconsider(self.directory.current, live.call, time.time())
        if isinstance(verdict, str):
            return Ending(CloseReason.REVOKED, verdict)
        if not (verdict.allowed or goes_on(live, verdict, self.asked)):
            why = f": {verdict.decision.failure}" if verdict.decision.failure else ""
            denies = "asks for an approval of it" if verdict.asked else "denies it"
            reason = f"{verdict.rule} {denies} since bundle {verdict.bundle.id}{why}"
            return Ending(CloseReason.REVOKED, reason)
        self._limit(live, verdict)
        return None

    def _limit(self, live: LiveCall, verdict: Verdict) -> None:
        """Limit a call to the duration that its rule allows, from its beginning or its approval."""
        longest_s = verdict.decision.max_duration_s
        began_s = live.began_s if live.call.verdict.decision.ask is None else live.forwarded_s
        if longest_s is not None and began_s is not None:
            left_s = began_s + longest_s - time.monotonic()
            self.live.limit(live, left_s, f"{verdict.rule} allows {longest_s:.0f} s, and they are over")

    def placed(self, head: RequestHead) -> RequestHead | None:
        """Return the request with its cluster in the path, also if its host names the cluster.

        None for the host of an unknown cluster. On a cluster's host every path is the API server's, also
        `/oauth/token`.
        """
        if self.hosts is None:
            return head
        name = self.hosts.cluster_of(head.header(b"host") or b"")
        if name is None:
            return head
        if name not in self.directory.current.clusters_by_name:
            return None
        return RequestHead(head.method, b"%b%b%b" % (PREFIX, name.encode("ascii"), head.target), head.fields)

    def prefix_of(self, call: Call) -> bytes:
        """Return the prefix of the API server's paths, as the client of a call sees them."""
        if self.hosts is not None and self.hosts.cluster_of(call.head.header(b"host") or b"") is not None:
            return b""
        return PREFIX + call.cluster.name.encode("ascii")

    async def handle(
        self,
        connection: ServerConnection,
        head: RequestHead,
        client_ip: str,
        *,
        authenticated: Callable[[Principal], None],
    ) -> None:
        """Answer one request on a client's connection. `authenticated` is called once its sender is known.

        A cancelled call cuts the client's connection and resets the stream to the relay. It has its closing
        event too.
        """
        parsed = parse_request(head.method, head.target)
        if len(head.target) > LONG_HEAD_BYTES:
            # Recording and forwarding it takes as long as parsing it.
            await fairness().wait_alone(connection.peer)
        now = time.time()
        try:
            caller = self.admission.caller(head, parsed, now)
        except TokenError as error:
            self.recorder.complete(
                self.trail.unauthenticated(
                    Kind.AUTH_FAILED, client_ip=client_ip, note=error.reason, head=head
                )
            )
            with trio.move_on_after(PENDING_S):
                step = next_step(error, self.config.public_url)
                await connection.answer(*status_response(401, "", f"{error.reason}; {step}"))
            return
        authenticated(caller.claims.principal)
        # A watch would keep it for hours.
        del authenticated
        now_s = time.monotonic()
        call = self.admit(head, parsed, caller, client_ip, now, now_s)
        if isinstance(call, Refusal):
            await connection.answer(*refusal_response(head, call))
            return
        live = LiveCall(call, new_eid(), connection, now, now_s)
        # This comes before the first wait, so that every later change of the directory finds the call.
        self.enter(live)
        try:
            if call.verdict.decision.ask is not None:
                assert self.asked is not None, "the hub sets it before it accepts"
                await self.asked.carry(connection, live)
                return
            opening = await self.record(connection, live)
            if opening is not None:
                await self.carry(connection, live, opening, None, time.monotonic())
        finally:
            self.leave(live)

    def admit(
        self,
        head: RequestHead,
        parsed: ParsedRequest,
        caller: Caller,
        client_ip: str,
        now: float,
        now_s: float,
    ) -> Call | Refusal:
        """Return the call if it is admitted; otherwise record the refusal and return it.

        Call it once for each request, because each counts against its agent's rate. `now` is in epoch
        seconds, `now_s` on the monotonic clock.
        """
        agent = caller.claims.principal
        age = self.directory.age
        # Before a timer can run, if this process was stopped while the request waited in the socket.
        stale = now_s >= age.serves_until_s
        exceeded = _unconfirmed(age.refusal(now_s)) if stale else self.limits.admit(agent)
        if exceeded is None:
            call = self.admission.admit(head, parsed, caller, client_ip, now)
        else:
            call = Refusal(exceeded.status, exceeded.rule, exceeded.message)
            fault = self.admission.fault(head, parsed, caller)
            if fault is not None:
                # The record has what an agent tries, at any rate of requests.
                call = attrs.evolve(call, kind=fault.kind, note=fault.note or fault.message)
        if isinstance(call, Refusal):
            self._record_refusal(head, parsed, caller, client_ip, call)
        return call

    def _record_refusal(
        self, head: RequestHead, parsed: ParsedRequest, caller: Caller, client_ip: str, refusal: Refusal
    ) -> None:
        event = self.trail.call(
            head=head,
            parsed=parsed,
            client_ip=client_ip,
            claims=caller.claims,
            agent=caller.agent,
            cluster=caller.cluster,
            decision=refusal.decision or Decision("deny", refusal.rule),
            kind=refusal.kind,
            note=refusal.note or refusal.message,
            undecided=refusal.decision is None and refusal.status != 403,
            claimed_reason=caller.claimed_reason,
        )
        self.refused(event, refusal.status)

    def enter(self, live: LiveCall) -> None:
        """Make a call one of the live calls, and of its agent's calls."""
        self.live.enter(live)
        self.limits.enter(live)
        verdict = live.call.verdict
        if verdict.decision.max_duration_s is not None:
            self._limit(live, verdict)

    def leave(self, live: LiveCall) -> None:
        """Remove a call that is over, and whose closing event is queued."""
        self.live.leave(live)
        self.limits.leave(live)

    def opening(self, live: LiveCall, *, phase: Phase = Phase.COMPLETE) -> Event:
        """Return the event of a call's beginning: its intent, or the basis of a read's closing event."""
        call, approved = live.call, live.approved
        return self.trail.call(
            head=call.head,
            parsed=call.parsed,
            client_ip=call.client_ip,
            claims=call.claims,
            agent=call.agent,
            cluster=call.cluster,
            decision=call.verdict.recorded if approved is None else approved.recorded,
            phase=phase,
            eid=live.eid,
            began_at=live.began_at,
            approval=None if approved is None else Approval(approved.request_id),
            claimed_reason=call.caller.claimed_reason,
        )

    def start(self, live: LiveCall) -> Event:
        """Return the `start` event of a long read: its beginning, and its relay."""
        opening = self.opening(live, phase=Phase.START)
        live.show()
        return replace(opening, relay=live.relay, impersonated=live.impersonated or opening.impersonated)

    async def record(self, connection: ServerConnection, live: LiveCall) -> Event | None:
        """Return the opening event, durable for a write; None if the call was refused, and must not move."""
        durable = live.call.durable
        opening = self.opening(live, phase=Phase.INTENT if durable else Phase.COMPLETE)
        try:
            if durable:
                await self.recorder.intent(opening)
            elif not (self.recorder.healthy or self.config.audit.reads_when_down):
                raise AuditUnavailable("reads are refused too while it is (audit.reads_when_down)")
        except AuditUnavailable as error:
            await self.answer_unrecorded(connection, live, opening, error)
            return None
        return opening

    async def answer_unrecorded(
        self, connection: ServerConnection, live: LiveCall, opening: Event | None, error: AuditUnavailable
    ) -> None:
        """Refuse a call because the audit trail cannot be written."""
        said = f"refused a call because the audit trail cannot be written: {error}"
        self._unrecorded.line(logging.ERROR, said, trio.current_time())
        message = f"the audit trail cannot be written, so the call is refused: {error}"
        try:
            await connection.answer(*status_response(503, "", message))
        finally:
            if opening is not None and not live.call.durable:
                # The event of the gap counts refused writes. A refused read has only this event. It comes
                # last, because a read with a slow client may have its `start` event meanwhile.
                self.refused(replace(opening, note=message), 503)

    async def carry(
        self,
        connection: ServerConnection,
        live: LiveCall,
        opening: Event,
        first: FirstAttempt | None,
        began_s: float,
    ) -> None:
        """Forward a call that may move, after its first attempt if one was made, and record its end.

        `began_s` is on the monotonic clock. An internal fault is recorded and raised. The front then answers
        500, if the answer has not begun.
        """
        outcome: Outcome | None = None
        try:
            outcome = await self.forwarding.forward(connection, live, first)
        except CLIENT_LEFT:
            raise
        except Exception:
            outcome = hub_failed(connection, live)
            raise
        finally:
            if outcome is None:
                outcome = went_away(live)
            self.close(live, opening, outcome, began_s)

    def close(self, live: LiveCall, opening: Event, outcome: Outcome, began_s: float) -> None:
        """Record the end of a call that began at `began_s` on the monotonic clock."""
        if outcome.close_reason is CloseReason.CLIENT_GONE and live.ended is None:
            self.limits.cancelled(live.call.claims.principal)
        closing = closing_event(live, opening, outcome, (time.monotonic() - began_s) * 1000)
        self.recorder.complete(closing)
        self.observe(closing)

    def close_read(self, live: LiveCall, opened: OpenedStream, began_s: float) -> None:
        """Record the end of a small read with a complete answer. Cheaper than `opening` and `close`."""
        tally, relay = live.tally, opened.relay
        took_ms = round((time.monotonic() - began_s) * 1000, 3)
        resp = Response(tally.status, "", tally.bytes_out, took_ms, "yes")
        tunnel = recorded_tunnel(relay.session, opened.before)
        closing = self.trail.read(
            live.call, live.eid, relay.recorded, opened.impersonated, resp, took_ms, tunnel
        )
        self.recorder.complete(closing)
        self.observe(closing)

    def refused(self, event: Event, status: int) -> None:
        """Record a call that was not forwarded."""
        closing = event.completed(datetime.now(UTC), resp=Response(status, processed="no"))
        self.recorder.complete(closing)
        self.observe(closing)


def _unconfirmed(refusal: str) -> Exceeded:
    return Exceeded("directory", with_processed(refusal, Processed.NO), 503)


def _recheck(directory: Directory, live: LiveCall) -> None:
    """End a call that has waited since its admission, if the hub admits none now."""
    refusal = directory.refusal()
    if refusal:
        live.end(Ending(CloseReason.REVOKED, refusal, unavailable=True))


def refusal_response(head: RequestHead, refusal: Refusal) -> tuple[ResponseHead, bytes]:
    """Return the answer to a refused call."""
    bytes_max = STATUS_BYTES_MAX if head.upgrade is not None else DENIAL_BYTES_MAX
    return status_response(
        refusal.status, refusal.reason, refusal.message, details=refusal.details, bytes_max=bytes_max
    )
