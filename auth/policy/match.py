"""May this agent ask this of this cluster: policies compiled once, asked for every call.

Any rule that denies wins; else the first that allows; else it is denied. The order is that of the policies'
names and, in a policy, of its rules. A condition that fails to evaluate is a denial, whichever way its rule
goes: nothing is decided by a rule that could not be read to its end.

What the rules say of verb, group, resource and namespace is the same for every call that asks for the same
kind of thing, and agents ask for few kinds again and again. So a call that is like an earlier one finds in
one lookup the few rules that may apply, up to the first that applies whatever the name and the conditions;
only those two are looked at for each call. A kind that was not seen before is held against the rules that
are about its resource.

Pure and synchronous: the time is an argument, and what evaluates conditions is handed in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import attrs

from auth.policy.document import policy_of
from auth.policy.rules import ANY, READ, WRITE, Policy, Rule
from auth.policy.text import Fault, PolicyError, Source, read
from auth.request_kind import Asked, asked_of, is_discovery, opening_of
from auth.requestinfo import RequestInfo

POLICIES_MAX = 256
RULES_MAX = 4000
# Kinds of requests that are remembered: more than an organisation's agents make in a minute. One from a path
# longer than this is none of Kubernetes' own, and is looked up anew; together at most some 16 MiB.
REMEMBERED_KINDS_MAX = 16_384
REMEMBERED_PATH_BYTES_MAX = 512
# Agents on clusters; forgotten all at once, since it costs some microseconds to find out again.
REMEMBERED_PAIRS_MAX = 65_536
HASH_CHARACTERS = 16


class Agent(Protocol):
    """Who asks."""

    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def teams(self) -> tuple[str, ...]: ...


class Cluster(Protocol):
    """What is asked."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


@attrs.frozen
class Facts:
    """What a condition may look at."""

    asked: Asked
    info: RequestInfo
    agent: Agent
    cluster: Cluster
    now: float


class ConditionError(Exception):
    """A condition that cannot be evaluated for this request."""


class Condition(Protocol):
    """A compiled condition."""

    def __call__(self, facts: Facts) -> bool:
        """Whether it holds; raises ConditionError."""
        ...


class Conditions(Protocol):
    """What understands the language of conditions."""

    def check(self, text: str) -> str:
        """Say what is wrong with a condition; empty when nothing is."""
        ...

    def compile(self, text: str) -> Condition:
        """Make a condition that passed the check."""
        ...

    def timed(self, text: str) -> bool:
        """Whether a condition that passed the check looks at the time."""
        ...


@attrs.frozen(eq=False)
class Decision:
    """What was decided, and by which rule. There is one object for each rule of a bundle."""

    allowed: bool
    rule: str
    policy: str = ""
    """Empty where no policy was needed: discovery, and what no rule allows."""
    max_duration_s: float | None = None
    failure: str = ""
    """Why the rule's condition could not be evaluated."""


# Without discovery no client works, and it says only what kinds of things there are.
DISCOVERY = Decision(True, "discovery")
# What no rule allows. A method that Kubernetes has no verb for is among it, whatever a rule says.
NO_RULE = Decision(False, "no-rule-allows")


@attrs.define(eq=False)
class ReadyRule:
    """A rule of a bundle, with what it takes to apply it."""

    policy: Policy
    rule: Rule
    condition: Condition | None
    decision: Decision

    @property
    def certain(self) -> bool:
        """Whether it applies to all requests of a kind."""
        return self.rule.names is None and self.condition is None


@attrs.define(eq=False)
class Scope:
    """The rules that hold for an agent on a cluster, and for everybody else for whom the same hold.

    There is one object for each such set of rules; those that are switched off are not in it.
    """

    rules: tuple[ReadyRule, ...]
    """In their order."""
    any_resource: tuple[ReadyRule, ...]
    by_resource: Mapping[str, tuple[ReadyRule, ...]]
    urls: tuple[ReadyRule, ...]
    by_name: bool
    """Whether the name of an object can make a difference."""

    @classmethod
    def of(cls, rules: tuple[ReadyRule, ...]) -> Scope:
        about = [(ready, _named(ready.rule)) for ready in rules if ready.rule.about_resources]
        every = {name for _, named in about if named is not None for name in named}
        return cls(
            rules,
            tuple(ready for ready, named in about if named is None),
            {
                name: tuple(ready for ready, named in about if named is None or name in named)
                for name in every
            },
            tuple(ready for ready in rules if ready.rule.about_urls),
            any(ready.rule.names is not None for ready in rules),
        )

    def about(self, asked: Asked) -> tuple[ReadyRule, ...]:
        """The rules that may be about a kind of request, by its resource alone."""
        return self.urls if asked.path else self.by_resource.get(asked.resource, self.any_resource)


