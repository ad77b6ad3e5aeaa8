from __future__ import annotations

from pathlib import Path

import pytest

import auth.policy.policies
from auth.policy.document import DURATION_S_MAX, policy_of
from auth.policy.match import compile_bundle
from auth.policy.rules import Policy
from auth.policy.text import PolicyError, Source, read
from tests.auth.policies import CONDITIONS, policy, sources

RULE = "- {id: r, effect: allow, verbs: [read], resources: [pods]}"


def made(text: str) -> Policy:
    (source,) = sources(text)
    return policy_of(read(source), source, CONDITIONS.check)


def faults(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        compile_bundle([Source(text, "f.yaml")], CONDITIONS)
    return str(caught.value).splitlines()


def test_every_field_is_read() -> None:
    read_policy = made(
        """
        apiVersion: hawse.dev/v1
        kind: Policy
        metadata: {name: p, owner: Ann, contact: "#platform", description: what it is for}
        spec:
          bind: {teams: [platform], agents: ["sre-*"]}
          clusters: {names: ["prod-*"], matchLabels: {env: prod}}
          rules:
            - id: r
              effect: allow
              enabled: true
              verbs: [create]
              apiGroups: [""]
              resources: [pods/exec]
              resourceNames: [web]
              namespaces: ["app-*"]
              when: agent.name != "x"
              obligations: {maxDuration: 1h30m}
        """
    )
    (rule,) = read_policy.rules
    assert (read_policy.name, read_policy.ask) == ("p", "#platform")
    assert rule.max_duration_s == 5400
    assert rule.allows
    assert rule.when == 'agent.name != "x"'
    assert (rule.line, rule.enabled) == (8 + 1, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (policy(RULE.replace("verbs", "verb")), 'there is no field "verb" here'),
        (policy(RULE.replace("verbs", "verb")), "did you mean verbs?"),
        (policy(RULE.replace("verbs", "verb")), "the field verbs is missing"),
        (policy(RULE.replace("[read]", "[reed]")), '"reed" is no verb: one of read, write, *'),
        (policy(RULE.replace("[read]", "[bind]")), '"bind" is a verb that RBAC checks within other requests'),
        (policy(RULE.replace("[read]", "[post]")), "post are verbs of nonResourceURLs alone"),
        (policy(RULE.replace("[read]", "[]")), "a list of 0: it must have 1 to 256 entries"),
        (policy(RULE.replace("[read]", "read")), "must be a list"),
        (policy(RULE.replace("allow", "permit")), '"permit" is not one of allow, deny'),
        (policy(RULE.replace("id: r", "id: R_1")), "rule id 'R_1' is not valid"),
        (policy(RULE.replace("[pods]", "[pods//log]")), '"pods//log" is not a resource'),
        (policy(RULE.replace("[pods]", "[Pods]")), '"Pods" is not a resource'),
        (policy(RULE.replace("[pods]", "[pods, pods]")), '"pods" is listed twice'),
        (policy(RULE.replace(", resources: [pods]", "")), "a rule that allows must name what it allows"),
        (policy(RULE.replace("pods]", "pods], namespaces: [a/b]")), '"a/b" is not a name'),
        (policy(RULE.replace("pods]", "pods], apiGroups: [Apps]")), '"Apps" is not an API group'),
        (policy(RULE.replace("pods]", "pods], enabled: on")), '"on" is not a flag: use true or false'),
        (policy(RULE.replace("pods]", 'pods], enabled: "true"')), '"true" is not a flag: use true or false'),
        (policy(RULE.replace("pods]", "pods], reason: why")), "belongs to a rule that denies"),
        (policy(RULE.replace("pods]", "pods], acrossNamespaces: [pods]")), "belongs to a rule that denies"),
        (policy(RULE.replace("pods]", "pods], when: 'verb == 1'")), 'there is no "verb" in a condition'),
        (policy(RULE.replace("pods]", "pods], when: '1 +'")), "not valid CEL"),
        (policy(RULE.replace("pods]", "pods], nonResourceURLs: [metrics]")), '"metrics" is not a path'),
        (policy(RULE.replace("pods]", "pods], nonResourceURLs: ['/a*b']")), "is not a path"),
        (policy(RULE.replace("pods]", "pods], obligations: {maxDuration: 10}")), '"10" is not a duration'),
        (policy(RULE.replace("pods]", "pods], obligations: {maxDuration: 0s}")), '"0s" is not a duration'),
        (policy(RULE.replace("pods]", "pods], obligations: {maxDuration: 25h}")), '"25h" is not a duration'),
        (policy(RULE.replace("pods]", "pods], obligations: {record: true}")), 'there is no field "record"'),
        (policy(RULE.replace("allow", "deny").replace("pods]", "pods], obligations: {maxDuration: 1h}")),
         "a denied request has no duration"),
        (policy(f"{RULE}\n{RULE}"), 'the id "r" is taken by the rule in line 6'),
        (policy(RULE, bind="{}"), "binds no agent"),
        (policy(RULE, bind="{team: [a]}"), "did you mean teams?"),
        (policy(RULE, bind="{teams: [A]}"), '"A" is not a name of a-z'),
        (policy(RULE, more="clusters: {matchLabels: {env: [prod]}}"), "is not a label value"),
        (policy(RULE, more="clusters: {matchLabels: {'a b': prod}}"), "is not a label"),
        (policy(RULE, more="clusters: {matchExpressions: [{key: env, operator: In}]}"), "In needs values"),
        (policy(RULE, more="clusters: {matchExpressions: [{key: env, operator: Is}]}"), '"Is" is not one of'),
        (policy(RULE, name="A"), "policy name 'A' is not valid"),
        (policy(RULE).replace("kind: Policy", "kind: Policies"), '"Policies" is not one of Policy'),
        (policy(RULE).replace("kind: Policy", "apiVersion: v1\nkind: Policy"),
         '"v1" is not one of hawse.dev/v1'),
        (policy(RULE).replace("spec:", "status: {}\nspec:"), 'there is no field "status" here'),
        (policy(RULE.replace("[pods]", "")), "is empty: leave the field out"),
        ("[]", "must be a mapping of fields"),
        ("", "must be a mapping of fields"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(text: str, message: str) -> None:
    told = faults(text)
    assert any(message in fault for fault in told), told
    assert all(fault.startswith("f.yaml:") for fault in told)


def test_every_fault_is_told_at_once_with_line_and_path() -> None:
    told = faults(
        policy("- {id: a, effect: allow, verbs: [reed], resource: [pods]}\n- {id: B, effect: deny}\n")
    )
    assert [fault.partition(": ")[0] for fault in told] == [
        "f.yaml:6",
        "f.yaml:6",
        "f.yaml:6",
        *["f.yaml:7"] * 2,
    ]
    assert "spec.rules[0].verbs[0]" in told[2]


def test_one_bad_document_refuses_all_of_them() -> None:
    good, bad = sources(policy(RULE, name="good"), policy("- {id: r}", name="bad"))
    with pytest.raises(PolicyError):
        compile_bundle([good, bad], CONDITIONS)


def test_a_name_stands_for_one_policy() -> None:
    with pytest.raises(PolicyError, match='the policy "p" stands in line 1 already'):
        compile_bundle(sources(policy(RULE), policy(RULE)), CONDITIONS)


def test_a_duration_may_last_a_day() -> None:
    rule = RULE.replace("pods]", "pods], obligations: {maxDuration: 24h}")
    assert made(policy(rule)).rules[0].max_duration_s == DURATION_S_MAX


def test_what_hawse_ships_is_right_and_says_which_rules_are_on() -> None:
    folder = Path(auth.policy.policies.__path__[0])
    granted, guard = (made((folder / name).read_text()) for name in ("granted.yaml", "guard.yaml"))
    assert [rule.id for rule in granted.rules] == ["granted"]
    assert {rule.id: rule.enabled for rule in guard.rules} == {
        "serviceaccount-tokens": True,
        "nodes-proxy": True,
        "csr-approval": True,
        "webhooks": True,
        "apiservices": True,
        "admission-policies": True,
        "relay-roles": True,
        "pod-certificates": True,
        "node-status": True,
        "node-creation": True,
        "flow-control": True,
        "cluster-authentication": True,
        "relay-namespace": True,
        "rbac": False,
        "services-proxy": False,
        "pods-proxy": False,
        "ephemeral-containers": False,
        "pods-binding": False,
        "secrets": False,
        "custom-resource-definitions": False,
        "persistent-volumes": False,
    }
    assert all(rule.reason for rule in guard.rules)
