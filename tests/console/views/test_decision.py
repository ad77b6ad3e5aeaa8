from __future__ import annotations

import shlex
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from proxy.console.views.decision import RESOURCES, Question, answer_of, rule_path
from proxy.kubernetes.described import request_for

ASKED = Question("sre-1", "prod", "delete", "pods", "web", "kube-system")


def found(**changed: Any) -> dict[str, Any]:
    """Return the API's answer about an allowed request."""
    return {
        "version": 3, "hash": "0cb4", "bundle": "3-0cb4271b433ad5bf", "allowed": True, "decision": "allow",
        "rule": "look", "policy": "sre-prod", "max_duration_s": None, "bound": ["guard", "sre-prod"],
        "request": {"verb": "get", "group": "", "resource": "pods", "namespace": "app", "name": "w"},
        **changed,
    }  # fmt: skip


def test_a_question_survives_its_address() -> None:
    query = dict(parse_qsl(urlsplit(ASKED.path).query))
    assert Question.of(query) == ASKED
    assert Question.of({"agent": " a ", "other": "x"}) == Question(agent="a")


@pytest.mark.parametrize("name", ["agent", "cluster", "resource"])
def test_a_question_needs_an_agent_a_cluster_and_a_resource(name: str) -> None:
    assert ASKED.complete
    query = dict(parse_qsl(urlsplit(ASKED.path).query))
    del query[name]
    assert not Question.of(query).complete


def test_the_command_asks_the_same() -> None:
    words = shlex.split(ASKED.command)
    assert words == [
        "hawse", "admin", "policy", "explain", "-n", "kube-system", "sre-1", "prod", "delete", "pods", "web",
    ]  # fmt: skip
    assert shlex.split(Question("-x", "c", "get", "pods").command)[4:] == ["--", "-x", "c", "get", "pods"]
    assert "--upgrade" in Question("a", "c", "get", "pods/exec", "w", "n", "true").command


def test_an_answer_leads_to_the_rule_and_the_policies() -> None:
    answer = answer_of(found())
    assert answer.allowed
    assert answer.href == "/policies/sre-prod?version=3#rule-look"
    assert answer.bound == [("guard", "/policies/guard"), ("sre-prod", "/policies/sre-prod")]
    assert answer.request == [("verb", "get"), ("resource", "pods"), ("namespace", "app"), ("name", "w")]
    assert (answer.why, answer.instead, answer.message, answer.refused) == ("", "", "", "")


def test_a_denial_says_why_what_instead_and_whom_to_ask() -> None:
    causes = [("PolicyRule", "p/r"), ("Why", "it is theirs"), ("Instead", "get pods"), ("Ask", "#platform")]
    details = {"causes": [{"reason": reason, "message": message} for reason, message in causes]}
    answer = answer_of(found(allowed=False, decision="deny", message="is denied", details=details))
    assert (answer.why, answer.instead, answer.ask) == ("it is theirs", "get pods", "#platform")
    assert (answer.allowed, answer.message) == (False, "is denied")


def test_an_answer_that_asks_says_who_may_approve_and_which_rules_ask_too() -> None:
    ask = {"approvers": ["ann@example.com", "owner"], "wait_s": 45, "valid_for_s": 900, "interactive": False}
    others = [{"policy": "team", "rule": "all", **ask, "approvers": ["any"]}]
    more = {"ask": ask, "other_asks": others, "unapprovable": ""}
    asked = answer_of(found(allowed=False, decision="ask", message="needs", **more))
    assert asked.asks is not None
    assert (asked.asks.approvers, asked.asks.wait_s) == (["ann@example.com", "owner"], 45)
    assert asked.asks.others == [("team/all", "/policies/team?version=3#rule-all", ["any"])]
    assert answer_of(found()).asks is None


def test_a_rule_path_escapes_names() -> None:
    assert rule_path("", "no-rule-allows", "3-x") == ""
    assert rule_path("a/b", 'r"<', "v-x") == "/policies/a%2Fb#rule-r%22%3C"


def test_each_resource_that_is_offered_can_be_asked_for() -> None:
    for resource in RESOURCES:
        verb, name = ("create", "x") if "/" in resource else ("list", "")
        namespace = "app" if "/" in resource else ""
        assert request_for(verb, resource, name, namespace)[1]
