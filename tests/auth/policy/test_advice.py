from __future__ import annotations

import gc
import weakref

import attrs
import pytest

from auth.policy.advice import MEMO_CHARACTERS_MAX, RULES_SEARCHED_MAX, Advice, advise
from auth.policy.bundled import first_sources
from auth.policy.match import Bundle, compile_bundle
from auth.requestinfo import parse
from tests.auth.policies import AGENT, CLUSTER, CONDITIONS, ask, bundle, policy

LOOK = "- {id: look, effect: allow, verbs: [read], resources: ['*', '!secrets']}"


def advice(of: Bundle, request: str) -> Advice:
    method, _, target = request.partition(" ")
    decision = ask(of, request)
    assert not decision.allowed
    return advise(of, AGENT, CLUSTER, parse(method.encode(), target.encode()), decision)


def test_a_rule_that_denies_gives_its_own_words() -> None:
    told = advice(
        compile_bundle(first_sources(), CONDITIONS), "POST /api/v1/namespaces/a/serviceaccounts/d/token"
    )
    assert told == Advice(
        rule="guard/serviceaccount-tokens",
        what="create of serviceaccounts/token d in namespace a on cluster prod",
        why="a token of a service account is an identity that Hawse neither names nor revokes",
        instead="act under your own identity, which may be given the role that the service account has",
        ask="owner@example.com",
    )
    assert told.message == (
        "create of serviceaccounts/token d in namespace a on cluster prod is denied by "
        "guard/serviceaccount-tokens: a token of a service account is an identity that Hawse neither names "
        "nor revokes; instead: act under your own identity, which may be given the role that the service "
        "account has; ask owner@example.com"
    )


def test_what_no_rule_allows_names_the_verbs_that_are_allowed() -> None:
    told = advice(bundle(policy(LOOK)), "DELETE /apis/apps/v1/namespaces/a/deployments/web")
    assert told.rule == "no-rule-allows"
    assert told.what == "delete of deployments.apps web in namespace a on cluster prod"
    assert told.why == "no rule allows it"
    assert told.instead == "you may get, list, watch deployments.apps there"


def test_the_namespaces_and_names_where_it_would_be_allowed_are_named() -> None:
    rules = "- {id: a, effect: allow, verbs: [get], resources: [pods], namespaces: ['app-*']}"
    assert advice(bundle(policy(rules)), "GET /api/v1/namespaces/kube-system/pods/x").instead == (
        "you may get pods in namespaces app-*"
    )
    rules = "- {id: a, effect: allow, verbs: [get], resources: [pods], resourceNames: [web]}"
    assert advice(bundle(policy(rules)), "GET /api/v1/namespaces/a/pods/x").instead == (
        "you may get pods of the names web"
    )


EVERYTHING_IN_APP = "- {id: a, effect: allow, verbs: ['*'], resources: ['*', '*/*'], namespaces: [app]}"


@pytest.mark.parametrize(
    ("request_line", "instead"),
    [
        ("DELETE /api/v1/namespaces/other/pods/x", "you may delete pods in namespaces app"),
        ("GET /apis/metrics.k8s.io/v1beta1/pods", "you may list pods.metrics.k8s.io in namespaces app"),
        # Cluster-scoped kinds.
        ("DELETE /api/v1/nodes/n1", ""),
        ("GET /apis/rbac.authorization.k8s.io/v1/clusterroles", ""),
        ("PATCH /api/v1/persistentvolumes/v1/status", ""),
        # In a request, a namespace object has itself as its namespace.
        ("DELETE /api/v1/namespaces/other", "you may delete namespaces of the names app"),
        ("PUT /api/v1/namespaces/other/finalize", "you may update namespaces/finalize of the names app"),
        # The scope of these is unknown.
        ("GET /apis/example.com/v1/widgets", ""),
        ("DELETE /apis/example.com/v1/widgets/w", ""),
    ],
)
def test_a_namespace_is_named_for_a_kind_that_lies_in_one(request_line: str, instead: str) -> None:
    assert advice(bundle(policy(EVERYTHING_IN_APP)), request_line).instead == instead


def test_a_namespace_is_not_said_to_lie_in_itself() -> None:
    told = advice(bundle(policy(EVERYTHING_IN_APP)), "DELETE /api/v1/namespaces/other")
    assert told.what == "delete of namespaces other on cluster prod"


def test_no_namespaces_are_offered_for_a_list_of_what_may_lie_in_none() -> None:
    rules = "- {id: no, effect: deny, verbs: [read], namespaces: [kube-system]}\n" + LOOK
    told = advice(bundle(policy(rules)), "GET /apis/example.com/v1/widgets")
    assert told.instead == ""
    assert told.what == "list of widgets.example.com without a namespace on cluster prod"
    told = advice(bundle(policy(rules)), "GET /apis/apps/v1/deployments")
    assert told.instead == "list deployments.apps in one namespace at a time, but not in kube-system"
    assert told.what == "list of deployments.apps in all namespaces on cluster prod"


