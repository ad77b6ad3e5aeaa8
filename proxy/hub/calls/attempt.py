"""One attempt of a call, by ports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy.exchange.client_port import ClientPort
from proxy.exchange.parked_exchange import ParkedExchange, is_by_client
from proxy.exchange.server import ServerConnection
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome
from proxy.hub.calls.relay_port import RelaySide
from proxy.message.failure import Failure, StreamCode


async def run_attempt(
    connection: ServerConnection,
    live: LiveCall,
    client: ClientPort,
    relay: RelaySide,
    open_relay: Callable[[], Awaitable[object]] | None = None,
) -> Outcome:
    """Carry one attempt to its end, including the bytes that are queued for the client.

    `open_relay` connects to the relay first. It is cancelled when the call is ended or its client leaves.
    Raises what it raises, and ExchangeFault. A cancellation cuts the client's connection.
    """
    parked = ParkedExchange(connection, client, relay, live.call.head)
    live.exchange, live.ports = parked.exchange, (client, relay)
    if live.held:
        parked.exchange.hold()
    try:
        failure = await parked.run(relay.peer, open_relay)
    finally:
        live.leave_exchange()
        relay.close()
    return outcome_of(live, client, failure)


def outcome_of(live: LiveCall, client: ClientPort, failure: Failure | None) -> Outcome:
    """Return the outcome of an attempt that has ended."""
    tally = live.tally
    reason = CloseReason.COMPLETE
    if failure is not None:
        reason = CloseReason.UPSTREAM_FAILED
        if is_by_client(client, failure, raw=tally.upgraded):
            gone = failure.code is StreamCode.CANCEL
            reason = CloseReason.CLIENT_GONE if gone else CloseReason.CLIENT_ERROR
    return Outcome(tally.status, tally.bytes_in, tally.bytes_out, reason, failure, tally.upgraded)
