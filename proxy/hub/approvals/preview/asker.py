"""Requests of the hub under an agent's name, to any relay of a cluster: in a tunnel, direct, at another hub.

They take the way of the agent's calls. The agent's policies decide about each of them, and so do the relay's
guardrails, and the API server sees the agent. They count in the agent's rate. Each is an event of kind
`preview` in the trail, which names the call that it serves. A dry run's intent is durable before it is sent,
as a write's is: if an API wrote all the same, the trail has it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Final

import attrs
import trio
from msgspec.structs import replace

from audit.errors import AuditUnavailable
from audit.ids import new_eid
from audit.record import Decision, Event, Kind, Phase, Relay, Response
from auth.policy.match import NO_RULE
from proxy.exchange.engine import Exchange
from proxy.exchange.next_pass import NextPass
from proxy.hub.approvals.preview.answer_port import TOO_LONG, AnswerPort
from proxy.hub.approvals.preview.probes import Probe
from proxy.hub.approvals.preview.shapes import PreviewRefused, refusal_of
from proxy.hub.authorize.admission import Call, ParsedRequest
from proxy.hub.authorize.decisions import judge
from proxy.hub.authorize.events import GUARDRAILS, impersonated
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.direct import DirectPort
from proxy.hub.calls.forwarding import ClusterOffline, OpenedStream
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome
from proxy.hub.calls.relay_port import RelayPort, RelaySide
from proxy.hub.calls.retry import ATTEMPTS_MAX, Attempt, Tried, Where, next_attempt
from proxy.hub.relays.direct import INSTANCE
from proxy.hub.relays.reachable import ReachableRelay
from proxy.hub.store.entities import Mode
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.relay_marks import guardrail_of
from proxy.message.rewrite import hub_request_head
from proxy.message.status import failure_status, with_processed
from tunnel.net.waker import Waker

# From the request to the end of its answer. The agent waits, and most answers take milliseconds.
ANSWER_S: Final = 5.0
# The limit of a held call's body too. No person reads a larger object.
ANSWER_BYTES_MAX: Final = 1024 * 1024
# Requests of one agent's previews at a time. The API server counts them as the agent's.
PER_AGENT: Final = 4

_DIRECT: Final = Relay(INSTANCE)
# Of the call's own headers. The others say how its answer is sent, or belong to its connection.
_KEPT_HEADERS: Final = frozenset({b"content-type", b"content-encoding", b"user-agent"})
_STOPPED: Final = Failure(StreamCode.CANCEL, Processed.MAYBE, "the preview was cancelled")
_SLOW: Final = Failure(StreamCode.TIMEOUT, Processed.MAYBE, f"no answer within {ANSWER_S:.0f} s")


@attrs.frozen
class Answer:
    """An answer of the API server."""

    status: int
    body: bytes


class RefusedError(Exception):
    """The agent is answered at once: a guardrail or a limit refuses the request, or the trail is down."""

    def __init__(self, refused: PreviewRefused) -> None:
        super().__init__(refused.message)
        self.refused = refused


class NotMadeError(Exception):
    """The agent's policies do not allow the request, so it was not made; the text says so."""


class NotAnsweredError(Exception):
    """There is no answer now: the relay is away, or the API server is slow; the text says which."""

    def __init__(self, why: str, *, too_long: bool = False) -> None:
        super().__init__(why)
        self.too_long = too_long
        """The answer was longer than ANSWER_BYTES_MAX."""


@attrs.define(eq=False)
class AgentSlots:
    """A number of tasks at a time for each agent; further ones wait, in their order."""

    per_agent: int
    _agents: dict[str, tuple[trio.Semaphore, set[object]]] = attrs.Factory(dict)
    """By agent: its slots, and the tasks that have one or wait for one."""

    @asynccontextmanager
    async def slot(self, agent_id: str) -> AsyncIterator[None]:
        """Wait for a slot, and take it for the block."""
        slots, tasks = self._agents.setdefault(agent_id, (trio.Semaphore(self.per_agent), set()))
        task = object()
        tasks.add(task)
        try:
            async with slots:
                yield
        finally:
            tasks.remove(task)
            if not tasks:
                del self._agents[agent_id]