def _named(rule: Rule) -> frozenset[str] | None:
    return None if rule.resources is None else rule.resources.named


@attrs.define(eq=False)
class _Kind:
    """What is left of the rules for requests of one kind: those that deny, then those that allow."""

    asked: Asked
    rules: tuple[ReadyRule, ...]
    otherwise: Decision


class Bundle:
    """All policies of a hub, compiled; made by `compile_bundle`."""

    def __init__(self, policies: Sequence[Policy], conditions: Conditions, version: int) -> None:
        self.policies = tuple(sorted(policies, key=lambda policy: policy.name))
        self.version = version
        self.hash = hash_of(self.policies)
        self.id = f"{version}-{self.hash}"
        """How the audit trail names it: the version tells the order, the hash what it says."""
        self._rules = {
            policy.name: tuple(_ready(policy, rule, conditions) for rule in policy.rules if rule.enabled)
            for policy in self.policies
        }
        rules = [ready.rule for some in self._rules.values() for ready in some]
        self.timed = any(rule.when and conditions.timed(rule.when) for rule in rules)
        """Whether some condition looks at the time, so that what was allowed may be denied later."""
        self._scopes: dict[tuple[str, ...], Scope] = {}
        self._pairs: dict[tuple[str, str], tuple[Agent, Cluster, Scope]] = {}
        self._kinds: dict[tuple[Scope, tuple[str, ...]], _Kind] = {}
        self.explained: dict[tuple[Scope, Asked, str, str, str, bool], tuple[str, str, str]] = {}
        """The denials that `auth.policy.advice` remembers, and bounds; here, so that they go with the
        bundle."""

    def decide(self, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> Decision:
        """Decide; never raises."""
        if info.upgrade:
            return self._decide_upgrade(agent, cluster, info, now)
        # Not by `scope_of`: this is done for every call.
        pair = self._pairs.get((agent.name, cluster.name))
        if pair is None or pair[0] is not agent or pair[1] is not cluster:
            scope = self._meet(agent, cluster)
        else:
            scope = pair[2]
        key = (scope, info.kind)
        kind = self._kinds.get(key)
        if kind is None:
            kind = _kind(scope, info)
            if len(info.raw_path) <= REMEMBERED_PATH_BYTES_MAX:
                if len(self._kinds) >= REMEMBERED_KINDS_MAX:
                    self._kinds.clear()
                self._kinds[key] = kind
        name = info.name
        for ready in kind.rules:
            rule = ready.rule
            if rule.names is not None and not names_match(rule, name, kind.asked):
                continue
            if ready.condition is not None:
                try:
                    if not ready.condition(Facts(kind.asked, info, agent, cluster, now)):
                        continue
                except ConditionError as error:
                    return Decision(False, rule.id, ready.policy.name, failure=str(error))
            return ready.decision
        return kind.otherwise

    def _decide_upgrade(self, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> Decision:
        decision = self.decide(agent, cluster, attrs.evolve(info, upgrade=False), now)
        opening = opening_of(info)
        if opening is None or not decision.allowed:
            return decision
        opened = self.decide(agent, cluster, opening, now)
        # Both allow it: the one that bounds it more decides.
        return decision if opened.allowed and _longest_s(decision) < _longest_s(opened) else opened

    def scope_of(self, agent: Agent, cluster: Cluster) -> Scope:
        """The rules that hold for an agent on a cluster."""
        pair = self._pairs.get((agent.name, cluster.name))
        if pair is None or pair[0] is not agent or pair[1] is not cluster:
            return self._meet(agent, cluster)
        return pair[2]

    def _meet(self, agent: Agent, cluster: Cluster) -> Scope:
        if len(self._pairs) >= REMEMBERED_PAIRS_MAX:
            self._pairs.clear()
            self._scopes.clear()
            self._kinds.clear()
            self.explained.clear()
        bound = tuple(policy.name for policy in self.policies if binds(policy, agent, cluster))
        scope = self._scopes.get(bound)
        if scope is None:
            scope = Scope.of(tuple(ready for name in bound for ready in self._rules[name]))
            self._scopes[bound] = scope
        self._pairs[agent.name, cluster.name] = (agent, cluster, scope)
        return scope


def compile_bundle(sources: Iterable[Source], conditions: Conditions, *, version: int = 0) -> Bundle:
    """Make a bundle of documents, each a policy; raises PolicyError with every fault of all of them."""
    policies: list[Policy] = []
    faults: list[Fault] = []
    first: dict[str, Source] = {}
    for source in sources:
        try:
            policy = policy_of(read(source), source, conditions.check)
        except PolicyError as error:
            faults += error.faults
            continue
        if policy.name in first:
            other = first[policy.name]
            where = f"{other.file}:{other.first_line}" if other.file else f"line {other.first_line}"
            message = f'the policy "{policy.name}" stands in {where} already'
            faults.append(Fault(source.file, source.first_line, "metadata.name", message))
        first.setdefault(policy.name, source)
        policies.append(policy)
    if len(policies) > POLICIES_MAX:
        faults.append(Fault("", 0, "", f"{len(policies)} policies exceed the {POLICIES_MAX} of a hub"))
    rules = sum(len(policy.rules) for policy in policies)
    if rules > RULES_MAX:
        faults.append(Fault("", 0, "", f"{rules} rules exceed the {RULES_MAX} of a hub"))
    if faults:
        raise PolicyError(faults)
    return Bundle(policies, conditions, version)


def hash_of(policies: Iterable[Policy]) -> str:
    """A name for what policies say, whatever their comments and layout: equal only where they are."""
    documents = [policy.data for policy in sorted(policies, key=lambda policy: policy.name)]
    text = json.dumps(documents, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:HASH_CHARACTERS]


def binds(policy: Policy, agent: Agent, cluster: Cluster) -> bool:
    """Whether a policy is about this agent on this cluster."""
    bound = (policy.agents is not None and agent.name in policy.agents) or (
        policy.teams is not None and any(team in policy.teams for team in agent.teams)
    )
    return bound and policy.clusters.matches(cluster.name, cluster.labels)


def mismatch(rule: Rule, asked: Asked) -> str:
    """The field of a rule that keeps it from being about a kind of request; empty when it is about it."""
    return mismatch_of_place(rule, asked) if verb_matches(rule, asked) else "verbs"


def verb_matches(rule: Rule, asked: Asked) -> bool:
    """Whether a rule is about a verb."""
    return asked.verb in rule.verbs or ANY in rule.verbs or _CLASS[asked.reads] in rule.verbs


def mismatch_of_place(rule: Rule, asked: Asked) -> str:
    """The same as `mismatch`, whatever the verb is."""
    if asked.path:
        if not rule.about_urls or (rule.urls is not None and asked.path not in rule.urls):
            return "nonResourceURLs"
        return ""
    if not rule.about_resources:
        return "nonResourceURLs"
    if rule.groups is not None and asked.group not in rule.groups:
        return "apiGroups"
    pair = (asked.resource, asked.subresource)
    if rule.resources is not None and pair not in rule.resources:
        return "resources"
    if rule.namespaces is not None and not (asked.namespace and asked.namespace in rule.namespaces):
        # A list of all namespaces shows the denied one, too.
        shows = not rule.allows and asked.across and (rule.across is None or pair in rule.across)
        return "" if shows else "namespaces"
    return ""


def names_match(rule: Rule, name: str, asked: Asked) -> bool:
    """Whether a rule is about this name; a denial of one name is about a list of all, which shows it."""
    names = rule.names
    if names is None:
        return True
    if not name:
        return not rule.allows and asked.collective
    if asked.subresource != "proxy" or ":" not in name:
        return name in names
    # What is reached is the middle of it, whatever a star has matched on its left or right.
    bare = _without_scheme_and_port(name)
    if not rule.allows:
        return name in names or bare in names
    return name in names and (bare in names or names.spells(name)) and not names.excludes(bare)


def _without_scheme_and_port(name: str) -> str:
    """The name in `db:5432` and in `https:db:5432`, as kube-apiserver takes it apart for a proxy."""
    parts = name.split(":")
    return parts[0] if len(parts) == 2 else parts[1]


_CLASS = {True: READ, False: WRITE}


def _longest_s(decision: Decision) -> float:
    return math.inf if decision.max_duration_s is None else decision.max_duration_s


def _ready(policy: Policy, rule: Rule, conditions: Conditions) -> ReadyRule:
    condition = conditions.compile(rule.when) if rule.when else None
    return ReadyRule(
        policy, rule, condition, Decision(rule.allows, rule.id, policy.name, rule.max_duration_s)
    )


def _kind(scope: Scope, info: RequestInfo) -> _Kind:
    asked = asked_of(info)
    if is_discovery(info):
        return _Kind(asked, (), DISCOVERY)
    return _Kind(asked, applicable(scope.about(asked), asked), NO_RULE)


def applicable(about: Sequence[ReadyRule], asked: Asked) -> tuple[ReadyRule, ...]:
    """Those rules that may apply to a kind of request, in the order in which they are to be asked.

    The last may be a certain one; behind it nothing is asked.
    """
    rules: list[ReadyRule] = []
    for allows in (False, True):
        for ready in about:
            # Of a method that Kubernetes has no verb for, nobody can say what it would do.
            if ready.rule.allows is not allows or (allows and not asked.verb) or mismatch(ready.rule, asked):
                continue
            rules.append(ready)
            if ready.certain:
                break
        if rules and rules[-1].certain:
            # Nothing behind a rule that certainly applies is ever reached.
            break
    return tuple(rules)
