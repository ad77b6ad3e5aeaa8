"""A request for approval: one exact call of an agent, and what a person decided about it."""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import Final

import attrs

from auth.requestinfo import BadTarget, RequestInfo, parse
from proxy.hub.approvals.view import View

# A request that is not decided ends after this long. An approval serves the repeat until then at most.
LIFE_S: Final = 3600.0


class State(StrEnum):
    """The states of a request."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    USING = "using"
    """A hub has taken the grant for a call that is under way."""
    USED = "used"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    STALE = "stale"
    """The object changed between the preview and the use."""
    REVOKED = "revoked"

    @property
    def open(self) -> bool:
        """Whether another request with the same plan joins it."""
        return self in _OPEN


_OPEN: Final = frozenset({State.PENDING, State.APPROVED, State.USING})


@attrs.frozen
class NewRequest:
    """A request before it has a row."""

    agent_id: str
    cluster_id: str
    plan: str
    """The hexadecimal SHA-256 of the exact call (proxy/hub/approvals/plan)."""
    effect: str
    """Salted digests of what the preview found that the call would do, at most 64 KiB of text; "" once the
    view was deleted."""
    what: str
    """The call in one line, as an approver reads it: `delete deployments.apps shop/web`."""
    reason: str
    """The rule's reason."""
    policy: str
    rule: str
    bundle: str
    approvers: tuple[str, ...]
    valid_for_s: int
    interactive: bool
    """Whether the client sends data later that nobody sees before the approval."""
    view: View
    """Masked already."""
    method: str = ""
    """With the target and `upgrade`, the call as policies decide about it, for when they change."""
    target: str = ""
    """The path and the query, without the cluster's prefix; "" once the view was deleted."""
    upgrade: bool = False

    @property
    def info(self) -> RequestInfo | None:
        """The call as policies decide about it; None if its target is deleted."""
        if not self.target:
            return None
        try:
            info = parse(self.method.encode("latin-1"), self.target.encode("latin-1"))
        except BadTarget:
            return None
        return info.upgraded() if self.upgrade else info

    @property
    def shown(self) -> str:
        """The digest of what an approver sees: plan, effect, rule and approvers. An approval names it."""
        parts = (self.plan, self.effect, self.policy, self.rule, *self.approvers)
        # No part has a zero byte.
        return sha256("\0".join(parts).encode()).hexdigest()


@attrs.frozen
class Request:
    """A request as stored. Times are epoch seconds of the database's clock."""

    id: str
    new: NewRequest
    """What the request says. Its view is empty once it was deleted, some days after the end."""
    state: State
    uses_returned: int
    """How often its use was given back, because the API server took nothing."""
    created_at: float
    expires_at: float
    decided_by: str = ""
    """The person, as in the token's `--person`."""
    answer: str = ""
    """The approver's words."""
    decided_at: float | None = None
    valid_until: float | None = None
    """Until when an approval may be used."""
    ended_at: float | None = None
    because: str = ""
    """Why it was cancelled, is stale or was revoked."""
    changes: int = 0
    """How many transitions it has made."""

    @property
    def view_deleted(self) -> bool:
        """Whether the view is deleted."""
        return self.ended_at is not None and self.new.view == View()
