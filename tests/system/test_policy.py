"""Policies with the real kubectl, by both ways: what a denied agent reads, and that nothing got through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.world import NAMESPACE, POD, USER, WAYS, World, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(240)]

RULES = """
kind: Policy
metadata: {name: granted, contact: "#platform"}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: look, effect: allow, verbs: [read], resources: ["*", "*/*"]}
    - {id: write, effect: allow, verbs: [write], resources: ["*", "*/*"], namespaces: [other]}
    - {id: no-exec, effect: deny, verbs: [create], resources: [pods/exec], reason: sessions are not kept here,
       instead: kubectl logs}
"""
CORE = f"/api/v1/namespaces/{NAMESPACE}"
CERTIFICATES = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
# A request for each rule of the guard, as kubectl sends it by --raw.
GUARDED = {
    "serviceaccount-tokens": ("create", f"{CORE}/serviceaccounts/default/token"),
    "nodes-proxy": ("get", "/api/v1/nodes/marked/proxy/pods"),
    "csr-approval": ("replace", f"{CERTIFICATES}/marked/approval"),
    "webhooks": ("create", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
    "apiservices": ("delete", "/apis/apiregistration.k8s.io/v1/apiservices/marked"),
    "relay-namespace": ("get", "/api/v1/namespaces/hawse/pods"),
    "admission-policies": (
        "create",
        "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings",
    ),
    "relay-roles": ("delete", "/apis/rbac.authorization.k8s.io/v1/clusterroles/hawse-relay-marked"),
    "pod-certificates": (
        "create",
        f"/apis/certificates.k8s.io/v1/namespaces/{NAMESPACE}/podcertificaterequests",
    ),
    "node-status": ("replace", "/api/v1/nodes/marked/status"),
    "node-creation": ("create", "/api/v1/nodes"),
    "flow-control": ("create", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"),
    "cluster-authentication": ("replace", "/api/v1/namespaces/kube-system/configmaps/aws-auth"),
    "custom-resource-definitions": ("create", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"),
    "persistent-volumes": ("create", "/api/v1/persistentvolumes"),
    "rbac": ("create", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    "services-proxy": ("get", f"{CORE}/services/marked/proxy/x"),
    "pods-proxy": ("get", f"{CORE}/pods/marked/proxy/x"),
    "ephemeral-containers": ("replace", f"{CORE}/pods/marked/ephemeralcontainers"),
    "pods-binding": ("create", f"{CORE}/pods/marked/binding"),
    "secrets": ("get", f"{CORE}/secrets"),
}


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("ruled")) as running:
        yield running


def seen(world: World, path: str) -> int:
    """How many requests of the agent for this path the API server has had."""
    return sum(
        path in str(event.get("requestURI", "")) and USER in str(event.get("impersonatedUser", ""))
        for event in world.cluster_audit()
    )


def raw(world: World, way: str, rule: str) -> bytes:
    """Send the request that a rule of the guard is about; what kubectl says of it."""
    verb, path = GUARDED[rule]
    body = ["-f", "-"] if verb in {"create", "replace"} else []
    return world.kubectl(way, verb, "--raw", path, *body, stdin=b"{}").err


# Before the tests with many denials: the trail keeps the first ones of ten seconds, and counts the others.
@pytest.mark.parametrize("way", WAYS)
def test_a_denied_agent_reads_why_what_instead_and_whom_to_ask(
    ruled: World, way: str, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped.yaml"
    shipped.write_bytes(ruled.admin("policy", "show", "granted"))
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    ruled.admin("policy", "apply", str(rules))
    try:
        assert ruled.kubectl(way, "get", "pods").code == 0
        denied = ruled.kubectl(way, "delete", "pod", POD)
        assert denied.code == 1
        message = (
            f"delete of pods {POD} in namespace {NAMESPACE} on cluster {way} is denied by no-rule-allows: "
            "no rule allows it; instead: you may get, list, watch pods there; "
            "you may delete pods in namespaces other; ask #platform"
        )
        assert f"Error from server (Forbidden): {message}" in denied.err.decode()
        for spdy in (False, True):
            session = ruled.kubectl(way, "exec", POD, "--", "true", spdy=spdy)
            assert session.code == 1
            words = b"is denied by granted/no-exec: sessions are not kept here; instead: kubectl logs"
            assert words in session.err
    finally:
        ruled.admin("policy", "apply", str(shipped))
    assert ruled.kubectl(way, "exec", POD, "--", "echo", "hi").out == b"hi\n"
    last = [event for event in ruled.hub_audit() if (event.get("decision") or {}).get("rule") == "no-exec"]
    assert {event["decision"]["effect"] for event in last} == {"deny"}
    assert all(event["decision"]["bundle"] for event in last)


@pytest.mark.parametrize("way", WAYS)
def test_each_rule_of_the_guard_holds_while_it_is_on_and_lets_pass_while_it_is_off(
    ruled: World, way: str
) -> None:
    switch("enable", ruled)
    before = {rule: seen(ruled, path) for rule, (_, path) in GUARDED.items()}
    for rule in GUARDED:
        told = raw(ruled, way, rule)
        assert b"is denied by guard/" + rule.encode() in told, (rule, told)
        assert b"ask " in told
    assert {rule: seen(ruled, path) for rule, (_, path) in GUARDED.items()} == before
    switch("disable", ruled)
    for rule, (_, path) in GUARDED.items():
        told = raw(ruled, way, rule)
        assert b"denied by guard" not in told, (rule, told)
        assert seen(ruled, path) > before[rule], (rule, told)


def switch(what: str, world: World) -> None:
    """Bring every rule of the guard to one state."""
    state = {rule["id"]: rule["enabled"] for rule in guard(world)}
    others = [rule for rule in GUARDED if state[rule] is not (what == "enable")]
    if others:
        world.admin("policy", what, "guard", *others)


def guard(world: World) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(world.admin("policy", "guard", "--json"))
    return listed
