"""All asked calls of a hub."""

from __future__ import annotations

import attrs

from proxy.exchange.server import ServerConnection
from proxy.hub.approvals.held.held_call import HeldCall
from proxy.hub.approvals.held.parts import Parts
from proxy.hub.calls.live import Approved, LiveCall


@attrs.frozen(eq=False)
class HeldCalls:
    """Answers the calls that a rule asks about (AskedCalls)."""

    parts: Parts

    async def carry(self, connection: ServerConnection, live: LiveCall) -> None:
        """See AskedCalls."""
        ask = live.call.verdict.decision.ask
        assert ask is not None, "a rule asks about it"
        await HeldCall(self.parts, connection, live, ask).carry()

    def revoked(self, approved: Approved) -> bool:
        """See AskedCalls."""
        return self.parts.requests.revoked(approved.request_id)

    def leave(self) -> None:
        """See AskedCalls. A repeat of a refused call finds its request at the hub that serves next."""
        self.parts.waits.end()

    def on_change(self, ids: frozenset[str]) -> None:
        """Judge the live calls again if the request of one has changed; a listener of the requests."""
        if not self.parts.using.isdisjoint(ids):
            self.parts.calls.live.reconsider()
