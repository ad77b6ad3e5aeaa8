"""What an agent is told when it is denied: by which rule, what it may do instead, and whom it may ask.

Made only for a denial, so it may look again at what the decision passed over: the same request with another
verb, and the rules that would have allowed it but for its namespace or its name. With thousands of rules that
takes milliseconds, and who is denied once asks again. So the bundle remembers it by what it follows from: the
rules that hold for the agent on the cluster, the kind of request, the rule that denied, and the name of the
object where any of the rules looks at names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from auth.kinds import NAMESPACED
from auth.policy.match import (
    NO_RULE,
    Agent,
    Bundle,
    Cluster,
    Decision,
    ReadyRule,
    Scope,
    applicable,
    mismatch_of_place,
    names_match,
    verb_matches,
)
from auth.policy.rules import RESOURCE_VERBS, Rule
from auth.request_kind import Asked, asked_of, opening_of
from auth.requestinfo import RequestInfo

# Of each kind; an agent needs a next step and not the whole policy.
HINTS_MAX = 3
# Rules about one thing, at a microsecond or two each. Where there are more, what is allowed instead is
# not looked for: an agent that tries one namespace after the other would cost the hub milliseconds each time.
RULES_SEARCHED_MAX = 512
# What no subresource has.
_OF_COLLECTIONS = frozenset({"list", "watch", "deletecollection"})
# Denials that a bundle remembers, with at most this much of what was asked: some MiB with what rules say of
# themselves. What an agent is denied most is its client's mistake, and so the same again and again.
DENIALS_REMEMBERED_MAX = 2048
ASKED_CHARACTERS_MAX = 1024


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
    scope, opening = bundle.scope_of(agent, cluster), opening_of(info)
    asked = asked_of(opening or info)
    name = info.name if scope.by_name else ""
    told = len(asked.path) + len(asked.namespace) + len(name) + len(asked.resource) + len(asked.subresource)
    key = (scope, asked, name, decision.policy, decision.rule, opening is not None)
    remembered = bundle.explained
    explained = remembered.pop(key, None) or _explain(*key)
    if told + len(asked.group) <= ASKED_CHARACTERS_MAX:
        if len(remembered) >= DENIALS_REMEMBERED_MAX:
            # The one that was not asked for again for the longest time.
            del remembered[next(iter(remembered))]
        remembered[key] = explained
    why, instead, ask = explained
    why = decision.failure or why
    if not why and decision is NO_RULE:
        why = "no rule allows it" if asked.verb else f"{info.method} is no verb of Kubernetes"
    return Advice(
        rule=f"{decision.policy}/{decision.rule}" if decision.policy else decision.rule,
        what=f"{_what(asked, info, opening)} on cluster {cluster.name}",
        why=why,
        instead=instead,
        ask=ask or agent.owner,
    )


def _explain(
    scope: Scope, asked: Asked, name: str, policy: str, rule: str, upgrade: bool
) -> tuple[str, str, str]:
    """Why a rule denied, what is allowed instead, and who answers for it; each may be empty.

    An `upgrade` has to be allowed as two things, and either may be what is denied.
    """
    found = (ready for ready in scope.rules if ready.policy.name == policy and ready.rule.id == rule)
    ready = next(found, None)
    why, instead, ask = (
        ("", "", "") if ready is None else (ready.rule.reason, ready.rule.instead, ready.policy.ask)
    )
    return (
        why,
        instead or "; ".join(_alternatives(scope, asked, name, ready, upgrade)),
        ask or _contact(scope),
    )


def _contact(scope: Scope) -> str:
    """Who answers for the policies that might have allowed something here."""
    contacts = (ready.policy.ask for ready in scope.rules if ready.rule.allows)
    return next((contact for contact in contacts if contact), "")


def _what(asked: Asked, info: RequestInfo, opening: RequestInfo | None) -> str:
    verb = asked.verb or "this method"
    if opening is not None:
        verb = f"{asked_of(info).verb or 'this method'} and {verb} (it is an upgrade)"
    if asked.path:
        return f"{verb} of {asked.path[:100]}"
    itself = (asked.group, asked.resource) == ("", "namespaces")
    where = f" in namespace {asked.namespace}" if asked.namespace and not itself else ""
    if asked.across:
        # Policies take a list of an unknown kind for one of every namespace; the kind may lie in none.
        where = " in all namespaces" if _in_namespaces(asked) else " without a namespace"
    named = f" {info.name[:100]}" if info.name else ""
    return f"{verb} of {_kind(asked)}{named}{where}"


def _in_namespaces(asked: Asked) -> bool:
    """Whether the kind is known to lie in namespaces: for any other a namespace may be impossible."""
    return (asked.group, asked.resource) in NAMESPACED


def _kind(asked: Asked) -> str:
    kind = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    return f"{kind}.{asked.group}" if asked.group else kind


def _alternatives(
    scope: Scope, asked: Asked, name: str, denying: ReadyRule | None, upgrade: bool
) -> Iterable[str]:
    if asked.path or not asked.verb:
        return
    if asked.across and denying is not None and denying.rule.namespaces is not None:
        if _in_namespaces(asked):
            but = f"but not in {denying.rule.namespaces}"
            yield f"{asked.verb} {_kind(asked)} in one namespace at a time, {but}"
        return
    about = scope.about(asked)
    if len(about) > RULES_SEARCHED_MAX:
        return
    # In one pass: the rules that are about this whatever the verb is, and what would allow it elsewhere.
    here: list[ReadyRule] = []
    elsewhere: dict[str, None] = {}
    for ready in about:
        rule = ready.rule
        field = mismatch_of_place(rule, asked)
        if not field:
            here.append(ready)
        if not rule.allows or len(elsewhere) == HINTS_MAX or not verb_matches(rule, asked):
            continue
        if place := _place(rule, asked, name, field):
            elsewhere[f"you may {asked.verb} {_kind(asked)} {place}"] = None
    # Exec and its like have one verb, whatever the method.
    one_verb = asked.across or asked.subresource in {"exec", "attach", "portforward"}
    verbs = [
        verb
        for verb in RESOURCE_VERBS
        if not one_verb
        and (upgrade or verb != asked.verb)
        and not (asked.subresource and verb in _OF_COLLECTIONS)
        and _permitted(here, _with_verb(asked, verb), name)
    ]
    if verbs:
        yield f"you may {', '.join(verbs)} {_kind(asked)} there"
    # What is denied everywhere and whatever its name has no other place.
    if denying is None or denying.rule.namespaces is not None or denying.rule.names is not None:
        yield from elsewhere


def _place(rule: Rule, asked: Asked, name: str, field: str) -> str:
    """Where a rule that allows the verb would allow it; empty where no request of this kind can be there.

    `field` is what keeps the rule from being about the place.
    """
    if field == "namespaces":
        if (asked.group, asked.resource) == ("", "namespaces"):
            # To requests, a namespace lies in the namespace of its name. A list of namespaces lies in none.
            return f"of the names {rule.namespaces}" if asked.namespace else ""
        return f"in namespaces {rule.namespaces}" if _in_namespaces(asked) else ""
    # A creation and the deletion of a collection have no name in their request, and so no rule finds one.
    nameless = asked.verb == "deletecollection" or (asked.verb == "create" and not asked.subresource)
    if field or nameless or names_match(rule, name, asked):
        return ""
    return f"of the names {rule.names}"


def _with_verb(asked: Asked, verb: str) -> Asked:
    return attrs.evolve(
        asked,
        verb=verb,
        reads=verb in {"get", "list", "watch"} and asked.subresource != "proxy",
        collective=verb in {"list", "watch", "deletecollection"},
        across=asked.across and verb in {"list", "watch"},
    )


def _permitted(here: Sequence[ReadyRule], asked: Asked, name: str) -> bool:
    """Whether a kind is surely not denied and may be allowed. A condition may still say otherwise."""
    for ready in applicable(here, asked):
        if names_match(ready.rule, name, asked):
            if ready.rule.allows:
                return True
            if ready.condition is None:
                return False
    return False
