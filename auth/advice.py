"""What an agent is told when it is denied: by which rule, what it may do instead, and whom it may ask.

Made only for a denial, so it may look again at what the decision passed over: the same request with another
verb, and the rules that would have allowed it but for its namespace or its name.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from auth.policy import (
    NO_RULE,
    Agent,
    Asked,
    Bundle,
    Cluster,
    Decision,
    ReadyRule,
    asked_of,
    mismatch,
    names_match,
)
from auth.policy_rules import RESOURCE_VERBS
from auth.requestinfo import RequestInfo

# Of each kind; an agent needs a next step and not the whole policy.
HINTS_MAX = 3


@attrs.frozen
class Advice:
    """A denial in words; each is one line of text."""

    rule: str
    """`policy/rule`, or the name of the rule alone where no policy holds it."""
    what: str
    """What was asked, in Kubernetes' words."""
    why: str
    instead: str
    ask: str

    @property
    def message(self) -> str:
        """All of it as one sentence for a person."""
        parts = [f"{self.what} is denied by {self.rule}"]
        if self.why:
            parts[0] += f": {self.why}"
        if self.instead:
            parts.append(f"instead: {self.instead}")
        if self.ask:
            parts.append(f"ask {self.ask}")
        return "; ".join(parts)


def advise(bundle: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo, decision: Decision) -> Advice:
    """Explain a decision that denies."""
    asked = asked_of(info)
    ready = _rule_of(bundle, agent, cluster, decision)
    instead = ready.rule.instead if ready is not None else ""
    why = decision.failure or (ready.rule.reason if ready is not None else "")
    if not why and decision is NO_RULE:
        why = "no rule allows it" if asked.verb else f"{info.method} is no verb of Kubernetes"
    return Advice(
        rule=f"{decision.policy}/{decision.rule}" if decision.policy else decision.rule,
        what=f"{_what(asked, info.name)} on cluster {cluster.name}",
        why=why,
        instead=instead or "; ".join(_alternatives(bundle, agent, cluster, asked, info.name, ready)),
        ask=(ready.policy.ask if ready is not None else "")
        or _contact(bundle, agent, cluster)
        or agent.owner,
    )


def _rule_of(bundle: Bundle, agent: Agent, cluster: Cluster, decision: Decision) -> ReadyRule | None:
    for ready in bundle.rules_for(agent, cluster):
        if ready.policy.name == decision.policy and ready.rule.id == decision.rule:
            return ready
    return None


def _contact(bundle: Bundle, agent: Agent, cluster: Cluster) -> str:
    """Who answers for the policies that might have allowed something here."""
    contacts = (ready.policy.ask for ready in bundle.rules_for(agent, cluster) if ready.rule.allows)
    return next((contact for contact in contacts if contact), "")


def _what(asked: Asked, name: str) -> str:
    if asked.path:
        return f"{asked.verb or 'this method'} of {asked.path[:100]}"
    where = f" in namespace {asked.namespace}" if asked.namespace else ""
    where = " in all namespaces" if asked.across else where
    named = f" {name[:100]}" if name else ""
    return f"{asked.verb or 'this method'} of {_kind(asked)}{named}{where}"


def _kind(asked: Asked) -> str:
    kind = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    return f"{kind}.{asked.group}" if asked.group else kind


def _alternatives(
    bundle: Bundle, agent: Agent, cluster: Cluster, asked: Asked, name: str, denying: ReadyRule | None
) -> Iterable[str]:
    if asked.path or not asked.verb:
        return
    if asked.across and denying is not None and denying.rule.namespaces is not None:
        yield f"{asked.verb} {_kind(asked)} in one namespace at a time, but not in {denying.rule.namespaces}"
        return
    # Exec and its like have one verb, whatever the method.
    one_verb = asked.across or asked.subresource in {"exec", "attach", "portforward"}
    verbs = [
        verb
        for verb in RESOURCE_VERBS
        if not one_verb
        and verb != asked.verb
        and _permitted(bundle, agent, cluster, _with_verb(asked, verb), name)
    ]
    if verbs:
        yield f"you may {', '.join(verbs)} {_kind(asked)} there"
    if denying is not None and denying.rule.namespaces is None and denying.rule.names is None:
        # What is denied everywhere and whatever its name has no other place.
        return
    hints = []
    for ready in bundle.rules_for(agent, cluster):
        if not ready.rule.allows:
            continue
        field = mismatch(ready.rule, asked)
        if field == "namespaces" and ready.rule.namespaces is not None:
            hints.append(f"you may {asked.verb} {_kind(asked)} in namespaces {ready.rule.namespaces}")
        elif not field and not names_match(ready.rule, name, asked):
            hints.append(f"you may {asked.verb} {_kind(asked)} of the names {ready.rule.names}")
    yield from list(dict.fromkeys(hints))[:HINTS_MAX]


def _with_verb(asked: Asked, verb: str) -> Asked:
    return attrs.evolve(
        asked,
        verb=verb,
        reads=verb in {"get", "list", "watch"} and asked.subresource != "proxy",
        collective=verb in {"list", "watch", "deletecollection"},
        across=asked.across and verb in {"list", "watch"},
    )


def _permitted(bundle: Bundle, agent: Agent, cluster: Cluster, asked: Asked, name: str) -> bool:
    """Whether a kind is surely not denied and may be allowed. A condition may still say otherwise."""
    for ready in bundle.rules_about(agent, cluster, asked):
        if names_match(ready.rule, name, asked):
            if ready.rule.allows:
                return True
            if ready.condition is None:
                return False
    return False
