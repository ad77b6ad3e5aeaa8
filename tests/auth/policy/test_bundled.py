from __future__ import annotations

import attrs
import pytest

from auth.policy.bundled import GRANTED, GUARD, _field, first_sources, switch
from auth.policy.document import policy_of
from auth.policy.match import Bundle, compile_bundle
from auth.policy.text import PolicyError, Source, read, split
from tests.auth.policies import CONDITIONS, ask, policy


def shipped(*, off: str = "", on: str = "") -> Bundle:
    granted, guard = first_sources()
    if off:
        guard = switch(guard, off, enabled=False)
    if on:
        guard = switch(guard, on, enabled=True)
    return compile_bundle([granted, guard], CONDITIONS)


CORE = "/api/v1/namespaces/app-1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
# For each rule: the requests that it denies, and similar ones that stay allowed.
GUARDED: dict[str, tuple[list[str], list[str]]] = {
    "serviceaccount-tokens": (
        [f"POST {CORE}/serviceaccounts/default/token"],
        [f"GET {CORE}/serviceaccounts/default", f"POST {CORE}/serviceaccounts"],
    ),
    "nodes-proxy": (
        ["GET /api/v1/nodes/n/proxy/pods", "POST /api/v1/nodes/n/proxy/run/a/b/c",
         "GET /api/v1/nodes/n/proxy", "GET /api/v1/proxy/nodes/n/exec", "OPTIONS /api/v1/nodes/n/proxy/",
         "GET /api/v1/nodes/n:10250/proxy/"],
        ["GET /api/v1/nodes/n", "GET /api/v1/nodes", f"GET {CORE}/pods/p/proxy/"],
    ),
    "csr-approval": (
        ["PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/a/approval",
         "PATCH /apis/certificates.k8s.io/v1/certificatesigningrequests/a/approval"],
        ["GET /apis/certificates.k8s.io/v1/certificatesigningrequests/a",
         "POST /apis/certificates.k8s.io/v1/certificatesigningrequests",
         "GET /apis/certificates.k8s.io/v1/certificatesigningrequests/a/approval"],
    ),
    "webhooks": (
        [f"{method} /apis/admissionregistration.k8s.io/v1/{kind}"
         for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
         for method in ("POST", "DELETE")]
        + ["PUT /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/a",
           "PATCH /apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/a"],
        ["GET /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"],
    ),
    "apiservices": (
        ["POST /apis/apiregistration.k8s.io/v1/apiservices",
         "PUT /apis/apiregistration.k8s.io/v1/apiservices/a/status",
         "DELETE /apis/apiregistration.k8s.io/v1/apiservices/v1.apps"],
        ["GET /apis/apiregistration.k8s.io/v1/apiservices"],
    ),
    "relay-namespace": (
        ["GET /api/v1/namespaces/hawse/secrets/relay",
         "GET /api/v1/namespaces/hawse/pods/relay/exec?command=sh",
         "DELETE /api/v1/namespaces/hawse", "GET /api/v1/namespaces/hawse", "GET /api/v1/secrets",
         "GET /api/v1/watch/secrets", "PATCH /apis/apps/v1/namespaces/hawse/deployments/relay"],
        ["GET /api/v1/pods", "GET /api/v1/namespaces", f"GET {CORE}/secrets",
         "GET /api/v1/namespaces/hawse-2/pods"],
    ),
    "admission-policies": (
        [f"{method} /apis/admissionregistration.k8s.io/{version}/{kind}{name}"
         for version in ("v1", "v1beta1", "v1alpha1")
         for kind in ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings",
                      "validatingadmissionpolicies", "validatingadmissionpolicybindings")
         for method, name in (("POST", ""), ("DELETE", ""), ("PUT", "/a"), ("PATCH", "/a"), ("DELETE", "/a"))]
        + ["PATCH /apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/a/status"],
        ["GET /apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies",
         "GET /apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/a"],
    ),
    "relay-roles": (
        [f"{method} {RBAC}/{kind}/hawse-relay-impersonation"
         for kind in ("clusterroles", "clusterrolebindings")
         for method in ("PUT", "PATCH", "DELETE")]
        # A request for all of them includes the relay's.
        + [f"DELETE {RBAC}/clusterroles", f"DELETE {RBAC}/clusterrolebindings",
           f"PATCH {RBAC}/namespaces/kube-system/rolebindings/hawse-relay-x"],
        [f"GET {RBAC}/clusterroles/hawse-relay-impersonation", f"PATCH {RBAC}/clusterroles/view",
         f"POST {RBAC}/clusterroles", f"DELETE {RBAC}/namespaces/app-1/rolebindings/a"],
    ),
    "pod-certificates": (
        ["POST /apis/certificates.k8s.io/v1/namespaces/app-1/podcertificaterequests",
         "PATCH /apis/certificates.k8s.io/v1beta1/namespaces/app-1/podcertificaterequests/a/status"],
        ["GET /apis/certificates.k8s.io/v1/podcertificaterequests",
         "POST /apis/certificates.k8s.io/v1/certificatesigningrequests"],
    ),
    "node-status": (
        ["PATCH /api/v1/nodes/n/status", "PUT /api/v1/nodes/n/status"],
        ["GET /api/v1/nodes/n/status", "PATCH /api/v1/nodes/n", "DELETE /api/v1/nodes/n"],
    ),
    "node-creation": (["POST /api/v1/nodes"], ["GET /api/v1/nodes", "PATCH /api/v1/nodes/n"]),
    "flow-control": (
        ["POST /apis/flowcontrol.apiserver.k8s.io/v1/flowschemas",
         "PUT /apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations/a",
         "PATCH /apis/flowcontrol.apiserver.k8s.io/v1beta3/flowschemas/a/status",
         "DELETE /apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"],
        ["GET /apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"],
    ),
    "cluster-authentication": (
        [f"{method} /api/v1/namespaces/kube-system/configmaps/{name}"
         for method in ("PUT", "PATCH", "DELETE")
         for name in ("extension-apiserver-authentication", "aws-auth")]
        + ["DELETE /api/v1/namespaces/kube-system/configmaps"],
        ["GET /api/v1/namespaces/kube-system/configmaps/aws-auth",
         "PATCH /api/v1/namespaces/kube-system/configmaps/coredns",
         f"PATCH {CORE}/configmaps/aws-auth", "POST /api/v1/namespaces/kube-system/configmaps"],
    ),
    "custom-resource-definitions": (
        ["POST /apis/apiextensions.k8s.io/v1/customresourcedefinitions",
         "PATCH /apis/apiextensions.k8s.io/v1/customresourcedefinitions/a/status"],
        ["GET /apis/apiextensions.k8s.io/v1/customresourcedefinitions"],
    ),
    "persistent-volumes": (
        ["POST /api/v1/persistentvolumes", "PATCH /api/v1/persistentvolumes/a"],
        ["GET /api/v1/persistentvolumes", "DELETE /api/v1/persistentvolumes/a",
         f"POST {CORE}/persistentvolumeclaims"],
    ),
    "rbac": (
        [f"POST {RBAC}/{where}"
         for where in ("clusterroles", "clusterrolebindings", "namespaces/a/roles",
                       "namespaces/a/rolebindings")],
        [f"GET {RBAC}/clusterroles"],
    ),
    "services-proxy": (
        [f"GET {CORE}/services/https:web:443/proxy/a", "GET /api/v1/proxy/namespaces/a/services/web/x"],
        [f"GET {CORE}/services/web"],
    ),
    "pods-proxy": ([f"GET {CORE}/pods/web/proxy/a", f"POST {CORE}/pods/web/proxy"], [f"GET {CORE}/pods/web"]),
    "ephemeral-containers": (
        [f"PATCH {CORE}/pods/web/ephemeralcontainers"],
        [f"GET {CORE}/pods/web/ephemeralcontainers", f"PATCH {CORE}/pods/web"],
    ),
    "pods-binding": (
        [f"POST {CORE}/pods/web/binding", f"POST {CORE}/bindings"],
        [f"POST {CORE}/pods/web/eviction"],
    ),
    "secrets": (
        [f"GET {CORE}/secrets", f"PUT {CORE}/secrets/a", "GET /api/v1/secrets"],
        [f"GET {CORE}/configmaps"],
    ),
}  # fmt: skip
OFF = {"rbac", "services-proxy", "pods-proxy", "ephemeral-containers", "pods-binding", "secrets",
       "custom-resource-definitions", "persistent-volumes"}  # fmt: skip


