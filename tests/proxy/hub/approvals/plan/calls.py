"""Calls of which tests make plans."""

from __future__ import annotations

import attrs

from auth.policy.ask import Ask
from auth.requestinfo import RequestInfo, parse
from proxy.hub.approvals.plan.plan import PlanFacts, digest_of, plan_of

ASK = Ask(("any",))
INTERACTIVE = Ask(("any",), interactive=True)
JSON = (b"application/json",)
NOW = 1_780_000_000.0
DEPLOYMENT = b"/apis/apps/v1/namespaces/shop/deployments/web"
POD = b"/api/v1/namespaces/shop/pods/p"


@attrs.frozen
class Asked:
    """A call as a client sends it."""

    method: bytes = b"GET"
    target: bytes = POD
    upgrade: bool = False
    types: tuple[bytes, ...] = ()
    encodings: tuple[bytes, ...] = ()
    body: bytes = b""
    agent: str = "a"
    cluster: str = "c"
    now: float = NOW

    @property
    def info(self) -> RequestInfo:
        info = parse(self.method, self.target)
        return info.upgraded() if self.upgrade else info

    @property
    def facts(self) -> PlanFacts:
        return PlanFacts(self.agent, self.cluster, self.info, self.types, self.encodings, self.now)

    @property
    def digest(self) -> str:
        """The digest alone, without any check."""
        return digest_of(self.facts, self.body)

    def plan(self, ask: Ask = ASK) -> str:
        return plan_of(self.facts, self.body, ask).digest
