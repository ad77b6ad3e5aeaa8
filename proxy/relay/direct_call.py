"""A request from the hub's own connection (direct mode), carried while the connection's task is parked."""

from __future__ import annotations

from functools import partial

import attrs

from auth.requestinfo import RequestInfo
from auth.tokens import RelayClaims
from proxy.exchange.client_port import ClientPort
from proxy.exchange.parked_exchange import ParkedExchange
from proxy.exchange.server import ServerConnection
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.rewrite import IdentityLines
from proxy.relay.exchange import Call, Upstream

_LEFT = Failure(StreamCode.CANCEL, Processed.MAYBE, "the hub or the relay went away")


class DirectCall(Call):
    """One open request; `carry` runs it to its end."""

    __slots__ = ("_client",)

    def __init__(
        self,
        upstream: Upstream,
        request: RequestHead,
        claims: RelayClaims,
        info: RequestInfo,
        long: bool,
        identity: IdentityLines,
    ) -> None:
        """Raises RewriteError."""
        super().__init__(upstream, request, claims, info, long, identity, upstream.pass_head)
        # Set by `carry`.
        self._client: ClientPort | None = None

    @property
    def held_bytes(self) -> int:
        """See Call."""
        client = self._client
        return super().held_bytes + (0 if client is None else client.held_bytes)

    @property
    def moved_bytes(self) -> int:
        """See Call."""
        client = self._client
        return self._port.bytes_passed + (0 if client is None else client.bytes_delivered)

    def revoke(self, failure: Failure) -> None:
        """See Call."""
        super().revoke(failure)
        client = self._client
        if client is not None and client.cutting:
            # The answer has failed by itself, and its last bytes are still queued for the hub.
            client.cut(failure, drop=True)

    async def carry(self, connection: ServerConnection) -> Failure | None:
        """Carry the request to its end; returns the failure to answer the hub with, if it needs an answer.

        Raises ExchangeFault. After that, or when cancelled, the hub's connection can only be cut.
        """
        fresh = False
        try:
            with connection.as_port() as client:
                self._client = client
                while True:
                    parked = ParkedExchange(connection, client, self._port, self.request)
                    self._exchange = parked.exchange
                    kept = not fresh and self._port.take_kept()
                    failure = await parked.run(None, None if kept else partial(self._connect, fresh=fresh))
                    if failure is None or not self._next_attempt(failure):
                        break
                    fresh = True
        finally:
            self._exchange.end(_LEFT)
            # Does nothing if the connection was given back.
            self._port.close()
            self.upstream.underway.end(self, self._exchange.status)
        return None if failure is None else self._fail(failure, parked.by_client)

    def _fail(self, failure: Failure, by_client: bool) -> Failure | None:
        """Log the failure; returns the one to answer with, unless the answer has begun or the hub is gone."""
        gone = by_client and failure.code is StreamCode.CANCEL
        if self.revoked is not None:
            failure, gone = attrs.evolve(self.revoked, processed=failure.processed), False
        self.log_failure(self.revoked or failure, gone=gone)
        return None if self._exchange.status or gone else failure
