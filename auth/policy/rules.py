"""A valid policy: its rules, and the agents and clusters that it binds."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from enum import StrEnum

import attrs

from auth.policy.ask import Ask
from auth.policy.patterns import Names, Resources, Urls
from auth.policy.text import Data, Source

# Kubernetes' verbs, those of other HTTP methods on non-resource paths, and three that stand for several
# verbs.
READ, WRITE, ANY = "read", "write", "*"
RESOURCE_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
METHOD_VERBS = ("post", "put", "options")
VERBS = (READ, WRITE, ANY, *RESOURCE_VERBS, *METHOD_VERBS)


class Effect(StrEnum):
    """What a matching rule decides, in order of precedence: any `deny` wins, then any `ask`."""

    DENY = "deny"
    ASK = "ask"
    """A person decides about the call."""
    ALLOW = "allow"


@attrs.frozen
class LabelTerm:
    """One expression of a label selector."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        present = labels.get(self.key)
        match self.operator:
            case "In":
                return present is not None and present in self.values
            case "NotIn":
                # As in Kubernetes: a missing label matches too.
                return present not in self.values
            case "Exists":
                return present is not None
            case _:
                return present is None

    def __str__(self) -> str:
        """The term as `kubectl get -l` writes it."""
        if self.operator == "In" and len(self.values) == 1:
            return f"{self.key}={next(iter(self.values))}"
        if self.operator in {"In", "NotIn"}:
            return f"{self.key} {self.operator.lower()} ({', '.join(sorted(self.values))})"
        return self.key if self.operator == "Exists" else f"!{self.key}"


@attrs.frozen
class ClusterSelector:
    """The clusters that a policy applies to: those that match all fields."""

    names: Names | None = None
    terms: tuple[LabelTerm, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        return (self.names is None or name in self.names) and all(term.matches(labels) for term in self.terms)


@attrs.frozen
class Rule:
    """One rule as written. None means that the field is absent, and so restricts nothing."""

    id: str
    effect: Effect
    verbs: frozenset[str]
    groups: Names | None = None
    resources: Resources | None = None
    names: Names | None = None
    namespaces: Names | None = None
    across: Resources | None = None
    """In a rule that denies or asks by namespace: the resources whose lists over all namespaces match too."""
    urls: Urls | None = None
    when: str = ""
    max_duration_s: float | None = None
    enabled: bool = True
    reason: str = ""
    instead: str = ""
    line: int = 0
    ask: Ask | None = None
    """Set exactly for the effect ASK."""
    allows: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether it allows. A rule that does not, matches whatever might reveal or change its subject."""

    # Derived once: a request of a new kind is tested against many rules.
    @allows.default
    def _allows(self) -> bool:
        return self.effect is Effect.ALLOW

    @property
    def about_resources(self) -> bool:
        """Whether it can match a request for a resource. One that names neither and does not allow matches
        everything.
        """
        return self.resources is not None or self.urls is None

    @property
    def about_urls(self) -> bool:
        """Whether it can match a request for a non-resource path."""
        if self.urls is not None:
            return True
        return self.resources is None and not (self.groups or self.names or self.namespaces)


@attrs.frozen
class Policy:
    """One document of kind Policy."""

    name: str
    rules: tuple[Rule, ...]
    teams: Names | None = None
    agents: Names | None = None
    clusters: ClusterSelector = ClusterSelector()
    owner: str = ""
    contact: str = ""
    source: Source = attrs.field(default=Source(""), eq=False, repr=False)
    data: Data = attrs.field(default=None, eq=False, repr=False)
    """The document's data, without layout and comments: the input of the bundle's hash."""

    def binds_agent(self, name: str, teams: Iterable[str]) -> bool:
        """Whether it binds an agent of these teams, on the clusters that it selects."""
        return (self.agents is not None and name in self.agents) or (
            self.teams is not None and any(team in self.teams for team in teams)
        )

    @property
    def ask(self) -> str:
        """The contact for requests that it denies."""
        return self.contact or self.owner


def missing(policies: Iterable[Policy], there: Mapping[str, Container[str]]) -> list[dict[str, str]]:
    """The agents, teams and clusters that policies name but that do not exist, each with its policy, kind and
    name.

    Patterns are left out: they are written for objects that come later.
    """
    return [
        {"policy": policy.name, "kind": kind, "name": name}
        for policy in policies
        for kind, names in (
            ("team", policy.teams),
            ("agent", policy.agents),
            ("cluster", policy.clusters.names),
        )
        if names is not None
        for name in names.without_stars
        if name not in there[kind]
    ]
