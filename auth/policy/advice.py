"""The explanation that comes with a denial: the rule, what the agent may do instead, and whom to ask.

A rule that asks has the same explanation, without alternatives: the next step is the approval.

It is computed only for these two, so it may repeat work that the decision skipped: try the same request with
other verbs, and find rules that would allow it in another namespace or under another name. With thousands of
rules that takes milliseconds, and a denied agent often retries. The bundle therefore memoizes explanations.
The key is all that an explanation depends on: the rules in scope, the kind of request, the rule that denied,
and the object's name if any rule in scope tests names.
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
    CompiledRule,
    ConditionError,
    Decision,
    Facts,
    Scope,
    applicable,
)
from auth.policy.rules import RESOURCE_VERBS, Effect, Rule
from auth.policy.subjects import mismatch, mismatch_without_verb, names_match, verb_matches
from auth.request_kind import RequestKind, as_plain, implied_create, request_kind_of
from auth.requestinfo import RequestInfo

# Maximum hints of each kind: an agent needs a next step, not the whole policy.
HINTS_MAX = 3
# Maximum rules about the resource to search for alternatives, at 1 or 2 µs each. Above this, no alternatives
# are searched: an agent that tries one namespace after another would cost the hub milliseconds per try.
RULES_SEARCHED_MAX = 512
# Verbs that no subresource has.
_OF_COLLECTIONS = frozenset({"list", "watch", "deletecollection"})
# Maximum memoized denials per bundle, and maximum length of the request text in one; some MiB in all,
# including the rules' own texts. Most denials come from a mistake in a client, which repeats the same
# request.
MEMO_DENIALS_MAX = 2048
MEMO_CHARACTERS_MAX = 1024
_MAY = {Effect.ALLOW: "you may", Effect.ASK: "with an approval you may"}


@attrs.frozen
class Advice:
    """A denial in words, or why an approval is needed; each field is one line of text."""

    rule: str
    """`policy/rule`, or the rule's name alone if it belongs to no policy."""
    what: str
    """The request in Kubernetes' words."""
    why: str
    instead: str
    ask: str
    """The contact for questions."""
    asks: bool = False
    """Whether an approval is needed. Otherwise the request is denied."""

    @property
    def message(self) -> str:
        """All fields as one sentence for a person."""
        verdict = f"needs an approval ({self.rule})" if self.asks else f"is denied by {self.rule}"
        parts = [f"{self.what} {verdict}"]
        if self.why:
            parts[0] += f": {self.why}"
        if self.instead:
            parts.append(f"instead: {self.instead}")
        if self.ask:
            parts.append(f"ask {self.ask}")
        return "; ".join(parts)


def advise(bundle: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo, decision: Decision) -> Advice:
    """Explain a decision that denies or asks."""
    scope, implied = bundle.scope_of(agent, cluster), implied_create(info)
    kind = request_kind_of(implied or info)
    name = info.name if scope.by_name else ""
    characters = len(kind.path) + len(kind.namespace) + len(name) + len(kind.resource) + len(kind.subresource)
    key = (scope, kind, name, decision.policy, decision.rule, decision.effect, implied is not None)
    memo = bundle.explanations
    explanation = memo.pop(key, None) or _explain(*key)
    if characters + len(kind.group) <= MEMO_CHARACTERS_MAX:
        if len(memo) >= MEMO_DENIALS_MAX:
            # Evict the least recently used entry.
            del memo[next(iter(memo))]
        memo[key] = explanation
    why, instead, ask = explanation
    why = decision.failure or why
    if not why and decision is NO_RULE:
        why = "no rule allows it" if kind.verb else f"{info.method} is no verb of Kubernetes"
    return Advice(
        rule=f"{decision.policy}/{decision.rule}" if decision.policy else decision.rule,
        what=f"{_what(kind, info, implied)} on cluster {cluster.name}",
        why=why,
        instead=instead,
        ask=ask or agent.owner,
        asks=decision.ask is not None,
    )