def test_no_name_is_offered_where_a_request_has_none() -> None:
    rules = "- {id: a, effect: allow, verbs: ['*'], resources: [pods, pods/eviction], resourceNames: [web]}"
    made = bundle(policy(rules))
    assert advice(made, "POST /api/v1/namespaces/a/pods").instead == ""
    assert advice(made, "DELETE /api/v1/namespaces/a/pods").instead == ""
    assert advice(made, "POST /api/v1/namespaces/a/pods/x/eviction").instead == (
        "you may create pods/eviction of the names web"
    )
    # A list has a name through its field selector.
    assert advice(made, "GET /api/v1/namespaces/a/pods").instead == "you may list pods of the names web"


def test_no_list_of_a_subresource_is_offered() -> None:
    rules = "- {id: a, effect: allow, verbs: [read], resources: ['*', '*/*']}"
    told = advice(bundle(policy(rules)), "PATCH /apis/apps/v1/namespaces/a/deployments/web/scale")
    assert told.instead == "you may get deployments/scale.apps there"


def test_nothing_is_named_that_is_denied_all_the_same() -> None:
    deny = "- {id: no, effect: deny, verbs: ['*'], resources: [secrets]}"
    allow = "- {id: a, effect: allow, verbs: ['*'], resources: ['*'], namespaces: ['app-*']}"
    assert advice(bundle(policy(f"{deny}\n{allow}")), "GET /api/v1/namespaces/a/secrets/x").instead == ""
    some = "- {id: no, effect: deny, verbs: [delete], namespaces: [a]}\n" + LOOK
    told = advice(bundle(policy(some)), "DELETE /api/v1/namespaces/a/pods/x")
    assert told.instead == "you may get, list, watch pods there"


ASKS = "- {id: risky, effect: ask, verbs: [delete, patch], resources: [pods], ask: {approvers: [any]}"


def test_a_rule_that_asks_gives_its_own_words_and_no_alternatives() -> None:
    words = "reason: it is production, instead: use the staging cluster"
    told = advice(bundle(policy(f"{ASKS}, {words}}}\n{LOOK}")), "DELETE /api/v1/namespaces/a/pods/x")
    assert told.asks
    assert told.message == (
        "delete of pods x in namespace a on cluster prod needs an approval (p/risky): it is production; "
        "instead: use the staging cluster; ask owner@example.com"
    )
    told = advice(bundle(policy(f"{ASKS}}}\n{LOOK}")), "DELETE /api/v1/namespaces/a/pods/x")
    assert (told.why, told.instead) == ("", "")


@pytest.mark.parametrize(
    ("more", "instead"),
    [
        ("", "you may get, list, watch pods there; with an approval you may patch, delete pods there"),
        # The condition may not hold, and then no rule allows it.
        (
            ", when: request.reads",
            "you may get, list, watch pods there; with an approval you may patch, delete pods there",
        ),
        (", namespaces: [b]", "you may get, list, watch pods there"),
        (", resourceNames: [web]", "you may get, list, watch pods there"),
    ],
)
def test_a_denial_names_what_is_allowed_with_an_approval(more: str, instead: str) -> None:
    made = bundle(policy(f"{ASKS}{more}}}\n{LOOK}"))
    assert advice(made, "PUT /api/v1/namespaces/a/pods/x").instead == instead


def test_a_denial_names_where_an_approval_helps() -> None:
    made = bundle(policy(f"{ASKS}, namespaces: [b]}}\n{LOOK}"))
    told = advice(made, "DELETE /api/v1/namespaces/a/pods/x").instead
    assert told == (
        "you may get, list, watch pods there; with an approval you may delete pods in namespaces b"
    )


def test_what_needs_an_approval_is_not_said_to_be_allowed() -> None:
    everything = "- {id: all, effect: allow, verbs: [read, write], resources: [pods]}"
    no = "- {id: no, effect: deny, verbs: [update]}"
    told = advice(bundle(policy(f"{ASKS}}}\n{everything}\n{no}")), "PUT /api/v1/namespaces/a/pods/x")
    assert told.instead == (
        "you may get, list, watch, create, deletecollection pods there; "
        "with an approval you may patch, delete pods there"
    )


def test_a_condition_that_fails_in_a_rule_that_asks_is_explained_as_a_denial() -> None:
    made = bundle(policy(f"{ASKS}, when: 'cluster.labels.x == \"y\"'}}\n{LOOK}"))
    told = advice(made, "DELETE /api/v1/namespaces/a/pods/x")
    assert not told.asks
    assert "is denied by p/risky: the condition needs 'x', which is not there" in told.message


def test_a_read_is_never_offered_instead_of_an_exec() -> None:
    rules = "- {id: look, effect: allow, verbs: [read, get], resources: ['*', '*/*']}"
    told = advice(bundle(policy(rules)), "GET /api/v1/namespaces/a/pods/x/exec?command=id")
    assert told.instead == ""
    assert told.what == "create of pods/exec x in namespace a on cluster prod"


def test_who_may_not_list_all_namespaces_is_told_to_list_one() -> None:
    told = advice(compile_bundle(first_sources(), CONDITIONS), "GET /api/v1/secrets")
    assert told.instead == "list secrets in one namespace at a time, but not in hawse"


