from __future__ import annotations

import pytest

from auth.policy.text import PolicyError, Source, split
from auth.requestinfo import parse
from proxy.cli.admin.policy.tests import (
    compiled,
    read_cases,
    request_for,
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
    ("asked", "method", "verb", "rest"),
    [
        (("get", "pods", "web", "app"), "GET", "get", ("", "app", "pods", "", "web")),
        (("get", "pods/log", "web", "app"), "GET", "get", ("", "app", "pods", "log", "web")),
        (("create", "pods/exec", "web", "app"), "POST", "create", ("", "app", "pods", "exec", "web")),
        (("list", "pods", "", "app"), "GET", "list", ("", "app", "pods", "", "")),
        (("list", "secrets", "a", "app"), "GET", "list", ("", "app", "secrets", "", "a")),
        (("watch", "pods"), "GET", "watch", ("", "", "pods", "", "")),
        (("create", "deployments.apps", "", "app"), "POST", "create", ("apps", "app", "deployments", "", "")),
        (
            ("create", "deployments", "", "app", "apps"),
            "POST",
            "create",
            ("apps", "app", "deployments", "", ""),
        ),
        (("get", "widgets.example.com", "w"), "GET", "get", ("example.com", "", "widgets", "", "w")),
        (("update", "nodes", "n"), "PUT", "update", ("", "", "nodes", "", "n")),
        (("patch", "nodes/status", "n"), "PATCH", "patch", ("", "", "nodes", "status", "n")),
        (("delete", "pods", "web", "app"), "DELETE", "delete", ("", "app", "pods", "", "web")),
        (("deletecollection", "pods", "", "app"), "DELETE", "deletecollection", ("", "app", "pods", "", "")),
    ],
)
def test_a_request_is_made_of_what_a_person_says(
    asked: tuple[str, ...], method: str, verb: str, rest: tuple[str, ...]
) -> None:
    made, target = request_for(*asked)
    info = parse(made.encode(), target.encode())
    assert (made, info.verb) == (method, verb)
    assert (info.group, info.namespace, info.resource, info.subresource, info.name) == rest


def test_a_path_is_asked_for_by_its_method() -> None:
    assert request_for("get", "/metrics") == ("GET", "/metrics")
    assert request_for("post", "/reload") == ("POST", "/reload")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("exec", "pods", "web"), "exec is no verb: one of get, list"),
        (("get", "pods"), "get needs the name of an object: for all of them say list"),
        (("delete", "pods"), "delete needs the name of an object: for all of them say deletecollection"),
        (("update", "pods"), "update needs the name of an object$"),
        (("create", "pods/exec"), "pods/exec needs the name of an object"),
        # An answer about an impossible request would mislead.
        (("get", "pdos", "web", "app"), r"the core API group has no pdos \(did you mean pods\?\): for"),
        (("get", "pod", "web", "app"), r"has no pod \(did you mean pods\?\): .* write RESOURCE\.GROUP$"),
        (("list", "deployment.apps"), r"^the API group apps has no deployment \(did you mean deployments"),
        (("list", "pods/log", "web", "app"), "pods/log has no list: say get"),
        (("list", "widgets"), r"has no widgets: for another group write RESOURCE\.GROUP$"),
        (("delete", "deployments", "web", "app"), r"has no deployments: write deployments\.apps$"),
        (("get", "pods", "web"), r"pods lie in namespaces: name one by -n"),
        (("create", "deployments.apps"), r"deployments\.apps lie in namespaces: name one by -n"),
        (("get", "nodes", "n", "app"), "nodes lie in no namespace: leave out -n app"),
        (("get", "namespaces", "app", "app"), "namespaces lie in no namespace: leave out -n app"),
    ],
)
def test_what_is_not_said_is_asked_for(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_for(*asked)


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
    assert (two.passed, two.allowed) == (False, True)


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_case_may_be_an_upgrade(upgrade: bool) -> None:
    asked = f"GET /api/v1/namespaces/a/pods/web/console, upgrade: {str(upgrade).lower()},"
    cases = read_cases(Source(CASES.replace("GET /api/v1/pods,", asked)))
    [result] = run_cases(compiled([Source(LOOK.replace("'*'", "'*/*'"))]), cases, 0.0)
    assert result.passed is not upgrade
