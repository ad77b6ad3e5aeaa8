"""Upgrades: which permissions a WebSocket or SPDY needs."""

from __future__ import annotations

import pytest

from auth.policy.advice import advise
from auth.policy.match import NO_RULE
from auth.request_kind import implied_create, request_kind_of
from tests.auth.policies import AGENT, CLUSTER, ask, bundle, info_of, policy

POD = "/api/v1/namespaces/app-1/pods/web"
VIRTUAL = "/apis/subresources.kubevirt.io/v1/namespaces/app-1/virtualmachineinstances/vm"
READ = '- {id: look, effect: allow, verbs: [read], resources: ["*", "*/*"], nonResourceURLs: ["/*"]}'
CREATE = '- {id: open, effect: allow, verbs: [create], resources: ["*", "*/*"]}'

# A GET opens each of these, and it acts.
ACTING = [
    *(f"GET {VIRTUAL}/{what}" for what in ("console", "vnc", "usbredir", "vsock", "portforward/22")),
    f"GET {POD}/exec?command=sh",
    f"GET {POD}/attach",
    f"GET {POD}/portforward",
    f"GET {POD}/proxy/socket",
    "GET /api/v1/namespaces/app-1/services/web/proxy/socket",
    "GET /api/v1/nodes/n/proxy/exec/a/b/c",
    "GET /api/v1/proxy/namespaces/app-1/pods/web/socket",
    # On these, an upgrade may have any effect.
    f"GET {POD}",
    "GET /apis/example.com/v1/namespaces/app-1/things/a",
    "GET /apis/example.com/v1/namespaces/app-1/things/a/log",
    "GET /apis/example.com/v1/watch/namespaces/app-1/things/a/console",
    "GET /apis/example.com/v1",
    "GET /openapi/v3",
    "GET /metrics",
]
STREAMS = [
    "GET /api/v1/namespaces/app-1/pods?watch=true",
    "GET /api/v1/pods?watch=1&fieldSelector=metadata.name%3Dweb",
    "GET /api/v1/watch/namespaces/app-1/pods",
    "GET /apis/subresources.kubevirt.io/v1/namespaces/app-1/virtualmachineinstances?watch=true",
    f"GET {POD}/log?follow=true",
]


@pytest.mark.parametrize("request_", ACTING)
def test_whoever_may_read_everything_may_not_upgrade(request_: str) -> None:
    assert not ask(policy(READ), request_, upgrade=True).allowed


@pytest.mark.parametrize("request_", STREAMS)
def test_watches_and_logs_are_read_by_a_websocket_as_well(request_: str) -> None:
    assert ask(policy(READ), request_, upgrade=True).allowed


@pytest.mark.parametrize(
    "request_", [f"GET {VIRTUAL}/console", f"GET {POD}", "GET /api/v1/namespaces/app-1/secrets"]
)
def test_an_upgrade_needs_both_what_its_method_says_and_a_create(request_: str) -> None:
    # The API server may ignore the upgrade: a create permission alone must not permit a read.
    assert ask(policy(CREATE), request_, upgrade=True) is NO_RULE
    assert ask(policy(f"{READ}\n{CREATE}"), request_, upgrade=True).rule == "open"
    for verb in ("get", "list", "create"):
        denied = policy(f"{READ}\n{CREATE}\n- {{id: no, effect: deny, verbs: [{verb}]}}")
        kind = request_kind_of(info_of(request_)).verb
        assert ask(denied, request_, upgrade=True).allowed is (verb not in {kind, "create"})


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_no_method_becomes_another_by_an_upgrade(method: str) -> None:
    assert not ask(policy(CREATE), f"{method} {POD}", upgrade=True).allowed
    own = policy(f"{CREATE}\n- {{id: own, effect: allow, verbs: [update, patch, delete], resources: [pods]}}")
    assert ask(own, f"{method} {POD}", upgrade=True).allowed


@pytest.mark.parametrize("request_", [f"GET {POD}/exec", f"POST {POD}/exec", f"GET {POD}/portforward"])
def test_exec_and_its_like_are_a_create_and_nothing_beside(request_: str) -> None:
    rule = policy("- {id: exec, effect: allow, verbs: [create], resources: [pods/exec, pods/portforward]}")
    assert ask(rule, request_, upgrade=True).rule == "exec"
    assert implied_create(info_of(request_, upgrade=True)) is None


def test_an_upgrade_of_a_path_about_no_resource_is_a_post_as_well() -> None:
    rule = "- {{id: a, effect: allow, verbs: [{}], nonResourceURLs: [/socket]}}"
    assert not ask(policy(rule.format("get")), "GET /socket", upgrade=True).allowed
    assert not ask(policy(rule.format("post")), "GET /socket", upgrade=True).allowed
    assert ask(policy(rule.format("get, post")), "GET /socket", upgrade=True).allowed


def test_of_two_rules_that_allow_an_upgrade_the_stricter_bounds_it() -> None:
    for get_s, create_s, rule, longest_s in ((60, 30, "open", 30), (30, 60, "look", 30), (0, 30, "open", 30)):
        look = f", obligations: {{maxDuration: {get_s}s}}" if get_s else ""
        rules = (
            f"- {{id: look, effect: allow, verbs: [get], resources: ['*/*']{look}}}\n"
            "- {id: open, effect: allow, verbs: [create], resources: ['*/*'], "
            f"obligations: {{maxDuration: {create_s}s}}}}"
        )
        decision = ask(policy(rules), f"GET {VIRTUAL}/console", upgrade=True)
        assert (decision.rule, decision.max_duration_s) == (rule, longest_s)


def test_a_condition_is_asked_of_both() -> None:
    when = "- {id: a, effect: allow, verbs: ['*'], resources: ['*/*'], when: 'request.verb == \"get\"'}"
    assert ask(policy(when), f"GET {VIRTUAL}/console").allowed
    assert not ask(policy(when), f"GET {VIRTUAL}/console", upgrade=True).allowed


@pytest.mark.parametrize(("rules", "instead"), [(READ, "you may get"), (CREATE, "you may create")])
def test_who_is_denied_an_upgrade_is_told_which_half_is_allowed(rules: str, instead: str) -> None:
    made = bundle(policy(rules))
    info = info_of(f"GET {VIRTUAL}/console", upgrade=True)
    told = advise(made, AGENT, CLUSTER, info, made.decide(AGENT, CLUSTER, info, 0.0))
    kind = "virtualmachineinstances/console.subresources.kubevirt.io"
    assert told.what == f"get and create (it is an upgrade) of {kind} vm in namespace app-1 on cluster prod"
    assert told.instead == f"{instead} {kind} there"
    assert told.why == "no rule allows it"
