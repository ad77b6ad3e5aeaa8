from __future__ import annotations

import pytest

from auth.policy.bundled import first_sources
from auth.policy.extent import extent
from auth.policy.match import Bundle, compile_bundle
from tests.auth.policies import AGENT, CLUSTER, CONDITIONS, bundle, policy

EVERY = "- {id: every, effect: allow, verbs: ['*'], resources: ['*']}\n"
LOOK = "- {id: look, effect: allow, verbs: [read], resources: [pods]}\n"
WRITES = "create, update, patch, delete, deletecollection"


def word(of: Bundle) -> str:
    return extent(ready.rule for ready in of.scope_of(AGENT, CLUSTER).rules)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (EVERY, "all"),
        (EVERY + "- {id: no, effect: deny, verbs: [delete], resources: [secrets]}", "all"),
        (EVERY + f"- {{id: no, effect: deny, verbs: [{WRITES}]}}", "read"),
        (EVERY + "- {id: no, effect: deny, verbs: [write], resources: ['*']}", "read"),
        (EVERY + "- {id: no, effect: deny, verbs: ['*']}", "nothing"),
        (EVERY + "- {id: x, effect: ask, verbs: [write], ask: {approvers: [any]}}", "some"),
        (EVERY + "- {id: x, effect: ask, verbs: [write], namespaces: [a], ask: {approvers: [any]}}", "all"),
        (
            LOOK + "- {id: x, effect: ask, verbs: [delete], resources: [pods], ask: {approvers: [any]}}",
            "some",
        ),
        ("- {id: x, effect: ask, verbs: ['*'], ask: {approvers: [any]}}", "some"),
        (LOOK, "read"),
        ("- {id: x, effect: allow, verbs: [get, list, watch], resources: ['*']}", "read"),
        (LOOK + "- {id: x, effect: allow, verbs: [patch], resources: [pods], namespaces: [a]}", "some"),
        ("- {id: x, effect: allow, verbs: [create], resources: [pods]}", "some"),
        ("- {id: x, effect: allow, verbs: ['*'], resources: ['*', '!secrets']}", "some"),
        ("- {id: x, effect: allow, verbs: ['*'], resources: ['*'], namespaces: [app]}", "some"),
        ("- {id: x, effect: allow, verbs: ['*'], resources: ['*'], when: 'agent.name == \"x\"'}", "some"),
        ("- {id: x, effect: allow, verbs: [get], nonResourceURLs: [/metrics]}", "nothing"),
        ("- {id: x, effect: allow, verbs: ['*'], resources: ['*'], enabled: false}", "nothing"),
    ],
)
def test_a_word_says_how_far_the_rules_go(rules: str, expected: str) -> None:
    assert word(bundle(policy(rules))) == expected


def test_a_new_hub_lets_an_agent_do_all_that_the_cluster_does() -> None:
    assert word(compile_bundle(first_sources(), CONDITIONS)) == "all"
    assert word(bundle(policy(EVERY, bind="{teams: [others]}"))) == "nothing"