def asking(bundle: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> list[Decision]:
    """Return the decisions of all rules that ask about a request, in order of evaluation.

    The first is the decision, unless a rule denies. Rules whose condition fails are left out.
    """
    scope = bundle.scope_of(agent, cluster)
    halves = (as_plain(info), implied_create(info)) if info.upgrade else (info,)
    found: set[Decision] = set()
    for half in halves:
        if half is None:
            continue
        facts = Facts(request_kind_of(half), half, agent, cluster, now, bundle)
        found |= {compiled.decision for compiled in scope.about(facts.kind) if _asks(compiled, facts)}
    return [compiled.decision for compiled in scope.rules if compiled.decision in found]


def _asks(compiled: CompiledRule, facts: Facts) -> bool:
    rule, condition = compiled.rule, compiled.condition
    if rule.ask is None or mismatch(rule, facts.kind) or not names_match(rule, facts.info.name, facts.kind):
        return False
    try:
        return condition is None or condition(facts)
    except ConditionError:
        return False


def _explain(
    scope: Scope, kind: RequestKind, name: str, policy: str, rule: str, effect: Effect, upgrade: bool
) -> tuple[str, str, str]:
    """Return why the rule denied or asked, what is allowed instead, and whom to ask; each may be empty.

    An `upgrade` needs permission for two things, and either may be the one that is denied.
    """
    found = (
        compiled for compiled in scope.rules if compiled.policy.name == policy and compiled.rule.id == rule
    )
    compiled = next(found, None)
    why, instead, ask = (
        ("", "", "")
        if compiled is None
        else (compiled.rule.reason, compiled.rule.instead, compiled.policy.ask)
    )
    if not instead and effect is Effect.DENY:
        instead = "; ".join(_alternatives(scope, kind, name, compiled, upgrade))
    return why, instead, ask or _contact(scope)


def _contact(scope: Scope) -> str:
    """The contact of the first policy whose rules allow something here."""
    contacts = (compiled.policy.ask for compiled in scope.rules if compiled.rule.allows)
    return next((contact for contact in contacts if contact), "")


def _what(kind: RequestKind, info: RequestInfo, implied: RequestInfo | None) -> str:
    verb = kind.verb or "this method"
    if implied is not None:
        verb = f"{request_kind_of(info).verb or 'this method'} and {verb} (it is an upgrade)"
    if kind.path:
        return f"{verb} of {kind.path[:100]}"
    itself = (kind.group, kind.resource) == ("", "namespaces")
    where = f" in namespace {kind.namespace}" if kind.namespace and not itself else ""
    if kind.across:
        # A kind of unknown scope counts as namespaced in policies, but it may be cluster-scoped.
        where = " in all namespaces" if _in_namespaces(kind) else " without a namespace"
    named = f" {info.name[:100]}" if info.name else ""
    return f"{verb} of {_resource(kind)}{named}{where}"


def _in_namespaces(kind: RequestKind) -> bool:
    """Whether the kind is known to be namespaced. For any other kind, a namespace may be impossible."""
    return (kind.group, kind.resource) in NAMESPACED


def _resource(kind: RequestKind) -> str:
    resource = f"{kind.resource}/{kind.subresource}" if kind.subresource else kind.resource
    return f"{resource}.{kind.group}" if kind.group else resource


def _alternatives(
    scope: Scope, kind: RequestKind, name: str, denying: CompiledRule | None, upgrade: bool
) -> Iterable[str]:
    if kind.path or not kind.verb:
        return
    if kind.across and denying is not None and denying.rule.namespaces is not None:
        if _in_namespaces(kind):
            but = f"but not in {denying.rule.namespaces}"
            yield f"{kind.verb} {_resource(kind)} in one namespace at a time, {but}"
        return
    about = scope.about(kind)
    if len(about) > RULES_SEARCHED_MAX:
        return
    # One pass collects two things: the rules that match apart from the verb, and places that allow the
    # request.
    here: list[CompiledRule] = []
    elsewhere: dict[str, None] = {}
    for compiled in about:
        rule = compiled.rule
        field = mismatch_without_verb(rule, kind)
        if not field:
            here.append(compiled)
        if rule.effect is Effect.DENY or len(elsewhere) == HINTS_MAX or not verb_matches(rule, kind):
            continue
        if place := _place(rule, kind, name, field):
            elsewhere[f"{_MAY[rule.effect]} {kind.verb} {_resource(kind)} {place}"] = None
    # Exec, attach and port-forward have one verb, regardless of the method.
    one_verb = kind.across or kind.subresource in {"exec", "attach", "portforward"}
    others = {
        verb: _effect(here, _with_verb(kind, verb), name)
        for verb in RESOURCE_VERBS
        if not one_verb
        and (upgrade or verb != kind.verb)
        and not (kind.subresource and verb in _OF_COLLECTIONS)
    }
    for effect, words in _MAY.items():
        verbs = [verb for verb, found in others.items() if found is effect]
        if verbs:
            yield f"{words} {', '.join(verbs)} {_resource(kind)} there"
    # If the denial covers every namespace and name, no other place helps.
    if denying is None or denying.rule.namespaces is not None or denying.rule.names is not None:
        yield from elsewhere


def _place(rule: Rule, kind: RequestKind, name: str, field: str) -> str:
    """Name the place where a rule for the verb would match the request; empty if there is none.

    `field` is the field of the rule that does not match.
    """
    if field == "namespaces":
        if (kind.group, kind.resource) == ("", "namespaces"):
            # A request for a namespace object has that namespace as its own. A list of namespaces has none.
            return f"of the names {rule.namespaces}" if kind.namespace else ""
        return f"in namespaces {rule.namespaces}" if _in_namespaces(kind) else ""
    # Requests to create an object or delete a collection carry no name, so no name pattern matches them.
    nameless = kind.verb == "deletecollection" or (kind.verb == "create" and not kind.subresource)
    if field or nameless or names_match(rule, name, kind):
        return ""
    return f"of the names {rule.names}"


def _with_verb(kind: RequestKind, verb: str) -> RequestKind:
    return attrs.evolve(
        kind,
        verb=verb,
        reads=verb in {"get", "list", "watch"} and kind.subresource != "proxy",
        collective=verb in {"list", "watch", "deletecollection"},
        across=kind.across and verb in {"list", "watch"},
    )


def _effect(here: Sequence[CompiledRule], kind: RequestKind, name: str) -> Effect:
    """The effect of the rules on a kind that is certainly not denied. A condition may still deny it."""
    found = Effect.DENY
    for compiled in applicable(here, kind):
        rule = compiled.rule
        if not names_match(rule, name, kind):
            continue
        if rule.allows or not rule.when:
            return rule.effect
        if rule.ask is not None:
            found = Effect.ASK
    return found