@pytest.mark.parametrize("rule", GUARDED)
def test_each_rule_of_the_guard_denies_what_it_says_while_it_is_on(rule: str) -> None:
    denied, beside = GUARDED[rule]
    on, off = shipped(on=rule), shipped(off=rule)
    for request in denied:
        decision = ask(on, request)
        assert (decision.allowed, decision.policy) == (False, GUARD), request
        # A list of all secrets includes the relay's.
        assert decision.rule == rule or (rule, decision.rule) == ("secrets", "relay-namespace"), request
        if not request.startswith("OPTIONS") and request != "GET /api/v1/secrets":
            assert ask(off, request).allowed, request
    for request in beside:
        assert ask(on, request).rule == GRANTED, request


def test_each_rule_of_the_guard_is_here() -> None:
    assert set(GUARDED) == {rule.id for rule in shipped().policies[1].rules}


def test_the_rules_that_are_on_in_a_new_hub_are_those_that_break_nothing() -> None:
    new = shipped()
    for rule, (denied, _) in GUARDED.items():
        for request in denied:
            assert ask(new, request).allowed is (rule in OFF and request != "GET /api/v1/secrets"), request


@pytest.mark.parametrize(
    "request_",
    [
        f"GET {CORE}/pods/web/exec?command=sh",
        f"POST {CORE}/pods/web/exec?command=sh",
        f"GET {CORE}/pods/web/log",
        f"DELETE {CORE}/pods",
        "GET /metrics",
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "POST /api/v1/namespaces",
    ],
)
def test_a_new_hub_lets_the_cluster_decide_the_rest(request_: str) -> None:
    decision = ask(shipped(), request_)
    assert (decision.policy, decision.rule) == (GRANTED, GRANTED)


