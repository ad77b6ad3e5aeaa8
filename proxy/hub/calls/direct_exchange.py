"""One attempt of a call in direct mode, by an exchange of ports."""

from __future__ import annotations

from collections.abc import Callable

from audit.record import Relay
from proxy.exchange.client_port import ClientPort
from proxy.exchange.pool import may_send_again
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.events import impersonated
from proxy.hub.calls.attempt import run_attempt
from proxy.hub.calls.direct_port import DirectPort
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import Outcome
from proxy.hub.relays.direct import INSTANCE, DirectRelays
from proxy.message.head import ResponseHead
from proxy.message.rewrite import hub_request_head

_DIRECT = Relay(INSTANCE)


async def run_direct(
    connection: ServerConnection,
    live: LiveCall,
    client: ClientPort,
    relays: DirectRelays,
    rewrite: Callable[[ResponseHead], ResponseHead],
    *,
    renew: bool,
) -> Outcome:
    """Carry one attempt to its end; raises OutboundBroken if the relay cannot be reached, and ExchangeFault.

    `rewrite` returns the client's head of the API server's. `renew` mints a new token. A kept connection that
    the relay had closed is replaced once. Cancelled, the client's connection is cut.
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
            live.relay, live.impersonated = _DIRECT, impersonated(principal, request.session)

        return port, await run_attempt(connection, live, client, port, open_relay)

    port, outcome = await run(fresh=False)
    failure = outcome.failure
    if failure is None or outcome.status or live.ended is not None:
        return outcome
    if port.reused and may_send_again(call.head, failure):
        _, outcome = await run(fresh=True)
    return outcome
