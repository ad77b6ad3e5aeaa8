from __future__ import annotations

import pytest

from auth.policy.text import PolicyError, Source, split
from proxy.cli.admin.policy.tests import (
    compiled,
    read_cases,
    run_cases,
    sorted_out,
)
from tests.auth.policies import policy

LOOK = policy("- {id: look, effect: allow, verbs: [read], resources: ['*']}", name="look")
CASES = """\
kind: PolicyTest
agents: {sre-1: {teams: [sre], owner: Ada}}
clusters: {prod: }
cases:
  - {agent: sre-1, cluster: prod, request: GET /api/v1/pods, expect: allow}
"""


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            CASES.replace("expect: allow", "expect: yes"),
            't.yaml:5: cases[0].expect: "yes" is not one of allow, deny',
        ),
        (CASES.replace("agent: sre-1", "agent: x"), 't.yaml:5: cases[0].agent: "x" is not one of sre-1'),
        (CASES.replace("cluster: prod", "cluster: x"), 't.yaml:5: cases[0].cluster: "x" is not one of prod'),
        (CASES.replace("/api/v1", "/api//v1"), "t.yaml:5: cases[0].request: is no request such as GET"),
        (CASES.replace("request:", "requests:"), "there is no field"),
        (CASES.replace("cases:", "case:"), "the field cases is missing"),
        (CASES.replace("{sre-1: {teams: [sre], owner: Ada}}", "[a]"), "must be a mapping of names to teams"),
    ],
)
def test_a_faulty_case_is_told_with_its_line(broken: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_cases(Source(broken, "t.yaml"))
    assert message in str(caught.value)


def test_policies_and_cases_are_told_apart_and_what_is_neither_is_a_policys_fault() -> None:
    policies, tests = sorted_out(split(f"{LOOK}---\n{CASES}---\nkind: Other\n---\n[\n"))
    assert [source.text for source in tests] == [CASES]
    assert len(policies) == 3
    with pytest.raises(PolicyError):
        compiled(policies)


def test_a_case_passes_by_its_effect_and_where_it_says_so_by_its_rule() -> None:
    cases = read_cases(Source(CASES)) + read_cases(
        Source(CASES.replace("allow}", "allow, rule: look/other}"))
    )
    one, two = run_cases(compiled([Source(LOOK)]), cases, 0.0)
    assert (one.passed, one.rule) == (True, "look/look")
    assert (two.passed, two.effect) == (False, "allow")


@pytest.mark.parametrize("expect", ["allow", "deny", "ask"])
def test_a_case_may_expect_that_a_rule_asks(expect: str) -> None:
    asks = policy("- {id: all, effect: ask, verbs: [read], ask: {approvers: [any]}}", name="asks")
    cases = read_cases(Source(CASES.replace("expect: allow", f"expect: {expect}, rule: asks/all")))
    [result] = run_cases(compiled([Source(LOOK), Source(asks)]), cases, 0.0)
    assert (result.effect, result.rule) == ("ask", "asks/all")
    assert result.passed is (expect == "ask")


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_case_may_be_an_upgrade(upgrade: bool) -> None:
    asked = f"GET /api/v1/namespaces/a/pods/web/console, upgrade: {str(upgrade).lower()},"
    cases = read_cases(Source(CASES.replace("GET /api/v1/pods,", asked)))
    [result] = run_cases(compiled([Source(LOOK.replace("'*'", "'*/*'"))]), cases, 0.0)
    assert result.passed is not upgrade
