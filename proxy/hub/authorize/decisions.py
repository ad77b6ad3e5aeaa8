"""Policy decisions as the audit trail records them, and as agents see them that are not allowed."""

from __future__ import annotations

import attrs

from audit.record import Decision as RecordedDecision
from auth.policy.advice import advise
from auth.policy.match import Bundle, Decision
from auth.requestinfo import RequestInfo
from proxy.hub.store.entities import Agent, Cluster

# Recent decisions. A bundle has one per rule, and one more for each failed condition.
_VERDICTS_REMEMBERED_MAX = 1024


@attrs.frozen(eq=False)
class Verdict:
    """The decision about a call."""

    decision: Decision
    bundle: Bundle
    recorded: RecordedDecision
    """The decision as the trail records it."""

    @property
    def allowed(self) -> bool:
        return self.decision.allowed

    @property
    def asked(self) -> bool:
        """Whether a person decides about the call. It is then not allowed."""
        return self.decision.ask is not None

    @property
    def rule(self) -> str:
        """The rule that decided, prefixed by its policy if it has one."""
        decision = self.decision
        return f"{decision.policy}/{decision.rule}" if decision.policy else decision.rule


def judge(bundle: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> Verdict:
    """Decide about a call, new or open; takes a microsecond unless a condition is evaluated.

    `now` is in epoch seconds.
    """
    decision = bundle.decide(agent, cluster, info, now)
    verdict = _remembered.get(decision)
    if verdict is None or verdict.bundle is not bundle:
        verdict = _verdict(decision, bundle)
    return verdict


# Decisions of the bundle that was used last. Older bundles are not kept alive.
_remembered: dict[Decision, Verdict] = {}


def _verdict(decision: Decision, bundle: Bundle) -> Verdict:
    first = next(iter(_remembered.values()), None)
    if first is not None and (first.bundle is not bundle or len(_remembered) >= _VERDICTS_REMEMBERED_MAX):
        _remembered.clear()
    recorded = RecordedDecision(decision.effect.value, decision.rule, decision.policy, bundle.id)
    verdict = _remembered[decision] = Verdict(decision, bundle, recorded)
    return verdict


@attrs.frozen
class Denial:
    """The answer to an agent whose call is not allowed: a sentence, and its parts for programs."""

    message: str
    details: dict[str, object]


def denial(verdict: Verdict, agent: Agent, cluster: Cluster, info: RequestInfo) -> Denial:
    """Explain a denial, or why a call needs an approval.

    The parts are the `details` of a Kubernetes Status: the request, and under `causes` the rule, the allowed
    alternative and the contact, each with its own reason.
    """
    advice = advise(verdict.bundle, agent, cluster, info, verdict.decision)
    causes = [
        {"reason": reason, "message": message}
        for reason, message in (
            ("PolicyRule", advice.rule),
            ("Why", advice.why),
            ("Instead", advice.instead),
            ("Ask", advice.ask),
            ("PolicyBundle", verdict.bundle.id),
        )
        if message
    ]
    details: dict[str, object] = {"causes": causes}
    if info.is_resource:
        details = {"name": info.name, "group": info.group, "kind": info.resource, "causes": causes}
    return Denial(advice.message, {key: value for key, value in details.items() if value})
