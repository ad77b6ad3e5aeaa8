"""Calls in direct mode: one attempt on a connection to the cluster's relay.

The relay's own refusal is marked by a reserved header. It fails the exchange, and never reaches the client.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import attrs

from audit.record import Relay
from proxy.exchange.client import ClientConnection
from proxy.exchange.client_port import ClientPort
from proxy.exchange.http_state import DONE
from proxy.exchange.pool import may_send_again
from proxy.exchange.server import ServerConnection
from proxy.exchange.upstream_port import UpstreamPort
from proxy.hub.authorize.events import impersonated
from proxy.hub.calls.attempt import run_attempt
from proxy.hub.calls.explain_403 import Held403, may_be_explained
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome, failed
from proxy.hub.relays.direct import INSTANCE, DirectRelays, DirectRequest
from proxy.hub.store.entities import Cluster
from proxy.message.failure import OutboundBroken
from proxy.message.head import ResponseHead
from proxy.message.relay_marks import failure_of
from proxy.message.rewrite import hub_request_head

_DIRECT = Relay(INSTANCE)


class DirectPort(UpstreamPort):
    """The answering side of one request to a relay (a Port)."""

    __slots__ = ("_cluster", "_held", "_request")

    evicted = False
    """It has no stream of a tunnel that could be evicted."""

    def __init__(
        self,
        request: DirectRequest,
        cluster: Cluster,
        rewrite: Callable[[ResponseHead], ResponseHead],
        *,
        long: bool,
    ) -> None:
        """`rewrite` returns the client's head of the API server's; it raises OutboundBroken if none fits."""
        super().__init__(
            request.connections, request.inner, long=long, rewrite=rewrite, head_on=request.head_on
        )
        self._request = request
        self._cluster = cluster
        self._held: Held403 | None = None

    @property
    def peer(self) -> Hashable:
        """The fairness key of the relay."""
        return self._cluster.id

    @property
    def held_bytes(self) -> int:
        """See UpstreamPort; with the body of a 403 that is read to its end."""
        held = self._held
        return super().held_bytes + (0 if held is None else held.held_bytes)

    async def open(self, *, fresh: bool = False) -> None:
        """Get a connection: a new one if `fresh`. Raises OutboundBroken."""
        await self._request.open(self, fresh=fresh)

    def _answer(self, connection: ClientConnection, head: ResponseHead) -> None:
        failure = failure_of(head)
        if failure is not None:
            raise OutboundBroken(failure)
        if not may_be_explained(head):
            super()._answer(connection, head)
            return
        self._answered = True
        self._head = self._head_on = None
        rewrite, self._rewrite = self._rewrite, None
        assert rewrite is not None, "it is given"
        self._held = Held403(head, self._cluster.name, rewrite)
        if self._pass_on(connection, connection.http.receive_body()):
            self._go_on(connection)

    def _pass_on(self, connection: ClientConnection, piece: bytes | None) -> bool:
        """See UpstreamPort. A short 403 is passed on once its body has arrived."""
        held, http = self._held, connection.http
        if held is None:
            return super()._pass_on(connection, piece)
        while piece is not None:
            held.add(piece)
            if http.incoming is DONE:
                self.connection = self._held = None
                self._connections.release_watched(connection)
                head, body = held.answer()
                self.bytes_passed += len(body)
                self.exchange.answer_head(head, body, True)
                return False
            if not (http.held or http.ended):
                return True
            piece = http.receive_body()
        return True


async def run_direct(
    connection: ServerConnection,
    live: LiveCall,
    client: ClientPort,
    relays: DirectRelays,
    rewrite: Callable[[ResponseHead], ResponseHead],
    recheck: Callable[[LiveCall], None],
    *,
    renew: bool,
) -> Outcome:
    """Carry one attempt to its end; raises OutboundBroken if the relay cannot be reached, and ExchangeFault.

    `rewrite` returns the client's head of the API server's. `recheck` ends the call if it may not be
    forwarded after the dial. `renew` mints a new token. A kept connection that the relay had closed is
    replaced once. Cancelled, the client's connection is cut.
    """
    call = live.call
    principal, parsed = call.agent.principal, call.parsed
    assert principal is not None
    inner = hub_request_head(call.head, parsed.target, live.eid, call.client_ip, parsed.tail)
    request = relays.request(call.cluster, principal, inner, renew=renew)

    async def run(*, fresh: bool) -> tuple[DirectPort, Outcome]:
        port = DirectPort(request, call.cluster, rewrite, long=call.long)

        async def open_relay() -> None:
            await port.open(fresh=fresh)
            recheck(live)
            live.relay, live.impersonated = _DIRECT, impersonated(principal, request.session)

        return port, await run_attempt(connection, live, client, port, open_relay)

    port, outcome = await run(fresh=False)
    failure = outcome.failure
    if failure is None or outcome.status or live.ended is not None:
        return outcome
    if port.reused and may_send_again(call.head, failure):
        try:
            _, outcome = await run(fresh=True)
        except OutboundBroken as error:
            # The relay may have read the request on the kept connection.
            unreached = attrs.evolve(error.failure, processed=failure.processed)
            return failed(unreached, CloseReason.UPSTREAM_FAILED, live.tally)
    return outcome
