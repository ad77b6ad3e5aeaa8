"""Sends allowed calls to a relay of their cluster: their attempts, and the answer after the last failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import attrs

from audit.record import Impersonated
from proxy.exchange.client_port import ClientPort
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.admission import Call
from proxy.hub.calls.attempt import run_attempt
from proxy.hub.calls.direct import run_direct
from proxy.hub.calls.explain_403 import LackedRights
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome, failed
from proxy.hub.calls.relay_port import RelayPort
from proxy.hub.calls.retry import ATTEMPTS_MAX, Attempt, Tried, Where, next_attempt
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.reachable import ReachableRelay
from proxy.hub.relays.registry import Registry
from proxy.hub.store.entities import Cluster, Mode
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import SAFE_METHODS, HeadError, HeadTooLarge, ResponseHead, request_line
from proxy.message.relay_marks import guardrail_of
from proxy.message.rewrite import hub_request_bytes, hub_response_head, sandboxed
from proxy.message.status import failure_response, status_response, with_processed
from tunnel import Detached, Draining, Interruptions, SessionClosed, Stream, TooManyStreams

# The API server's answers by which nothing was done: a conflict of versions, and an eviction that a
# PodDisruptionBudget forbids for now. Clients repeat both. A backend behind a proxy, and an API that is not
# known, may have acted before they answer so.
_NOT_TAKEN = frozenset({409, 429})


class ClusterOffline(Exception):
    """No relay of a cluster can take a request now."""

    def __init__(self, cluster: Cluster, why: str) -> None:
        super().__init__(f'cluster "{cluster.name}" is offline: {why}')


@attrs.define(eq=False)
class OpenedStream:
    """A stream to a relay under an agent's identity."""

    stream: Stream
    relay: ReachableRelay
    impersonated: Impersonated
    """The identity in the relay's token."""
    before: Interruptions
    """The interruptions of the tunnel until then."""

    def show(self, live: LiveCall) -> None:
        """Note in a call that it was sent on this stream."""
        live.relay, live.impersonated = self.relay.recorded, self.impersonated
        live.session, live.before = self.relay.session, self.before


class FirstAttempt(Protocol):
    """The first attempt of a call, made without a task, which has failed."""

    @property
    def relay_of_first(self) -> ReachableRelay:
        """The relay that it was sent to."""
        ...

    async def outcome_of_first(self) -> Outcome:
        """Return how it failed, once the client has the part of the answer that arrived.

        Raises ExchangeFault.
        """
        ...


@attrs.define(eq=False)
class _Route:
    """The relays of one call: the next one, and those that have not taken it."""

    registry: Registry
    live: LiveCall
    relay: ReachableRelay | None = None
    """None if the registry picks one, and in direct mode."""
    tried: list[ReachableRelay] = attrs.Factory(list)

    def leads(self, where: Where) -> bool:
        """Note the relay of the next attempt; return whether there is one."""
        relay = self.relay
        if where is Where.SAME:
            return True
        if relay is None:
            return where is Where.ANY
        self.tried.append(relay)
        if where is Where.SUBSTITUTE:
            self.live.moved_from = relay.instance
            self.relay = self.registry.substitute(relay)
            return True
        self.relay = self.registry.sibling(relay.cluster_id, self.tried)
        return self.relay is not None or where is Where.ANY