def test_a_switch_changes_one_word_and_nothing_else() -> None:
    _, guard = first_sources()
    switched = switch(guard, "secrets", enabled=True)
    differ = [
        (before, after)
        for before, after in zip(guard.text.split("\n"), switched.text.split("\n"), strict=True)
        if before != after
    ]
    assert differ == [("      enabled: false", "      enabled: true")]
    assert switch(switched, "secrets", enabled=False) == guard
    assert switch(switched, "secrets", enabled=True) == switched


def test_a_switch_finds_a_rule_on_one_line_and_in_a_later_document() -> None:
    rule = "- {{id: {}, enabled: true, effect: deny, verbs: [get]}}"
    rules = f"{rule.format('a')}\n{rule.format('b')}"
    _, source = split("a: 1\n---\n# enabled: true\n" + policy(rules))
    assert switch(source, "b", enabled=False).text == source.text.replace(
        "b, enabled: true", "b, enabled: false"
    )


@pytest.mark.parametrize(
    "rule",
    [
        # The same words on the same line that are not the field.
        '- {id: a, effect: deny, verbs: [get], reason: "enabled: true is what it was", "enabled": true}',
        "- {id: a, effect: deny, verbs: [get], reason: x enabled:true, 'enabled' : true} # enabled: false",
        "- {id: a, effect: deny, verbs: [get], instead: 'enabled: false', enabled: true}",
        # The field on other lines than its name, with line breaks other than \n between them.
        "- id: a\n  effect: deny\n  verbs: [get]\n  enabled: # enabled: true\n    true",
        '- id: a\n  effect: deny\n  verbs: [get]\n  reason: "one\u2028\n\n    two"\n  enabled: true',
        "- {id: a, effect: deny, verbs: [get], reason: äöü€, enabled: true}",
    ],
)
def test_a_switch_changes_the_rule_and_never_what_is_written_about_it(rule: str) -> None:
    source = Source(policy(f"{rule}\n- {{id: b, effect: deny, verbs: [get], enabled: true}}"))
    switched = switch(source, "a", enabled=False)
    before, after = (policy_of(read(each), each, lambda _: "") for each in (source, switched))
    off = attrs.evolve(before.rules[0], enabled=False)
    assert after == attrs.evolve(before, rules=(off, *before.rules[1:]))
    assert len(switched.text) == len(source.text) + 1
    assert switch(switched, "a", enabled=True) == source


def test_a_switch_that_would_change_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(policy("- {id: a, effect: deny, verbs: [get], enabled: true}"), "f.yaml")
    found = _field(read(source), "a")
    assert found is not None
    for at in (found.at - 1, found.at + 1, found.at - 12, 0, -1):
        misplaced = attrs.evolve(found, at=at)
        monkeypatch.setattr("auth.policy.bundled._field", lambda document, rule, item=misplaced: item)
        with pytest.raises(PolicyError, match='rule "a" of policy "p" cannot be switched in this text'):
            switch(source, "a", enabled=False)


def test_a_switch_says_what_it_cannot_find() -> None:
    source = Source(policy("- {id: a, effect: deny, verbs: [get]}"), "f.yaml")
    with pytest.raises(PolicyError, match=r'f\.yaml:1: policy "p" has no rule "b", only a'):
        switch(source, "b", enabled=True)
    with pytest.raises(PolicyError, match='rule "a" of policy "p" has no line "enabled: true"'):
        switch(source, "a", enabled=True)
