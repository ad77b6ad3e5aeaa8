"""Policy decisions: may this agent make this request to this cluster. Policies are compiled once, into a
bundle.

Any matching rule that denies wins. Otherwise the first matching rule that asks decides, else the first that
allows. Without a match the request is denied. Rules are ordered by their policy's name, then by their
position in it. A condition that fails to evaluate denies the request, even in a rule that asks or allows: a
rule that cannot be evaluated decides nothing.

The rules' tests of verb, group, resource and namespace give the same result for every request of one kind,
and agents send few kinds. So a bundle memoizes, per kind, the few rules that may still apply. The list ends
with the first rule that applies regardless of name and conditions. A repeated kind costs one lookup, and
only names and conditions are tested per call. A new kind is matched against the rules for its resource.

Pure and synchronous: the time is an argument, and the evaluator of conditions is passed in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import attrs

from auth.policy.ask import Ask
from auth.policy.document import policy_of
from auth.policy.rules import Effect, Policy, Rule
from auth.policy.subjects import mismatch, names_match
from auth.policy.text import Fault, PolicyError, Source, read
from auth.request_kind import RequestKind, as_plain, as_read, implied_create, is_discovery, request_kind_of
from auth.requestinfo import RequestInfo

POLICIES_MAX = 256
RULES_MAX = 4000
# Maximum memoized kinds of requests: more than an organisation's agents send in a minute. A longer path is
# not one of Kubernetes' own, and is matched each time. At most some 16 MiB in all.
MEMO_KINDS_MAX = 16_384
MEMO_PATH_BYTES_MAX = 512
# Maximum memoized pairs of agent and cluster. All are dropped at once: matching one again takes microseconds.
MEMO_PAIRS_MAX = 65_536
HASH_CHARACTERS = 16


class Agent(Protocol):
    """The agent that makes the request."""

    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def teams(self) -> tuple[str, ...]: ...


class Cluster(Protocol):
    """The cluster that the request is for."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


@attrs.frozen
class Facts:
    """The inputs of a condition."""

    kind: RequestKind
    info: RequestInfo
    agent: Agent
    cluster: Cluster
    now: float
    bundle: Bundle | None = attrs.field(default=None, eq=False, repr=False)
    """The policies that decide; None for a condition alone."""


class ConditionError(Exception):
    """A condition that cannot be evaluated for this request."""


class Condition(Protocol):
    """A compiled condition."""

    def __call__(self, facts: Facts) -> bool:
        """Whether it holds; raises ConditionError."""
        ...


class Conditions(Protocol):
    """An implementation of the language of conditions."""

    def check(self, text: str) -> str:
        """Return what is wrong with a condition; empty if it is valid."""
        ...

    def compile(self, text: str) -> Condition:
        """Compile a condition that passed the check."""
        ...

    def timed(self, text: str) -> bool:
        """Whether a condition that passed the check reads the time."""
        ...


@attrs.frozen(eq=False)
class Decision:
    """A decision and the rule that made it. There is one object for each rule of a bundle."""

    allowed: bool
    rule: str
    policy: str = ""
    """Empty if no policy decided: for discovery, and if no rule allows the request."""
    max_duration_s: float | None = None
    failure: str = ""
    """Why the rule's condition could not be evaluated."""
    ask: Ask | None = None
    """Set exactly if a person is asked. The request is then not allowed."""

    @property
    def effect(self) -> Effect:
        if self.allowed:
            return Effect.ALLOW
        return Effect.DENY if self.ask is None else Effect.ASK


# No client works without discovery, and it reveals only which API resources exist.
DISCOVERY = Decision(True, "discovery")
# Also the decision for a method that Kubernetes has no verb for, regardless of the rules.
NO_RULE = Decision(False, "no-rule-allows")


@attrs.define(eq=False)
class CompiledRule:
    """A compiled rule of a bundle."""

    policy: Policy
    rule: Rule
    condition: Condition | None
    decision: Decision

    @property
    def unconditional(self) -> bool:
        """Whether it applies to all requests of a kind."""
        return self.rule.names is None and self.condition is None


_PRECEDENCE = {effect: number for number, effect in enumerate(Effect)}