@attrs.define(eq=False)
class Forwarding:
    """Sends calls to relays."""

    registry: Registry
    direct: DirectRelays
    prefix_of: Callable[[Call], bytes]
    """Returns the prefix of the API server's paths, as the client of a call sees them."""
    recheck: Callable[[LiveCall], None]
    """Ends a call that has waited, if it may not be forwarded any more."""
    lacked: LackedRights = attrs.Factory(lambda: LackedRights(time.time))

    async def forward(
        self, connection: ServerConnection, live: LiveCall, first: FirstAttempt | None
    ) -> Outcome:
        """Send the call to a relay of its cluster, and answer the client in every case."""
        if first is not None and live.tally.status:
            # The answer has begun, so the client's connection is cut, and no other attempt follows.
            return await first.outcome_of_first()
        body, live.body = live.body, b""
        with connection.as_port(begin=first is None, keep_body=True, body=body) as client:
            outcome = await self._attempts(connection, client, live, first)
        return await self._answer_failed(connection, live, outcome)

    async def _attempts(
        self, connection: ServerConnection, client: ClientPort, live: LiveCall, first: FirstAttempt | None
    ) -> Outcome:
        """Make attempts until one is answered, or no other one may follow."""
        route = _Route(self.registry, live, None if first is None else first.relay_of_first)
        attempt = Attempt(Where.SAME)
        waited = False
        for number in range(1, ATTEMPTS_MAX + 1):
            if first is None:
                self.recheck(live)
            if first is not None:
                outcome, first = await first.outcome_of_first(), None
            elif live.ended is not None:
                # An earlier attempt reached no API server, unless its relay was in doubt.
                seen = Processed.MAYBE if live.moved_from else Processed.NO
                return failed(Failure(live.ended.code, seen, ""), CloseReason.REVOKED, live.tally)
            else:
                # If the second attempt is cancelled, the failure of the first one does not describe it.
                live.failure = None
                may_leave = number < ATTEMPTS_MAX
                try:
                    outcome = await self._attempt(connection, client, live, route, attempt, may_leave)
                except ClusterOffline as error:
                    if not waited and await self._wait_for_relay(live):
                        waited, route.relay = True, None
                        continue
                    return await self._answer_offline(connection, live, error)
                except OutboundBroken as error:
                    outcome = failed(error.failure, CloseReason.UPSTREAM_FAILED, live.tally)
            live.failure = outcome.failure
            left, live.leaves = live.leaves, False
            tried = Tried(number, attempt, client.whole, ended=live.ended is not None, left=left)
            following = next_attempt(outcome, tried)
            if following is None or not route.leads(following.where):
                break
            attempt = following
            client.rewind()
            live.tally.bytes_in = 0
        return outcome

    async def _attempt(
        self,
        connection: ServerConnection,
        client: ClientPort,
        live: LiveCall,
        route: _Route,
        attempt: Attempt,
        may_leave: bool,
    ) -> Outcome:
        """Make one attempt; raises ClusterOffline or OutboundBroken.

        With `may_leave`, a read is taken back from a tunnel in doubt, if another relay can answer it.
        """
        call = live.call
        rewrite = partial(pass_head, self, live)
        if call.cluster.mode is Mode.DIRECT:
            try:
                return await run_direct(
                    connection, live, client, self.direct, rewrite, self.recheck, renew=attempt.renew
                )
            except OutboundBroken as error:
                # The hub's own dial failed. A failure that the relay states is an outcome.
                raise ClusterOffline(call.cluster, error.failure.reason) from error
        route.relay = route.relay or self.registry.session(call.cluster.id)
        opened = self.open_stream(call, live.eid, route.relay, time.time(), renew=attempt.renew)
        opened.show(live)
        route.relay = opened.relay
        leave = None
        if may_leave and call.movable and not live.moved_from:
            leave = partial(self.leave_doubted, live, opened, client)
        relay = RelayPort(opened.stream, call.head, call.cluster.name, rewrite, client.passes, leave)
        return await run_attempt(connection, live, client, relay)

    async def _answer_offline(
        self, connection: ServerConnection, live: LiveCall, error: ClusterOffline
    ) -> Outcome:
        """Answer a call that no relay can take."""
        seen = Processed.MAYBE if live.moved_from else Processed.NO
        live.failure = Failure(StreamCode.REFUSED, seen, str(error))
        head, body = status_response(503, "", with_processed(str(error), seen))
        await connection.answer(head, body)
        live.tally.status = head.status
        return failed(live.failure, CloseReason.UPSTREAM_FAILED, live.tally)

    async def _answer_failed(self, connection: ServerConnection, live: LiveCall, outcome: Outcome) -> Outcome:
        """Answer a call whose last attempt has failed, if its client still waits; return its outcome."""
        if not outcome.unanswered:
            return outcome
        failure = outcome.failure
        if live.moved_from and failure is not None and failure.processed is Processed.NO:
            # The API server may have seen the first attempt.
            failure = live.failure = attrs.evolve(failure, processed=Processed.MAYBE)
            outcome = attrs.evolve(outcome, failure=failure)
        head, body = _failed_answer(live, outcome)
        await connection.answer(head, body)
        return attrs.evolve(outcome, status=head.status)

    def leave_doubted(self, live: LiveCall, opened: OpenedStream, client: ClientPort) -> bool:
        """End the attempt of a read whose tunnel is in doubt, if another relay can answer it.

        Return whether it was ended. Then `live.leaves` is set.
        """
        if live.ended is not None or live.tally.status or not client.whole:
            return False
        sibling = self.registry.substitute(opened.relay)
        if sibling is None:
            return False
        live.leaves = True
        reason = f"the tunnel of relay {opened.relay.instance} is silent: {sibling.instance} is asked instead"
        assert live.exchange is not None, "an attempt is under way"
        live.exchange.end(Failure(StreamCode.CANCEL, Processed.MAYBE, reason))
        return True

    async def _wait_for_relay(self, live: LiveCall) -> bool:
        """Wait for a relay of the cluster; False if none connects, True at once if the call is ended."""
        arrived = True
        with live.interruptible():
            arrived = await self.registry.relay_wait.wait_for(live.call.cluster.id)
        return arrived

    def open_stream(
        self, call: Call, audit_id: str, relay: ReachableRelay | None, now: float, *, renew: bool = False
    ) -> OpenedStream:
        """Open a stream to a relay of the cluster; raises ClusterOffline, also when there is none.

        Raises OutboundBroken for a head that is TOO_LARGE. `now` is in epoch seconds.
        """
        principal = call.agent.principal
        assert principal is not None
        if relay is None:
            if self.registry.is_away(call.cluster.id):
                raise ClusterOffline(call.cluster, "its relay has lost its connection, and is not back yet")
            raise ClusterOffline(call.cluster, "no relay of it is connected to this hub")
        contexts, session = relay.contexts, relay.session
        head, parsed = call.head, call.parsed
        if parsed.line is None:
            parsed.line = request_line(head.method, parsed.target)
        try:
            inner = hub_request_bytes(parsed.line, head, audit_id, call.client_ip, parsed.tail)
        except HeadTooLarge as error:
            # The client's head was within the bound, and the forwarded one is longer.
            raise OutboundBroken(Failure(StreamCode.TOO_LARGE, Processed.NO, str(error))) from error
        try:
            context = contexts.renew(principal, now) if renew else contexts.context_for(principal, now)
            stream = session.open_stream(inner, context=context.index, eof=head.fields.only_asks)
        except (SessionClosed, Draining, TooManyStreams, Detached) as error:
            raise ClusterOffline(call.cluster, str(error)) from error
        return OpenedStream(stream, relay, context.impersonated, session.interruptions)


