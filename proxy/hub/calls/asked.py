"""The interface from calls to approvals, for calls about which a rule asks a person.

Admission lets such a call in, with a verdict that asks. It is a live call from then on. `AskedCalls` holds it
until it is approved, and only then forwards it. proxy/hub/approvals/held is the implementation.
"""

from __future__ import annotations

from typing import Protocol

from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.decisions import Verdict
from proxy.hub.calls.live import Approved, LiveCall


class AskedCalls(Protocol):
    """Answers the calls that a rule asks about."""

    async def carry(self, connection: ServerConnection, live: LiveCall) -> None:
        """Answer a call, in its connection's task: with a refusal, or by the relay once it is approved.

        Records its events. The caller has entered the call, and removes it afterwards. Raises as
        `Calls.carry`. A cancelled call is not forwarded, or it is cut.
        """
        ...

    def revoked(self, approved: Approved) -> bool:
        """Return whether an approval was revoked since it was used; must neither wait nor raise."""
        ...

    def leave(self) -> None:
        """Refuse the calls that wait, and let no other call wait, because the hub stops."""
        ...


def goes_on(live: LiveCall, verdict: Verdict, asked: AskedCalls | None) -> bool:
    """Return whether a live call may go on although the current policies ask about it.

    Only by the rule that asked when the call began: while the call waits, and while its approval is not
    revoked.
    """
    before, now = live.call.verdict.decision, verdict.decision
    if before.ask is None or now.ask is None or (before.policy, before.rule) != (now.policy, now.rule):
        return False
    return live.approved is None or (asked is not None and not asked.revoked(live.approved))
