"""Whether the fields of a rule match a request, and whether two rules may match the same one. Conditions are
not evaluated.

A rule that does not allow matches more than one that allows: also each list and each connection that might
reveal or change its subject.
"""

from __future__ import annotations

from typing import TypeVar

from auth.policy.patterns import Names, Resources
from auth.policy.rules import ANY, METHOD_VERBS, READ, RESOURCE_VERBS, VERBS, WRITE, Policy, Rule
from auth.request_kind import RequestKind

T = TypeVar("T", Names, Resources)

_CLASS = {True: READ, False: WRITE}
_INCLUDED = {
    ANY: frozenset(VERBS),
    READ: frozenset({"get", "list", "watch"}),
    # A get too: of a proxy.
    WRITE: frozenset({*RESOURCE_VERBS, *METHOD_VERBS} - {"list", "watch"}),
}
# Their requests may cover all namespaces and names at once.
_WIDE = frozenset({"list", "watch"})


def mismatch(rule: Rule, kind: RequestKind) -> str:
    """The first field of a rule that does not match a kind of request; empty if all match."""
    return mismatch_without_verb(rule, kind) if verb_matches(rule, kind) else "verbs"


def verb_matches(rule: Rule, kind: RequestKind) -> bool:
    """Whether a rule's verbs include the request's."""
    return kind.verb in rule.verbs or ANY in rule.verbs or _CLASS[kind.reads] in rule.verbs


def mismatch_without_verb(rule: Rule, kind: RequestKind) -> str:
    """Like `mismatch`, without the verb."""
    if kind.path:
        if not rule.about_urls or (rule.urls is not None and kind.path not in rule.urls):
            return "nonResourceURLs"
        return ""
    if not rule.about_resources:
        return "nonResourceURLs"
    if rule.groups is not None and kind.group not in rule.groups:
        return "apiGroups"
    pair = (kind.resource, kind.subresource)
    if rule.resources is not None and pair not in rule.resources:
        return "resources"
    if rule.namespaces is not None and not (kind.namespace and kind.namespace in rule.namespaces):
        # A list over all namespaces also shows the denied one.
        shows = not rule.allows and kind.across and (rule.across is None or pair in rule.across)
        return "" if shows else "namespaces"
    return ""


def names_match(rule: Rule, name: str, kind: RequestKind) -> bool:
    """Whether a rule's names match. A denial of one name also matches a list, which shows that object."""
    names = rule.names
    if names is None:
        return True
    if not name:
        return not rule.allows and kind.collective
    if kind.subresource != "proxy" or ":" not in name:
        return name in names
    # The proxy connects to the bare name, so that must match too: a star may have matched scheme or port.
    bare = _without_scheme_and_port(name)
    if not rule.allows:
        return name in names or bare in names
    return name in names and (bare in names or names.includes_with_colon(name)) and not names.excludes(bare)


def _without_scheme_and_port(name: str) -> str:
    """The name in `db:5432` and in `https:db:5432`, split as kube-apiserver splits it for a proxy."""
    parts = name.split(":")
    return parts[0] if len(parts) == 2 else parts[1]


def may_overlap(policy: Policy, rule: Rule, other_policy: Policy, other: Rule) -> bool:
    """Whether two rules that do not allow may match the same request.

    True wherever that is not certain: two patterns with stars may share a name.
    """
    return _bind_together(policy, other_policy) and _match_together(rule, other)


def _bind_together(policy: Policy, other: Policy) -> bool:
    agents = policy.teams is not None or other.teams is not None or _share(policy.agents, other.agents)
    if not agents or not _share(policy.clusters.names, other.clusters.names):
        return False
    return not any(
        term.key == against.key
        and term.operator == against.operator == "In"
        and term.values.isdisjoint(against.values)
        for term in policy.clusters.terms
        for against in other.clusters.terms
    )


def _match_together(rule: Rule, other: Rule) -> bool:
    verbs = _verbs(rule) & _verbs(other)
    if not verbs:
        return False
    if rule.about_urls and other.about_urls:
        return True
    if not (rule.about_resources and other.about_resources):
        return False
    wide = bool(verbs & _WIDE)
    return (
        _share(rule.groups, other.groups)
        and _share(rule.resources, other.resources)
        and (wide or (_share(rule.names, other.names) and _share(rule.namespaces, other.namespaces)))
    )


def _verbs(rule: Rule) -> frozenset[str]:
    return rule.verbs.union(*(_INCLUDED.get(verb, frozenset()) for verb in rule.verbs))


def _share(one: T | None, other: T | None) -> bool:
    """Whether two fields may match the same value; None matches all."""
    return one is None or other is None or one.overlaps(other)
