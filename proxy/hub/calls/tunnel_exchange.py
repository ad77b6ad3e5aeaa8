"""One attempt of a call by an exchange of ports, while the call's task is parked."""

from __future__ import annotations

from proxy.exchange.client_port import ClientPort
from proxy.exchange.engine import FAULT, Exchange
from proxy.exchange.forward import CloseReason, Outcome
from proxy.exchange.next_pass import NextPass
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.relay_port import RelayPort
from proxy.message.failure import Failure, Processed, StreamCode
from tunnel.net.fairness import fairness
from tunnel.net.waker import Waker

_CANCELLED = Failure(StreamCode.CANCEL, Processed.MAYBE, "the client or the hub went away")


class ExchangeFault(Exception):
    """An exchange of ports has ended by a fault of ours, of which the log has the traceback."""


class TunnelExchange:
    """Carries one attempt; `run` returns its outcome, or raises ExchangeFault.

    Cancelled, the client's connection is cut.
    """

    def __init__(self, live: LiveCall, client: ClientPort, relay: RelayPort, passes: NextPass) -> None:
        self._live = live
        self._client = client
        self._relay = relay
        self._passes = passes
        self._done = False
        self._failure: Failure | None = None
        self._waker = Waker("one task waits for an exchange")
        fields = live.call.head.fields
        upgrade = fields.upgrade is not None
        self._exchange = Exchange(
            client,
            relay,
            self._on_done,
            self._on_half_closed,
            bodiless=fields.body_length == 0 and not upgrade,
            upgrade=upgrade,
        )

    async def run(self) -> Outcome:
        """Carry the attempt to its end, what is queued for the client included."""
        live, client = self._live, self._client
        live.exchange, live.ports = self._exchange, (client, self._relay)
        if live.held:
            self._exchange.hold()
        try:
            client.attend()
            self._exchange.start()
            while not self._done or client.cutting:
                await self._waker.park()
            common = fairness()
            if not common.admits():
                # One relay can end hundreds at once.
                await common.wait(self._relay.stream.peer)
        finally:
            self._exchange.end(_CANCELLED)
            live.leave_exchange()
            self._relay.stream.close_nowait()
        failure = self._failure
        if failure is not None and (failure.code, failure.reason) == (FAULT.code, FAULT.reason):
            raise ExchangeFault(failure.reason)
        return self._outcome()

    def wake(self) -> None:
        """Look again whether all is done; the client's port calls it when it has cut the connection."""
        self._waker.unpark()

    def _on_done(self, failure: Failure | None) -> None:
        self._done = True
        self._failure = failure
        self._waker.unpark()

    def _on_half_closed(self, patience_s: float) -> None:
        self._passes.later(patience_s, self._exchange.expire)

    def _outcome(self) -> Outcome:
        tally, failure = self._live.tally, self._failure
        reason = CloseReason.COMPLETE
        if failure is not None:
            reason = CloseReason.UPSTREAM_FAILED
            by_client = self._client.broken_by is not None
            if by_client or (self._exchange.spliced and failure.code is StreamCode.CANCEL):
                gone = failure.code is StreamCode.CANCEL
                reason = CloseReason.CLIENT_GONE if gone else CloseReason.CLIENT_ERROR
        return Outcome(tally.status, tally.bytes_in, tally.bytes_out, reason, failure, tally.upgraded)