@attrs.define(eq=False)
class Asker:
    """Makes the requests of all previews of a hub."""

    calls: Calls
    threads: trio.CapacityLimiter = attrs.field(init=False, factory=partial(trio.CapacityLimiter, 1))
    """Of the work on large answers. A second thread would wait for the first one's lock anyway."""
    _agents: AgentSlots = attrs.field(init=False, factory=lambda: AgentSlots(PER_AGENT))

    async def ask(self, live: LiveCall, probe: Probe, body: bytes, passes: NextPass) -> Answer:
        """Make one request for the preview of a call. `passes` must run meanwhile.

        Raises RefusedError, NotMadeError and NotAnsweredError. If it is cancelled, the stream is reset, and
        the event says that the answer is unknown.
        """
        async with self._agents.slot(live.call.agent.id):
            request = _Request(self.calls, live, self._admitted(live, probe, body), probe, body, passes)
            await request.record()
            with request.closing():
                return await request.answer()

    def _admitted(self, live: LiveCall, probe: Probe, body: bytes) -> Call:
        """Return the request as a call that the agent may make; raises RefusedError and NotMadeError."""
        calls, served = self.calls, live.call
        agent, cluster = served.agent, served.cluster
        verdict = judge(calls.directory.current.bundle, agent, cluster, probe.info, time.time())
        if probe.dry and verdict.decision is NO_RULE and served.verdict.asked:
            # The rule that asks about the call is the one that would allow it. It does not match dry runs.
            verdict = served.verdict
        elif not verdict.allowed:
            verb = "asks" if verdict.asked else "does not allow it"
            raise NotMadeError(f"not made, since a policy of the agent {verb} ({verdict.rule})")
        exceeded = calls.limits.admit(served.claims.principal)
        if exceeded is not None:
            raise RefusedError(PreviewRefused(exceeded.status, exceeded.message))
        headers = [(b"accept", probe.accept)]
        if probe.dry:
            headers += [pair for pair in served.head.headers if pair[0] in _KEPT_HEADERS]
            headers += [(b"content-length", b"%d" % len(body))]
        head = RequestHead.of(probe.method, probe.target, tuple(headers))
        parsed = ParsedRequest(cluster.name, probe.target, probe.info, durable=probe.dry, long_running=False)
        return Call(head, parsed, probe.info, served.caller, agent, cluster, served.client_ip, verdict)


