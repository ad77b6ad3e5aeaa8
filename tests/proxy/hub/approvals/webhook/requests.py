"""A request whose difference and values must stay out of messages: they contain "hunter2"."""

from __future__ import annotations

from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.view import Change, View

VIEW = View("summary-hunter2", ("flag",), (Change("spec.hunter2", "hunter2", None),), body="hunter2")
NEW = NewRequest(
    agent_id="a1", cluster_id="c1", plan="plan-hunter2", effect="effect-hunter2",
    what="delete deployments.apps shop/web", reason="look at deletions", policy="shop", rule="risky",
    bundle="3-0144c5c9", approvers=("ann@example.com", "owner"), valid_for_s=900, interactive=False,
    view=VIEW, method="DELETE", target="/hunter2",
)  # fmt: skip
REQUEST = Request(
    "r1", NEW, State.APPROVED, 0, 1_780_000_000.0, 1_780_003_600.0,
    decided_by="ann@example.com", decided_at=1_780_000_060.0, answer="answer-hunter2",
)  # fmt: skip
