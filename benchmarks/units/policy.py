"""What a decision costs under 500 rules: `python -m benchmarks.units.policy [RULES]`.

The rules are of ten policies, most of them for other namespaces and resources than those that are asked for,
as policies of an organisation are; a few have a condition. *seen* are requests like earlier ones (the kinds
of requests that agents make again and again), *new* ones that no request was like, and *plainly* is the
yardstick: the same decision by a look at every rule. The median of single decisions is wall time, all else
CPU time.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Mapping
from statistics import median

import attrs

from auth.policy.conditions import CelConditions
from auth.policy.match import Bundle, binds, compile_bundle
from auth.policy.subjects import mismatch, names_match
from auth.policy.text import split
from auth.request_kind import request_kind_of
from auth.requestinfo import RequestInfo, parse
from benchmarks.units.timing import measure

RULES = 500
POLICIES = 10
NAMESPACES = 64
RESOURCES = ("pods", "services", "configmaps", "deployments", "jobs", "secrets", "ingresses", "nodes")
NOW = 1_800_000_000.0


@attrs.frozen
class Agent:
    name: str = "builder"
    owner: str = "ann@example.com"
    teams: tuple[str, ...] = ("platform", "sre")


@attrs.frozen
class Cluster:
    name: str = "prod"
    labels: Mapping[str, str] = attrs.Factory(lambda: {"env": "prod"})


def rule(number: int, *, conditions: bool) -> str:
    """One of the rules; each tenth denies, each twentieth has names, each fiftieth a condition."""
    resource = RESOURCES[number % len(RESOURCES)]
    deny = number % 10 == 9
    fields = [
        f"id: r{number}",
        f"effect: {'deny' if deny else 'allow'}",
        f"verbs: {'[delete, deletecollection]' if deny else '[read]'}",
        f"resources: [{resource}, {resource}/status, '!bindings']",
        f"namespaces: [team-{number % 97}, 'app-{number % NAMESPACES}-*']",
    ]
    if number % 20 == 3:
        fields.append("resourceNames: [web, 'db-*']")
    if conditions and number % 50 == 1:
        fields.append('when: \'request.name != "top" && "sre" in agent.teams\'')
    return f"- {{{', '.join(fields)}}}"


def bundle(rules: int = RULES, *, conditions: bool = True) -> Bundle:
    """So many rules in ten policies, or in one for each rule if there are fewer."""
    texts = [
        f"kind: Policy\nmetadata: {{name: p{number}}}\nspec:\n  bind: {{teams: [sre]}}\n"
        "  clusters: {matchLabels: {env: prod}}\n  rules:\n"
        + "".join(f"    {rule(each, conditions=conditions)}\n" for each in range(number, rules, POLICIES))
        for number in range(min(POLICIES, rules))
    ]
    sources = [source for text in texts for source in split(text)]
    return compile_bundle(sources, CelConditions(time.thread_time), version=1)


def requests(start: int, count: int) -> list[RequestInfo]:
    """Different kinds of requests, of the resources and namespaces that the rules are about."""
    return [
        parse(
            b"GET",
            f"/api/v1/namespaces/app-{number % NAMESPACES}-{number}/{RESOURCES[number % 8]}/web".encode(),
        )
        for number in range(start, start + count)
    ]


def plainly(made: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo) -> bool:
    """Decide by a look at every rule, until one is found that denies, and after that for one that allows."""
    kind = request_kind_of(info)
    for allows in (False, True):
        for policy in made.policies:
            if not binds(policy, agent, cluster):
                continue
            for each in policy.rules:
                if each.allows is allows and not mismatch(each, kind) and names_match(each, info.name, kind):
                    return allows
    return False


def single_decisions_us(made: Bundle, infos: Iterator[RequestInfo], count: int) -> list[float]:
    """Wall time of each of so many decisions, in µs."""
    agent, cluster = Agent(), Cluster()
    taken = []
    for info in itertools.islice(infos, count):
        began_s = time.perf_counter()
        made.decide(agent, cluster, info, NOW)
        taken.append((time.perf_counter() - began_s) * 1e6)
    return taken


def main(rules: int) -> None:
    agent, cluster = Agent(), Cluster()
    made, bare = bundle(rules), bundle(rules, conditions=False)
    print(f"{sum(len(policy.rules) for policy in made.policies)} rules in {len(made.policies)} policies")
    seen = itertools.cycle(requests(0, 64))
    measure("decide, seen, no conditions", lambda: bare.decide(agent, cluster, next(seen), NOW))
    measure("decide, seen", lambda: made.decide(agent, cluster, next(seen), NOW))
    new = iter(requests(1000, 8 * 5000))
    measure("decide, new", lambda: made.decide(agent, cluster, next(new), NOW))
    measure("plainly", lambda: plainly(made, agent, cluster, next(seen)), calls=500)
    taken = single_decisions_us(made, seen, 20_000)
    print(f"single decisions, seen: p50 {median(taken):.2f} µs, p99 {sorted(taken)[19_800]:.2f} µs")
    measure("compile", lambda: bundle(rules), calls=5)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RULES)
