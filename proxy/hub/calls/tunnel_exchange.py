"""One attempt of a call in tunnel mode, by ports."""

from __future__ import annotations

from proxy.exchange.client_port import ClientPort
from proxy.exchange.forward import CloseReason, Outcome
from proxy.exchange.parked_exchange import ParkedExchange
from proxy.exchange.server import ServerConnection
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.relay_port import RelayPort
from proxy.message.failure import StreamCode


async def run_attempt(
    connection: ServerConnection, live: LiveCall, client: ClientPort, relay: RelayPort
) -> Outcome:
    """Carry one attempt to its end, including the bytes that are queued for the client.

    Raises ExchangeFault. A cancellation cuts the client's connection.
    """
    parked = ParkedExchange(connection, client, relay, live.call.head)
    live.exchange, live.ports = parked.exchange, (client, relay)
    if live.held:
        parked.exchange.hold()
    try:
        failure = await parked.run(relay.stream.peer)
    finally:
        live.leave_exchange()
        relay.stream.close_nowait()
    tally = live.tally
    reason = CloseReason.COMPLETE
    if failure is not None:
        reason = CloseReason.UPSTREAM_FAILED
        if parked.by_client:
            gone = failure.code is StreamCode.CANCEL
            reason = CloseReason.CLIENT_GONE if gone else CloseReason.CLIENT_ERROR
    return Outcome(tally.status, tally.bytes_in, tally.bytes_out, reason, failure, tally.upgraded)
