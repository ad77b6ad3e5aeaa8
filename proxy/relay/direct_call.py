"""A request from the hub's own connection (direct mode), carried by a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from auth.requestinfo import RequestInfo
from auth.tokens import RelayClaims
from proxy.exchange.forward import CloseReason, Tally, forward
from proxy.exchange.server import ServerConnection
from proxy.message.failure import Failure, OutboundBroken, Processed
from proxy.message.head import RequestHead
from proxy.message.rewrite import IdentityLines, is_tail
from proxy.relay.exchange import Call, Upstream
from proxy.relay.pool import Exchange
from proxy.relay.verify import Refused

Drop = Callable[[Failure], Awaitable[None]]
"""Cuts an answer that has begun, at once. It may be called again, and raises nothing."""


class DirectCall(Call):
    """One open request; `carry` runs it to its end."""

    __slots__ = ("_drop", "_inbound", "_outbound", "_tally")

    def __init__(
        self,
        upstream: Upstream,
        request: RequestHead,
        claims: RelayClaims,
        info: RequestInfo,
        long: bool,
        identity: IdentityLines,
    ) -> None:
        self.upstream = upstream
        self.request = request
        self.claims = claims
        self.info = info
        self.long = long
        self.revoked = None
        self._outbound = Exchange(upstream.pool, request, identity, is_tail(info))
        # The transferred bytes, set by `carry`.
        self._tally: Tally | None = None
        self._drop: Drop | None = None
        self._inbound: ServerConnection | None = None

    @property
    def held_bytes(self) -> int:
        """See Call."""
        held, inbound, tally = self._outbound.held_bytes, self._inbound, self._tally
        if inbound is not None:
            held += inbound.held_bytes
        return held if tally is None else held + len(tally.ahead or b"")

    @property
    def moved_bytes(self) -> int:
        """See Call."""
        return 0 if self._tally is None else self._tally.bytes_in + self._tally.bytes_out

    async def revoke(self, failure: Failure) -> None:
        """See Call."""
        if self.revoked is not None:
            return
        self.revoked = failure
        # The hub's side first, so that the hub gets this reason and not a follow-up error.
        await self._drop_answer()
        await self._outbound.abandon(failure)
        # Again, because the answer may have begun meanwhile.
        await self._drop_answer()

    async def _drop_answer(self) -> None:
        if self._drop is not None and self.revoked is not None and self._tally and self._tally.status:
            await self._drop(attrs.evolve(self.revoked, processed=Processed.YES))

    async def carry(self, inbound: ServerConnection, drop: Drop) -> None:
        """Carry the exchange to its end.

        `drop` cuts an answer that has begun. Raises Refused before the answer has begun: the caller sends the
        refusal. After a cancelled call, `inbound` can only be cut.
        """
        self._drop, self._tally, self._inbound = drop, Tally(), inbound
        try:
            await self._carry(inbound)
        finally:
            # The hub's connection may carry another request's answer next.
            self._drop = self._inbound = None
            self.end()

    async def _carry(self, inbound: ServerConnection) -> None:
        outbound, request = self._outbound, self.request
        try:
            await self._start(inbound)
            on_head = self.upstream.pass_head
            outcome = await forward(inbound, outbound, request, on_head=on_head, tally=self._tally)
        finally:
            await outbound.aclose()
        failure = outcome.failure
        if failure is None:
            return
        gone = outcome.close_reason is CloseReason.CLIENT_GONE
        if self.revoked is not None:
            failure, gone = self.revoked, False
        self.log_failure(failure, gone=gone)
        if outcome.status == 0 and not gone:
            raise Refused(failure)

    async def _start(self, inbound: ServerConnection) -> None:
        """Send the request. Raises Refused, also for a request that was cancelled meanwhile."""
        self._check_revoked(Processed.NO)
        # A dial may take seconds. A request that the hub cancels meanwhile must not be carried out.
        inbound.watch(self._outbound.abandon, body_is_read=self.request.body_length != 0)
        try:
            await self._outbound.start()
        except OutboundBroken as broken:
            self._check_revoked(broken.failure.processed)
            raise Refused(broken.failure) from broken
        finally:
            # When cancelled, this waits only until the watching task is cancelled as well.
            await inbound.unwatch()  # noqa: ASYNC102
        self._check_revoked(Processed.MAYBE)

    def _check_revoked(self, processed: Processed) -> None:
        if self.revoked is not None:
            raise Refused(attrs.evolve(self.revoked, processed=processed))
