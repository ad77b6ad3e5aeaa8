"""What the policies say of a call, in the words of the trail and of the agent that is denied."""

from __future__ import annotations

import attrs

from audit.record import Decision as RecordedDecision
from auth.policy.advice import advise
from auth.policy.match import Bundle, Decision
from auth.requestinfo import RequestInfo
from proxy.hub.store.entities import Agent, Cluster

# Rules that decided lately. A bundle has as many decisions as rules, and one more for each failed condition.
_VERDICTS_REMEMBERED_MAX = 1024


@attrs.frozen(eq=False)
class Verdict:
    """What was decided about a call."""

    decision: Decision
    bundle: Bundle
    recorded: RecordedDecision
    """As the trail has it."""

    @property
    def allowed(self) -> bool:
        return self.decision.allowed

    @property
    def rule(self) -> str:
        """The rule that decided, with its policy if it has one."""
        decision = self.decision
        return f"{decision.policy}/{decision.rule}" if decision.policy else decision.rule


def judge(bundle: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> Verdict:
    """Decide about a call, also about one that is under way; a microsecond, unless a condition is asked.

    `now` is in epoch seconds.
    """
    decision = bundle.decide(agent, cluster, info, now)
    verdict = _remembered.get(decision)
    if verdict is None or verdict.bundle is not bundle:
        verdict = _verdict(decision, bundle)
    return verdict


# Those of the bundle that was asked last: no other one is kept alive by them.
_remembered: dict[Decision, Verdict] = {}


def _verdict(decision: Decision, bundle: Bundle) -> Verdict:
    first = next(iter(_remembered.values()), None)
    if first is not None and (first.bundle is not bundle or len(_remembered) >= _VERDICTS_REMEMBERED_MAX):
        _remembered.clear()
    effect = "allow" if decision.allowed else "deny"
    recorded = RecordedDecision(effect, decision.rule, decision.policy, bundle.id)
    verdict = _remembered[decision] = Verdict(decision, bundle, recorded)
    return verdict


@attrs.frozen
class Denial:
    """What an agent is told: a sentence, and the same in parts for programs."""

    message: str
    details: dict[str, object]


def denial(verdict: Verdict, agent: Agent, cluster: Cluster, info: RequestInfo) -> Denial:
    """Explain a call that is denied.

    The parts are the `details` of a Kubernetes Status: what was asked for, and under `causes` the rule, what
    is allowed instead and whom to ask, each with a reason of its own.
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
