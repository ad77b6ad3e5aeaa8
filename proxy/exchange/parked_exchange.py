"""One exchange of ports, while the task of the client's connection is parked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

import trio

from proxy.exchange.client_port import ClientPort
from proxy.exchange.engine import FAULT, Exchange, Port
from proxy.exchange.server import ServerConnection
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead
from tunnel.net.fairness import fairness
from tunnel.net.waker import Waker

_CANCELLED = Failure(StreamCode.CANCEL, Processed.MAYBE, "the client or this process went away")


class ExchangeFault(Exception):
    """An internal fault has ended an exchange. The log has the traceback."""


def check_fault(failure: Failure | None) -> None:
    """Raise ExchangeFault for the failure of an exchange that an internal fault has ended."""
    # The exchange copies a failure to change `processed`, so the objects differ.
    if failure is not None and (failure.code, failure.reason) == (FAULT.code, FAULT.reason):
        raise ExchangeFault(failure.reason)


def is_by_client(client: ClientPort, failure: Failure | None, *, raw: bool) -> bool:
    """Whether a failed exchange was broken by its client. `raw`: it had its 101."""
    if failure is None:
        return False
    return client.broken_by is not None or (raw and failure.code is StreamCode.CANCEL)


class ParkedExchange:
    """Runs one exchange between the port of a connection (`ServerConnection.as_port`) and an upstream."""

    def __init__(
        self, connection: ServerConnection, client: ClientPort, upstream: Port, request: RequestHead
    ) -> None:
        self.failure: Failure | None = None
        """Why the exchange failed."""
        self._client = client
        self._done = False
        # The scope of the wait for the upstream, before the exchange starts.
        self._opening: trio.CancelScope | None = None
        self._waker = Waker("one task waits for an exchange")
        connection.on_port_cut = self._waker.unpark
        fields = request.fields
        upgrade = fields.upgrade is not None
        self.exchange = Exchange(
            client,
            upstream,
            self._on_done,
            self._on_half_closed,
            bodiless=fields.body_length == 0 and not upgrade,
            upgrade=upgrade,
        )

    @property
    def by_client(self) -> bool:
        """Whether the client broke the exchange."""
        return is_by_client(self._client, self.failure, raw=self.exchange.spliced)

    async def run(
        self, peer: Hashable, open_upstream: Callable[[], Awaitable[object]] | None = None
    ) -> Failure | None:
        """Start the exchange. Return its failure once it is over and the client has the queued bytes.

        `peer` is the fairness key of the upstream. `open_upstream` prepares the upstream first. It is
        cancelled when the exchange ends meanwhile, for instance because the client leaves. Raises what it
        raises, and ExchangeFault. A cancellation cuts both sides.
        """
        client = self._client
        try:
            client.attend()
            if open_upstream is not None:
                with trio.CancelScope() as self._opening:
                    await open_upstream()
                self._opening = None
            self.exchange.start()
            while not self._done or client.cutting:
                await self._waker.park()
            common = fairness()
            if not common.admits():
                # An upstream can end hundreds of exchanges at once.
                await common.wait(peer)
        finally:
            self.exchange.end(_CANCELLED)
        check_fault(self.failure)
        return self.failure

    def _on_done(self, failure: Failure | None) -> None:
        self._done = True
        self.failure = failure
        if self._opening is not None:
            self._opening.cancel()
        self._waker.unpark()

    def _on_half_closed(self, patience_s: float) -> None:
        self._client.passes.later(patience_s, self.exchange.expire)