@attrs.define(eq=False)
class Scope:
    """The enabled rules that bind an agent on a cluster.

    There is one object for each distinct set of rules. All agents and clusters with that set share it.
    """

    rules: tuple[CompiledRule, ...]
    """In order of evaluation: by effect, then by the policies' names, then by position."""
    any_resource: tuple[CompiledRule, ...]
    by_resource: Mapping[str, tuple[CompiledRule, ...]]
    urls: tuple[CompiledRule, ...]
    by_name: bool
    """Whether an object's name can affect the decision."""

    @classmethod
    def of(cls, rules: Iterable[CompiledRule]) -> Scope:
        rules = tuple(sorted(rules, key=lambda compiled: _PRECEDENCE[compiled.rule.effect]))
        about = [(compiled, _named(compiled.rule)) for compiled in rules if compiled.rule.about_resources]
        every = {name for _, named in about if named is not None for name in named}
        return cls(
            rules,
            tuple(compiled for compiled, named in about if named is None),
            {
                name: tuple(compiled for compiled, named in about if named is None or name in named)
                for name in every
            },
            tuple(compiled for compiled in rules if compiled.rule.about_urls),
            any(compiled.rule.names is not None for compiled in rules),
        )

    def about(self, kind: RequestKind) -> tuple[CompiledRule, ...]:
        """The rules that may match a kind of request, selected by resource only."""
        return self.urls if kind.path else self.by_resource.get(kind.resource, self.any_resource)


def _named(rule: Rule) -> frozenset[str] | None:
    return None if rule.resources is None else rule.resources.named


@attrs.define(eq=False)
class _KindRules:
    """The rules that may still apply to requests of one kind, in order of evaluation."""

    kind: RequestKind
    rules: tuple[CompiledRule, ...]
    otherwise: Decision