@attrs.define(eq=False)
class _Request:
    """One request, and what is known about it."""

    calls: Calls
    live: LiveCall
    """The call that the preview serves."""
    call: Call
    probe: Probe
    body: bytes
    passes: NextPass
    eid: str = attrs.Factory(new_eid)
    began_at: float = attrs.Factory(time.time)
    began_s: float = attrs.Factory(time.monotonic)
    opening: Event = attrs.field(init=False)
    failure: Failure | None = None
    status: int = 0
    bytes_out: int = 0
    guardrail: str = ""

    @opening.default
    def _new_event(self) -> Event:
        call = self.call
        return self.calls.trail.call(
            head=call.head,
            parsed=call.parsed,
            client_ip=call.client_ip,
            claims=call.claims,
            agent=call.agent,
            cluster=call.cluster,
            decision=call.verdict.recorded,
            kind=Kind.PREVIEW,
            phase=Phase.INTENT if self.probe.dry else Phase.COMPLETE,
            eid=self.eid,
            began_at=self.began_at,
            serves=self.live.eid,
        )

    async def record(self) -> None:
        """Record a dry run before it is sent; raises RefusedError while the trail cannot be written."""
        try:
            if self.probe.dry:
                await self.calls.recorder.intent(self.opening)
            elif not self.calls.recorder.healthy:
                raise AuditUnavailable("no preview is made meanwhile")
        except AuditUnavailable as error:
            message = f"the audit trail cannot be written, so the call is refused: {error}"
            raise RefusedError(PreviewRefused(503, message)) from error

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Record the end of the request, also if it is cancelled."""
        try:
            yield
        finally:
            failure, event = self.failure, self.opening
            response = Response(
                self.status,
                failure.reason if failure is not None else "",
                self.bytes_out,
                round((time.monotonic() - self.began_s) * 1000, 3),
                failure.processed.name.lower() if failure is not None else "yes",
            )
            if self.guardrail:
                event = replace(event, decision=Decision("deny", self.guardrail, GUARDRAILS))
                response = replace(response, processed="no")
            self.calls.recorder.complete(event.completed(datetime.now(UTC), resp=response))

    async def answer(self) -> Answer:
        """Return the answer of the API server; raises RefusedError and NotAnsweredError."""
        self.failure = _STOPPED
        with trio.move_on_after(ANSWER_S) as deadline:
            port = await self._attempts()
        if deadline.cancelled_caught:
            self.failure = _SLOW
            raise NotAnsweredError(_SLOW.reason)
        self.failure, head, body = port.failure, port.answer, bytes(port.body)
        self.bytes_out = len(body)
        if self.failure is TOO_LONG:
            raise NotAnsweredError(self.failure.reason, too_long=True)
        if self.failure is not None:
            raise NotAnsweredError(failure_status(self.failure, b"GET").message)
        assert head is not None, "an exchange without a failure has an answer"
        self.status = head.status
        self.guardrail = guardrail_of(head) if head.status == 403 else ""
        if self.guardrail:
            raise RefusedError(attrs.evolve(refusal_of(head.status, body), guardrail=self.guardrail))
        return Answer(head.status, body)

    async def _attempts(self) -> AnswerPort:
        """Return the port with the answer, or with the failure of the last attempt."""
        registry, cluster = self.calls.registry, self.call.cluster
        attempt, relay = Attempt(Where.SAME), registry.session(cluster.id)
        tried: list[ReachableRelay] = []
        for number in range(1, ATTEMPTS_MAX + 1):
            if cluster.mode is Mode.DIRECT:
                port = await self._directly(renew=attempt.renew)
            else:
                port = await self._by_tunnel(relay, renew=attempt.renew)
            following = next_attempt(_outcome_of(port), Tried(number, attempt))
            if following is None:
                break
            attempt = following
            if relay is not None and attempt.where is not Where.SAME:
                tried.append(relay)
                sibling = registry.sibling(cluster.id, tried)
                if sibling is None and attempt.where is Where.OTHER:
                    break
                relay = sibling or relay
        return port

    async def _by_tunnel(self, relay: ReachableRelay | None, *, renew: bool) -> AnswerPort:
        self._check()
        try:
            opened = self.calls.forwarding.open_stream(self.call, self.eid, relay, time.time(), renew=renew)
        except ClusterOffline as error:
            raise self._offline(error) from error
        except OutboundBroken as error:
            self.failure = error.failure
            raise NotAnsweredError(error.failure.reason) from error
        self._sent_to(opened)
        return await self._run(
            RelayPort(opened.stream, self.call.head, self.call.cluster.name, _unchanged, self.passes)
        )

    def _sent_to(self, opened: OpenedStream) -> None:
        self.opening = replace(self.opening, relay=opened.relay.recorded, impersonated=opened.impersonated)

    async def _directly(self, *, renew: bool) -> AnswerPort:
        call = self.call
        principal = call.agent.principal
        assert principal is not None, "the agent of a call has a team"
        inner = hub_request_head(call.head, call.parsed.target, self.eid, call.client_ip)
        request = self.calls.direct.request(call.cluster, principal, inner, renew=renew)
        self.opening = replace(
            self.opening, relay=_DIRECT, impersonated=impersonated(principal, request.session)
        )
        for fresh in (False, True):
            upstream = DirectPort(request, call.cluster, _unchanged, long=False)
            try:
                port = await self._run(upstream, partial(upstream.open, fresh=fresh))
            except OutboundBroken as error:
                raise self._offline(ClusterOffline(call.cluster, error.failure.reason)) from error
            failure = port.failure
            # The relay may have closed a kept connection. A preview's request may always be repeated.
            if failure is None or not upstream.reused or failure.code is not StreamCode.UPSTREAM_RESET:
                break
        return port

    def _check(self) -> None:
        """Raise NotAnsweredError if the call that the preview serves must not go on."""
        self.calls.forwarding.recheck(self.live)
        if self.live.ended is not None:
            self.failure = attrs.evolve(_STOPPED, processed=Processed.NO)
            raise NotAnsweredError("the call has ended")

    def _offline(self, error: ClusterOffline) -> RefusedError:
        """Return the agent's answer: without a relay, the call cannot be made either."""
        self.failure = Failure(StreamCode.REFUSED, Processed.NO, str(error))
        return RefusedError(PreviewRefused(503, with_processed(str(error), Processed.NO)))

    async def _run(
        self, upstream: RelaySide, open_relay: Callable[[], Awaitable[None]] | None = None
    ) -> AnswerPort:
        """Carry one attempt to its end. Cancelled, it resets the stream.

        Raises what `open_relay` raises, and NotAnsweredError if the call has ended meanwhile.
        """
        waker = Waker("one task waits for an answer")
        port = AnswerPort(self.body if self.probe.dry else b"", ANSWER_BYTES_MAX, waker.unpark)
        exchange = Exchange(port, upstream, port.ended, bodiless=not (self.probe.dry and self.body))
        try:
            if open_relay is not None:
                await open_relay()
                self._check()
            exchange.start()
            while not port.done:
                await waker.park()
        finally:
            exchange.end(_STOPPED)
            upstream.close()
        return port


def _unchanged(head: ResponseHead) -> ResponseHead:
    return head


def _outcome_of(port: AnswerPort) -> Outcome:
    status = port.answer.status if port.answer is not None else 0
    return Outcome(status, 0, len(port.body), CloseReason.UPSTREAM_FAILED, port.failure, False)