def pass_head(forwarding: Forwarding, live: LiveCall, head: ResponseHead) -> ResponseHead:
    """Return the relay's head as the client gets it, and note that the call is answered.

    Raises OutboundBroken for a head that the hub cannot forward.
    """
    call, status = live.call, head.status
    parsed = call.parsed
    try:
        answer = head.without_hop()
        if answer is None:
            prefix = forwarding.prefix_of(call)
            answer = hub_response_head(head, prefix, parsed.target, call.head.header(b"host"))
            answer.encode()
        if status == 403:
            live.guardrail = guardrail_of(head)
            forwarding.lacked.note(head, call.cluster.name)
        if parsed.tail:
            answer = sandboxed(answer)
            answer.encode()
    except HeadError as error:
        raise OutboundBroken(Failure(StreamCode.PROTOCOL, Processed.YES, str(error))) from error
    tally = live.tally
    tally.status = status
    tally.upgraded = status == 101
    if live.approved is not None:
        live.approved.settle(taken=not live.guardrail and _may_be_taken(call, status))
    if not parsed.small and call.long:
        # The token is most of the request's headers, and a watch keeps them for hours.
        call.head.fields.forget_parts()
    return answer


def _may_be_taken(call: Call, status: int) -> bool:
    """Whether the API server may have carried out an asked call that it answers with this status."""
    ask = call.verdict.decision.ask
    known = ask is not None and ask.knows_api(call.info) and not call.parsed.tail
    return not known or status not in _NOT_TAKEN


def _failed_answer(live: LiveCall, outcome: Outcome) -> tuple[ResponseHead, bytes]:
    """Return the answer to a client whose call has failed before its answer began."""
    failure, request = outcome.failure, live.call.head
    assert failure is not None, "a call without a failure is answered"
    ended = live.ended
    if ended is not None and ended.unavailable:
        # As failure_status has it: after an unsafe request, the code must not invite a retry.
        safe = request.method in SAFE_METHODS and request.upgrade is None
        status = 503 if safe or failure.processed is Processed.NO else 504
        return status_response(status, "", with_processed(ended.reason, failure.processed, safe=safe))
    if ended is not None:
        if ended.code is not StreamCode.OVERLOADED:
            return status_response(403, "", ended.reason)
        failure = Failure(ended.code, failure.processed, ended.reason)
    if outcome.close_reason is CloseReason.CLIENT_ERROR:
        return status_response(400, "", failure.reason)
    if failure.code is StreamCode.UNAUTHENTICATED:
        # The agent's own credential was in order: a 401 would send its user to log in again.
        message = f"the relay of this cluster does not accept its hub: {failure.reason}"
        return status_response(503, "", with_processed(message, failure.processed))
    audit_header = ((b"audit-id", live.eid.encode("ascii")),)
    return failure_response(
        failure, request.method, upgrade=request.upgrade is not None, headers=audit_header
    )