class Bundle:
    """All policies of a hub, compiled; made by `compile_bundle`."""

    def __init__(self, policies: Sequence[Policy], conditions: Conditions, version: int) -> None:
        self.policies = tuple(sorted(policies, key=lambda policy: policy.name))
        self.version = version
        self.hash = hash_of(self.policies)
        self.id = f"{version}-{self.hash}"
        """The bundle's name in audit events: the version gives the order, and the hash identifies the
        contents.
        """
        self._rules = {
            policy.name: tuple(_compiled(policy, rule, conditions) for rule in policy.rules if rule.enabled)
            for policy in self.policies
        }
        rules = [compiled.rule for some in self._rules.values() for compiled in some]
        self.timed = any(rule.when and conditions.timed(rule.when) for rule in rules)
        """Whether some condition reads the time, so that an allowed request may be denied later."""
        self._scopes: dict[tuple[str, ...], Scope] = {}
        self._pairs: dict[tuple[str, str], tuple[Agent, Cluster, Scope]] = {}
        self._rules_by_kind: dict[tuple[Scope, tuple[str, ...]], _KindRules] = {}
        self.explanations: dict[
            tuple[Scope, RequestKind, str, str, str, Effect, bool], tuple[str, str, str]
        ] = {}
        """The memo of `auth.policy.advice`, which bounds it. It is part of the bundle and ends with it."""

    def decide(self, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> Decision:
        """Return the decision; never raises."""
        if info.upgrade:
            return self._decide_upgrade(agent, cluster, info, now)
        # `scope_of`, inlined: this runs for every request.
        pair = self._pairs.get((agent.name, cluster.name))
        if pair is None or pair[0] is not agent or pair[1] is not cluster:
            scope = self._bind(agent, cluster)
        else:
            scope = pair[2]
        key = (scope, info.kind)
        candidates = self._rules_by_kind.get(key)
        if candidates is None:
            candidates = _rules_for(scope, info)
            if len(info.raw_path) <= MEMO_PATH_BYTES_MAX:
                if len(self._rules_by_kind) >= MEMO_KINDS_MAX:
                    self._rules_by_kind.clear()
                self._rules_by_kind[key] = candidates
        name = info.name
        for compiled in candidates.rules:
            rule = compiled.rule
            if rule.names is not None and not names_match(rule, name, candidates.kind):
                continue
            if compiled.condition is not None:
                try:
                    if not compiled.condition(Facts(candidates.kind, info, agent, cluster, now, self)):
                        continue
                except ConditionError as error:
                    return Decision(False, rule.id, compiled.policy.name, failure=str(error))
            return compiled.decision
        return candidates.otherwise

    def _decide_upgrade(self, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> Decision:
        decision = self.decide(agent, cluster, as_plain(info), now)
        implied = implied_create(info)
        if implied is None or decision.effect is Effect.DENY:
            return decision
        create_decision = self.decide(agent, cluster, implied, now)
        if decision.effect is not create_decision.effect:
            return min(decision, create_decision, key=lambda each: _PRECEDENCE[each.effect])
        if decision.ask is not None:
            rules = self.scope_of(agent, cluster).rules
            return next(each.decision for each in rules if each.decision in (decision, create_decision))
        # Both are allowed: the one with the shorter maximum duration decides.
        return decision if _longest_s(decision) < _longest_s(create_decision) else create_decision

    def scope_of(self, agent: Agent, cluster: Cluster) -> Scope:
        """The rules that bind an agent on a cluster."""
        pair = self._pairs.get((agent.name, cluster.name))
        if pair is None or pair[0] is not agent or pair[1] is not cluster:
            return self._bind(agent, cluster)
        return pair[2]

    def _bind(self, agent: Agent, cluster: Cluster) -> Scope:
        if len(self._pairs) >= MEMO_PAIRS_MAX:
            self._pairs.clear()
            self._scopes.clear()
            self._rules_by_kind.clear()
            self.explanations.clear()
        bound = tuple(policy.name for policy in self.policies if binds(policy, agent, cluster))
        scope = self._scopes.get(bound)
        if scope is None:
            scope = Scope.of(compiled for name in bound for compiled in self._rules[name])
            self._scopes[bound] = scope
        self._pairs[agent.name, cluster.name] = (agent, cluster, scope)
        return scope


def compile_bundle(sources: Iterable[Source], conditions: Conditions, *, version: int = 0) -> Bundle:
    """Make a bundle of documents, each a policy; raises PolicyError with all faults of all documents."""
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
    """Hash the contents of policies, without their comments and layout: equal only if the contents are."""
    documents = [policy.data for policy in sorted(policies, key=lambda policy: policy.name)]
    text = json.dumps(documents, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:HASH_CHARACTERS]


def binds(policy: Policy, agent: Agent, cluster: Cluster) -> bool:
    """Whether a policy binds this agent on this cluster."""
    return policy.binds_agent(agent.name, agent.teams) and policy.clusters.matches(
        cluster.name, cluster.labels
    )


def _longest_s(decision: Decision) -> float:
    return math.inf if decision.max_duration_s is None else decision.max_duration_s


@attrs.frozen(eq=False)
class _AskCondition:
    """The condition of a rule that asks. It does not hold for a trusted dry run: the other rules decide.

    The answer to a dry run of an update or a patch shows the object as it is. So it needs an approval like
    the write itself if the agent may not read the object without one.
    """

    ask: Ask
    when: Condition | None

    def __call__(self, facts: Facts) -> bool:
        if self.ask.trusts(facts.info) and (facts.info.verb == "create" or _may_read(facts)):
            return False
        return self.when is None or self.when(facts)


def _may_read(facts: Facts) -> bool:
    bundle = facts.bundle
    assert bundle is not None, "a bundle evaluates its rules itself"
    return bundle.decide(facts.agent, facts.cluster, as_read(facts.info), facts.now).allowed


def _compiled(policy: Policy, rule: Rule, conditions: Conditions) -> CompiledRule:
    condition = conditions.compile(rule.when) if rule.when else None
    if rule.ask is not None:
        condition = _AskCondition(rule.ask, condition)
    decision = Decision(rule.allows, rule.id, policy.name, rule.max_duration_s, ask=rule.ask)
    return CompiledRule(policy, rule, condition, decision)


def _rules_for(scope: Scope, info: RequestInfo) -> _KindRules:
    kind = request_kind_of(info)
    if is_discovery(info):
        return _KindRules(kind, (), DISCOVERY)
    return _KindRules(kind, applicable(scope.about(kind), kind), NO_RULE)


def applicable(about: Iterable[CompiledRule], kind: RequestKind) -> tuple[CompiledRule, ...]:
    """The rules that may apply to a kind of request; `about` has the order of evaluation.

    If a rule is certain to apply, it is the last one: rules behind it are never reached.
    """
    rules: list[CompiledRule] = []
    for compiled in about:
        # The effect of a method without a Kubernetes verb is unknown, so no rule allows it, and none asks.
        if (not kind.verb and compiled.rule.effect is not Effect.DENY) or mismatch(compiled.rule, kind):
            continue
        rules.append(compiled)
        if compiled.unconditional:
            break
    return tuple(rules)
