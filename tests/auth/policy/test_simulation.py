"""Recorded calls, decided again."""

from __future__ import annotations

from auth.policy.match import Bundle, compile_bundle
from auth.policy.simulation import CHANGES_MAX, Agent, Cluster, Recorded, merged, simulate
from auth.policy.text import Source
from tests.auth.policies import CONDITIONS, policy

LOOK = policy("- {id: look, effect: allow, verbs: [read], resources: ['*']}", name="look")
NONE = policy("- {id: none, effect: deny, verbs: ['*']}", name="none")


def compiled(sources: list[Source]) -> Bundle:
    return compile_bundle(sources, CONDITIONS)


def test_what_is_proposed_takes_the_place_of_its_name_and_some_may_go() -> None:
    again = Source(LOOK.replace("[read]", "[get]"))
    assert merged([LOOK, NONE], [again], only=False) == [Source(NONE), again]
    assert merged([LOOK, NONE], [again], only=True) == [again]
    assert merged([LOOK, NONE], [], only=False, without=["none"]) == [Source(LOOK)]


def test_a_simulation_is_bounded_and_counts_all_the_same() -> None:
    agents = {"a": Agent("a", ("sre",))}
    clusters = {"c": Cluster("c", teams=("sre",)), "other": Cluster("other", teams=("web",))}
    calls = [
        Recorded("a", "c", "GET", f"/api/v1/namespaces/n{number}/pods", 0.0)
        for number in range(CHANGES_MAX + 5)
    ]
    calls.append(Recorded("a", "other", "GET", "/api/v1/pods", 0.0))
    found = simulate(
        calls, agents, clusters, compiled([Source(LOOK)]), compiled([Source(LOOK), Source(NONE)])
    )
    assert (found.calls, found.newly_denied, found.unknown) == (CHANGES_MAX + 5, CHANGES_MAX + 5, 1)
    assert len(found.changes) == CHANGES_MAX