def test_a_failed_condition_says_how_it_failed() -> None:
    rules = "- {id: a, effect: allow, verbs: [get], resources: [pods], when: 'cluster.labels.x == \"y\"'}"
    assert advice(bundle(policy(rules)), "GET /api/v1/pods").why == "no rule allows it"
    told = advice(bundle(policy(rules)), "GET /api/v1/namespaces/a/pods/x")
    assert told.why == "the condition needs 'x', which is not there"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("{name: p}", "owner@example.com"),
        ("{name: p, owner: Ann}", "Ann"),
        ("{name: p, owner: Ann, contact: '#platform'}", "#platform"),
    ],
)
def test_who_is_asked_is_whom_the_policy_names_or_else_the_agents_owner(metadata: str, expected: str) -> None:
    text = policy(f"{LOOK}\n- {{id: no, effect: deny, verbs: [delete]}}").replace("{name: p}", metadata)
    made = bundle(text)
    assert advice(made, "DELETE /api/v1/namespaces/a/pods/x").ask == expected
    assert advice(made, "POST /api/v1/namespaces/a/pods").ask == expected


def test_a_path_about_no_resource_and_a_method_without_a_verb_are_told_too() -> None:
    made = bundle(policy(LOOK))
    assert advice(made, "GET /metrics").message.startswith(
        "get of /metrics on cluster prod is denied by no-rule"
    )
    assert "PROPFIND is no verb of Kubernetes" in advice(made, "PROPFIND /api/v1/pods").message


def searched(of: Bundle, request: str) -> tuple[Advice, bool]:
    """An advice, and whether the rules were searched for it."""
    before = set(of.explanations)
    told = advice(of, request)
    return told, set(of.explanations) != before


def test_what_is_denied_again_is_not_searched_for_again() -> None:
    made = bundle(policy(LOOK))
    first, anew = searched(made, "DELETE /api/v1/namespaces/a/pods/x")
    assert anew
    assert searched(made, "DELETE /api/v1/namespaces/a/pods/x") == (first, False)
    # No rule tests names, so another name changes only the description of the request.
    other, anew = searched(made, "DELETE /api/v1/namespaces/a/pods/y")
    assert (other, anew) == (attrs.evolve(first, what=first.what.replace("pods x", "pods y")), False)


def test_what_was_said_of_a_denial_does_not_outlive_the_bundle() -> None:
    made = bundle(policy(LOOK))
    advice(made, "DELETE /api/v1/namespaces/a/pods/x")
    rules = weakref.ref(made.scope_of(AGENT, CLUSTER))
    del made
    gc.collect()
    assert rules() is None


def test_the_denials_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auth.policy.advice.MEMO_DENIALS_MAX", 3)
    made = bundle(policy(LOOK))
    denied = [f"DELETE /api/v1/namespaces/{namespace}/pods/x" for namespace in "abcd"]
    for request in (*denied[:3], denied[0], denied[3]):
        advice(made, request)
    assert [key[1].namespace for key in made.explanations] == ["c", "a", "d"]
    advice(made, f"DELETE /api/v1/namespaces/{'e' * MEMO_CHARACTERS_MAX}/pods/x")
    assert len(made.explanations) == 3


def test_what_makes_a_difference_is_searched_for_anew() -> None:
    named = "- {id: a, effect: allow, verbs: [get], resources: [pods], resourceNames: [web]}"
    made = bundle(policy(named))
    assert searched(made, "DELETE /api/v1/namespaces/a/pods/x")[0].instead == ""
    told, anew = searched(made, "DELETE /api/v1/namespaces/a/pods/web")
    assert (told.instead, anew) == ("you may get pods there", True)
    told, anew = searched(
        bundle(policy(named.replace("[get]", "[get, patch]"))), "DELETE /api/v1/namespaces/a/pods/web"
    )
    assert (told.instead, anew) == ("you may get, patch pods there", True)


def test_what_a_policy_says_of_itself_is_not_anothers() -> None:
    # Two agents with different rules, and two with different owners.
    made = bundle(policy(LOOK, bind="{agents: [builder]}"))
    other = attrs.evolve(AGENT, name="other", owner="Bob")
    info = parse(b"DELETE", b"/api/v1/namespaces/a/pods/x")
    for agent, instead, whom in (
        (AGENT, "you may get, list, watch pods there", "owner@example.com"),
        (other, "", "Bob"),
        (attrs.evolve(other, owner="Eve"), "", "Eve"),
    ):
        told = advise(made, agent, CLUSTER, info, made.decide(agent, CLUSTER, info, 0.0))
        assert (told.instead, told.ask) == (instead, whom)


def test_among_very_many_rules_no_other_way_is_searched_for() -> None:
    rule = "- {{id: r{}, effect: allow, verbs: [get], resources: [pods], namespaces: [n{}]}}"
    rules = [rule.format(number, number) for number in range(RULES_SEARCHED_MAX + 1)]
    assert advice(bundle(policy("\n".join(rules[1:]))), "GET /api/v1/namespaces/a/pods/x").instead
    assert advice(bundle(policy("\n".join(rules))), "GET /api/v1/namespaces/a/pods/x").instead == ""
