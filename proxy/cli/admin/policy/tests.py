"""Tests policies without a hub: runs test cases from a file.

Pure: the commands read the input and print the results.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import attrs

from auth.policy.checker import Checker
from auth.policy.conditions import CelConditions
from auth.policy.document import kind_of
from auth.policy.match import Bundle, compile_bundle
from auth.policy.rules import Effect
from auth.policy.simulation import Agent, Cluster
from auth.policy.text import Item, PolicyError, Source, read
from auth.requestinfo import BadTarget, RequestInfo, parse

TEST_KIND = "PolicyTest"
CASES_MAX = 10_000


def compiled(sources: Iterable[Source], *, version: int = 0) -> Bundle:
    """Compile policies; raises PolicyError."""
    return compile_bundle(sources, CelConditions(time.thread_time), version=version)


def sorted_out(sources: Iterable[Source]) -> tuple[list[Source], list[Source]]:
    """Separate policies from test cases. Other documents stay with the policies and are reported there."""
    policies: list[Source] = []
    tests: list[Source] = []
    for source in sources:
        try:
            is_test = kind_of(read(source)) == TEST_KIND
        except PolicyError:
            is_test = False
        (tests if is_test else policies).append(source)
    return policies, tests


# -- test cases ----------------------------------------------------------------------------------------------


@attrs.frozen
class Case:
    """One request with its expected decision."""

    file: str
    line: int
    agent: Agent
    cluster: Cluster
    info: RequestInfo
    asked: str
    effect: Effect
    rule: str
    """The rule that must decide; empty if any rule may."""


@attrs.frozen
class Result:
    """The decision for a case."""

    case: Case
    effect: Effect
    rule: str
    """`policy/rule`."""

    @property
    def passed(self) -> bool:
        return self.effect is self.case.effect and self.case.rule in {"", self.rule}


def read_cases(source: Source) -> list[Case]:
    """Read a document of kind PolicyTest; raises PolicyError with every fault."""
    check = Checker(source.file)
    fields = check.mapping(
        read(source), ("apiVersion", "kind", "metadata", "agents", "clusters", "cases"),
        required=("agents", "clusters", "cases"),
    )  # fmt: skip
    agents = {
        name: Agent(name, _texts(check, inner.get("teams")), check.text(inner.get("owner"), 254))
        for name, inner in _named(check, fields.get("agents"), ("teams", "owner"))
    }
    clusters = {
        name: Cluster(name, _labels(check, inner.get("labels")))
        for name, inner in _named(check, fields.get("clusters"), ("labels",))
    }
    cases: list[Case] = []
    for entry in check.items(fields["cases"], CASES_MAX) if "cases" in fields else []:
        case = _case(check, source.file, entry, agents, clusters)
        if case is not None:
            cases.append(case)
    if check.faults:
        raise PolicyError(check.faults)
    return cases


def _case(
    check: Checker, file: str, item: Item, agents: Mapping[str, Agent], clusters: Mapping[str, Cluster]
) -> Case | None:
    required = ("agent", "cluster", "request", "expect")
    fields = check.mapping(item, (*required, "upgrade", "rule"), required=required)
    agent = agents.get(check.choice(fields.get("agent"), agents))
    cluster = clusters.get(check.choice(fields.get("cluster"), clusters))
    expect = check.choice(fields.get("expect"), ("allow", "deny", "ask"))
    request = fields.get("request")
    asked = request.value if request is not None and isinstance(request.value, str) else ""
    method, _, target = asked.partition(" ")
    try:
        info = parse(method.encode("utf-8"), target.encode("utf-8"))
    except BadTarget as error:
        if request is not None:
            check.fault(request, f"is no request such as GET /api/v1/pods: {error.reason}")
        return None
    if agent is None or cluster is None or not expect:
        return None
    if check.flag(fields.get("upgrade"), False):
        info, asked = info.upgraded(), f"{asked} (upgrade)"
    rule = check.text(fields.get("rule"), 200)
    return Case(file, item.line, agent, cluster, info, asked, Effect(expect), rule)


def _named(check: Checker, item: Item | None, known: Sequence[str]) -> list[tuple[str, dict[str, Item]]]:
    if item is None:
        return []
    if not isinstance(item.value, dict):
        check.fault(item, f"must be a mapping of names to {', '.join(known)}")
        return []
    return [
        (name, check.mapping(inner, known) if inner.value is not None else {})
        for name, inner in item.value.items()
    ]


def _texts(check: Checker, item: Item | None) -> tuple[str, ...]:
    return tuple(str(entry.value) for entry in check.items(item)) if item is not None else ()


def _labels(check: Checker, item: Item | None) -> dict[str, str]:
    if item is None:
        return {}
    if not isinstance(item.value, dict):
        check.fault(item, "must be a mapping of labels to values")
        return {}
    return {key: str(value.value) for key, value in item.value.items()}


def run_cases(bundle: Bundle, cases: Iterable[Case], now: float) -> list[Result]:
    """Decide each case. `now` is in epoch seconds."""
    results = []
    for case in cases:
        decision = bundle.decide(case.agent, case.cluster, case.info, now)
        rule = f"{decision.policy}/{decision.rule}" if decision.policy else decision.rule
        results.append(Result(case, decision.effect, rule))
    return results
