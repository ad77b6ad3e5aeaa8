from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.policy.ask import Ask
from auth.policy.match import (
    DISCOVERY,
    MEMO_PATH_BYTES_MAX,
    NO_RULE,
    POLICIES_MAX,
    RULES_MAX,
    Bundle,
    ConditionError,
    Decision,
    Facts,
    binds,
    compile_bundle,
)
from auth.policy.subjects import mismatch, names_match
from auth.policy.text import PolicyError
from auth.request_kind import is_discovery, request_kind_of
from auth.requestinfo import RequestInfo, parse
from tests.auth.policies import AGENT, CLUSTER, CONDITIONS, Agent, Cluster, ask, bundle, policy, sources

POD = "/api/v1/namespaces/app-1/pods/web"
ALL = '- {id: all, effect: allow, verbs: ["*"], resources: ["*", "*/*"], nonResourceURLs: ["/*"]}'


def told(decision: Decision) -> tuple[bool, str]:
    return decision.allowed, decision.rule


def test_any_rule_that_denies_wins() -> None:
    rules = f"{ALL}\n- {{id: no, effect: deny, verbs: [delete]}}"
    assert told(ask(policy(rules), f"DELETE {POD}")) == (False, "no")
    assert told(ask(policy(rules), f"GET {POD}")) == (True, "all")
    later = policy("- {id: no, effect: deny, verbs: [get]}", name="z")
    assert told(ask(bundle(policy(ALL, name="a"), later), f"GET {POD}")) == (False, "no")


def test_else_the_first_rule_that_allows_in_the_order_of_names_and_rules() -> None:
    one = policy("- {id: one, effect: allow, verbs: [get], resources: [pods]}", name="b")
    two = policy("- {id: two, effect: allow, verbs: [read], resources: [pods]}\n" + ALL, name="a")
    decision = ask(bundle(one, two), f"GET {POD}")
    assert (decision.rule, decision.policy) == ("two", "a")


def test_what_no_rule_allows_is_denied() -> None:
    assert ask(policy("- {id: a, effect: allow, verbs: [get], resources: [nodes]}"), f"GET {POD}") is NO_RULE
    assert ask(compile_bundle([], CONDITIONS), f"GET {POD}") is NO_RULE


@pytest.mark.parametrize(
    "target",
    ["/api", "/api/", "/apis", "/api/v1", "/apis/apps/v1", "/openapi/v3", "/openapi/v3/apis/apps/v1?hash=A",
     "/openapi/v2", "/version", "/version/", "/apis?timeout=32s"],
)  # fmt: skip
def test_discovery_and_version_are_always_readable(target: str) -> None:
    none = bundle(policy('- {id: no, effect: deny, verbs: ["*"]}'))
    assert ask(none, f"GET {target}") is DISCOVERY
    assert ask(none, f"HEAD {target}") is DISCOVERY
    assert ask(none, f"POST {target}").allowed is False


@pytest.mark.parametrize(
    "target", ["/", "/metrics", "/healthz", "/logs/a", "/versions", "/apiz", "/debug/pprof/"]
)
def test_other_paths_about_no_resource_have_their_own_list(target: str) -> None:
    assert not ask(
        policy('- {id: a, effect: allow, verbs: ["*"], resources: ["*", "*/*"]}'), f"GET {target}"
    ).allowed
    listed = policy(f'- {{id: a, effect: allow, verbs: [get], nonResourceURLs: ["{target}"]}}')
    assert ask(listed, f"GET {target}").allowed
    assert ask(listed, f"HEAD {target}").allowed
    assert not ask(listed, f"POST {target}").allowed
    assert not ask(listed, "GET /elsewhere").allowed
    assert not ask(listed, f"GET {POD}").allowed


PODS = POD.removesuffix("/web")
REQUESTS_OF = {
    "get": {f"GET {POD}", f"HEAD {POD}", "GET /x", "HEAD /x"},
    "list": {f"GET {PODS}", f"HEAD {PODS}"},
    "watch": {f"GET {PODS}?watch=1"},
    "create": {f"POST {PODS}"},
    "update": {f"PUT {POD}"},
    "patch": {f"PATCH {POD}", "PATCH /x"},
    "delete": {f"DELETE {POD}", "DELETE /x"},
    "deletecollection": {f"DELETE {PODS}"},
    "post": {"POST /x"},
    "put": {"PUT /x"},
    "options": {"OPTIONS /x"},
}


@pytest.mark.parametrize("verb", REQUESTS_OF)
def test_each_verb_is_about_its_own_requests_and_no_others(verb: str) -> None:
    rule = policy(f"- {{id: a, effect: allow, verbs: [{verb}], resources: [pods], nonResourceURLs: [/x]}}")
    every = set().union(*REQUESTS_OF.values())
    assert {request for request in every if ask(rule, request).allowed} == REQUESTS_OF[verb]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("subresource", ["exec", "attach", "portforward"])
def test_exec_and_its_like_are_created_whatever_method_carries_them(method: str, subresource: str) -> None:
    request = f"{method} {POD}/{subresource}?command=id"
    reading = policy(f"- {{id: a, effect: allow, verbs: [read, get], resources: [pods/{subresource}]}}")
    creating = policy(f"- {{id: a, effect: allow, verbs: [create], resources: [pods/{subresource}]}}")
    denied = policy(f"{ALL}\n- {{id: no, effect: deny, verbs: [create], resources: [pods/{subresource}]}}")
    assert not ask(reading, request).allowed
    assert ask(creating, request).allowed
    assert told(ask(denied, request)) == (False, "no")


@pytest.mark.parametrize(
    ("request_", "reads"),
    [
        (f"GET {POD}", True),
        ("GET /api/v1/pods", True),
        ("GET /api/v1/pods?watch=1", True),
        ("GET /api/v1/watch/pods", True),
        (f"GET {POD}/log?follow=true", True),
        ("POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews", True),
        ("POST /apis/authentication.k8s.io/v1/selfsubjectreviews", True),
        ("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", False),
        (f"GET {POD}/exec", False),
        (f"GET {POD}/proxy/metrics", False),
        ("GET /api/v1/proxy/namespaces/a/pods/web", False),
        ("GET /api/v1/nodes/n/proxy/run", False),
        (f"PUT {POD}", False),
        ("DELETE /api/v1/namespaces/a/pods", False),
    ],
)
def test_read_is_what_changes_and_drives_nothing(request_: str, reads: bool) -> None:
    rule = '- {{id: a, effect: allow, verbs: [{}], resources: ["*", "*/*"]}}'
    assert ask(policy(rule.format("read")), request_).allowed is reads
    assert ask(policy(rule.format("write")), request_).allowed is not reads


SUBRESOURCES = [
    *("exec", "attach", "portforward", "proxy", "log"),
    *("ephemeralcontainers", "eviction", "binding", "resize"),
]


@pytest.mark.parametrize("subresource", SUBRESOURCES)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH"])
def test_pods_never_allows_a_subresource_of_pods(subresource: str, method: str) -> None:
    request = f"{method} {POD}/{subresource}"
    assert ask(policy('- {id: a, effect: allow, verbs: ["*"], resources: [pods]}'), request) is NO_RULE
    assert ask(policy('- {id: a, effect: allow, verbs: ["*"], resources: ["*"]}'), request) is NO_RULE
    assert ask(policy('- {id: a, effect: allow, verbs: ["*"], resources: [pods/*]}'), request).allowed


@pytest.mark.parametrize("method", ["OPTIONS", "get", "PROPFIND"])
def test_a_method_without_a_verb_is_allowed_by_nothing_and_denied_by_everything(method: str) -> None:
    assert not ask(policy(ALL), f"{method} {POD}").allowed
    assert ask(policy(f'{ALL}\n- {{id: no, effect: deny, verbs: ["*"]}}'), f"{method} {POD}").rule == "no"


def test_an_unknown_use_of_a_verb_stays_with_its_kind() -> None:
    # The verb of the legacy /proxy/ prefix is `proxy` for every method.
    reading = bundle(policy("- {id: a, effect: allow, verbs: [get], resources: [pods/proxy]}"))
    legacy = "/api/v1/proxy/namespaces/app-1/pods/web"
    assert ask(reading, f"GET {legacy}").allowed
    assert not ask(reading, f"DELETE {legacy}").allowed
    assert not ask(reading, f"POST {legacy}").allowed


def test_a_rule_for_names_is_about_those_and_no_list() -> None:
    named = policy("- {id: a, effect: allow, verbs: ['*'], resources: [pods], resourceNames: [web, 'db-*']}")
    pods = "/api/v1/namespaces/app-1/pods"
    assert ask(named, f"GET {pods}/web").allowed
    assert ask(named, f"GET {pods}/db-1").allowed
    assert ask(named, f"GET {pods}?fieldSelector=metadata.name%3Dweb").allowed
    assert not ask(named, f"GET {pods}/other").allowed
    assert not ask(named, f"GET {pods}").allowed
    assert not ask(named, f"POST {pods}").allowed
    assert not ask(named, f"DELETE {pods}").allowed


def test_a_denial_of_names_is_about_the_lists_that_show_them() -> None:
    denied = policy(
        f"{ALL}\n- {{id: no, effect: deny, verbs: ['*'], resources: [secrets], resourceNames: [top]}}"
    )
    secrets = "/api/v1/namespaces/app-1/secrets"
    assert not ask(denied, f"GET {secrets}/top").allowed
    assert not ask(denied, f"GET {secrets}").allowed
    assert not ask(denied, f"GET {secrets}?watch=true").allowed
    assert not ask(denied, f"DELETE {secrets}").allowed
    assert ask(denied, f"GET {secrets}/other").allowed
    assert ask(denied, f"POST {secrets}").allowed


SPELLINGS = ["db", "db:5432", ":db:5432", "http:db:", "https:db:5432", "http%3Adb%3A5432"]
SERVICES = "/api/v1/namespaces/app-1/services"


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("path", [f"{SERVICES}/%s/proxy/x", "/api/v1/proxy/namespaces/app-1/services/%s"])
def test_no_scheme_and_port_around_a_name_hide_it_from_a_denial(name: str, path: str) -> None:
    denied = policy(f"{ALL}\n- {{id: no, effect: deny, verbs: ['*'], resourceNames: [db]}}")
    assert not ask(denied, f"GET {path % name}").allowed
    assert ask(denied, f"GET {path % name.replace('db', 'web')}").allowed
    # Nor if the rule excludes the name.
    rest = policy(
        "- {id: a, effect: allow, verbs: ['*'], resources: ['services/*'], resourceNames: ['*', '!db']}"
    )
    assert not ask(rest, f"GET {path % name}").allowed
    assert ask(rest, f"GET {path % name.replace('db', 'web')}").allowed


def test_a_permission_of_a_name_is_about_just_what_it_says() -> None:
    def allowed(named: str, name: str) -> bool:
        rule = (
            f"- {{id: a, effect: allow, verbs: [get], resources: [services/proxy], resourceNames: [{named}]}}"
        )
        return ask(policy(rule), f"GET {SERVICES}/{name}/proxy/").allowed

    assert [name for name in SPELLINGS if allowed("db", name)] == ["db"]
    assert [name for name in SPELLINGS if allowed("'db:5432'", name)] == ["db:5432"]
    assert allowed("'https:db:*'", "https:db:443")
    assert allowed("'db*'", "db-1:80")
    # A star that matches a scheme or a port does not match another name.
    assert not allowed("'h*'", "https:db:443")
    assert not allowed("'*-api'", "db:web-api")
    assert allowed("'*-api'", "web-api")


def test_a_rule_for_namespaces_is_about_no_other_and_no_list_of_all() -> None:
    rule = policy(
        "- {id: a, effect: allow, verbs: [read], resources: ['*'], namespaces: ['app-*', '!app-old']}"
    )
    assert ask(rule, f"GET {POD}").allowed
    assert not ask(rule, f"GET {POD.replace('app-1', 'app-old')}").allowed
    assert not ask(rule, f"GET {POD.replace('app-1', 'kube-system')}").allowed
    assert not ask(rule, "GET /api/v1/pods").allowed
    assert not ask(rule, "GET /api/v1/nodes").allowed
    # The namespace object belongs to itself, as for the API server.
    assert ask(rule, "GET /api/v1/namespaces/app-1").allowed


@pytest.mark.parametrize("namespaces", ["['*']", "['!kube-system']"])
def test_a_permission_for_any_namespace_is_for_one_at_a_time(namespaces: str) -> None:
    rule = policy(f"- {{id: a, effect: allow, verbs: ['*'], resources: ['*'], namespaces: {namespaces}}}")
    assert ask(rule, f"GET {POD}").allowed
    # A list that would also show the excluded namespace is denied, and so are cluster-scoped objects.
    for request in ("GET /api/v1/pods", "DELETE /api/v1/pods", "GET /api/v1/nodes", "PATCH /api/v1/nodes/n"):
        assert not ask(rule, request).allowed


def test_a_denial_of_a_namespace_is_about_the_lists_of_all_that_show_it() -> None:
    denied = policy(f"{ALL}\n- {{id: no, effect: deny, verbs: ['*'], namespaces: [hawse]}}")
    assert not ask(denied, "GET /api/v1/secrets").allowed
    assert not ask(denied, "GET /apis/example.com/v1/things").allowed
    assert ask(denied, "GET /api/v1/nodes").allowed
    assert ask(denied, "GET /api/v1/namespaces").allowed
    assert not ask(denied, "GET /api/v1/namespaces/hawse").allowed
    across = denied.replace("[hawse]", "[hawse], acrossNamespaces: [secrets]")
    assert not ask(across, "GET /api/v1/secrets").allowed
    assert ask(across, "GET /api/v1/pods").allowed
    assert not ask(across, "GET /api/v1/namespaces/hawse/pods").allowed


@pytest.mark.parametrize("field", ["", "namespaces: [hawse]", "apiGroups: [apps]", "resourceNames: [top]"])
def test_a_denial_of_no_named_resource_is_about_paths_unless_it_says_what_no_path_has(field: str) -> None:
    denied = policy(f"{ALL}\n- {{id: no, effect: deny, verbs: ['*'], {field}}}")
    assert ask(denied, "GET /metrics").allowed is bool(field)


def test_a_bundle_knows_whether_it_looks_at_the_time() -> None:
    rule = "- {{id: a, effect: allow, verbs: [get], resources: [pods], when: '{}', enabled: {}}}"
    assert bundle(policy(rule.format("now.getHours() < 8", "true"))).timed
    assert not bundle(policy(rule.format("now.getHours() < 8", "false"))).timed
    assert not bundle(policy(rule.format('request.name != "now"', "true"))).timed
    assert not bundle(policy(ALL)).timed


def test_groups_tell_equal_names_apart() -> None:
    rule = policy("- {id: a, effect: allow, verbs: [read], apiGroups: [metrics.k8s.io], resources: [pods]}")
    assert ask(rule, "GET /apis/metrics.k8s.io/v1beta1/namespaces/a/pods").allowed
    assert not ask(rule, "GET /api/v1/namespaces/a/pods").allowed
    core = rule.replace("[metrics.k8s.io]", '[""]')
    assert ask(core, "GET /api/v1/namespaces/a/pods").allowed
    assert not ask(core, "GET /apis/metrics.k8s.io/v1beta1/namespaces/a/pods").allowed


@pytest.mark.parametrize(
    ("bind", "agent", "bound"),
    [
        ("{teams: [platform]}", Agent("a", teams=("platform",)), True),
        ("{teams: [platform]}", Agent("a", teams=("other", "platform")), True),
        ("{teams: [platform]}", Agent("a", teams=("other",)), False),
        ('{teams: ["*"]}', Agent("a", teams=("other",)), True),
        ('{agents: ["sre-*"]}', Agent("sre-1", teams=("other",)), True),
        ('{agents: ["sre-*"]}', Agent("dev-1", teams=("other",)), False),
        ('{teams: [platform], agents: ["sre-*"]}', Agent("sre-1", teams=("other",)), True),
    ],
)
def test_a_policy_binds_by_team_or_by_name(bind: str, agent: Agent, bound: bool) -> None:
    assert ask(policy(ALL, bind=bind), f"GET {POD}", agent=agent).allowed is bound


@pytest.mark.parametrize(
    ("selector", "about"),
    [
        ("{matchLabels: {env: prod}}", {"prod"}),
        ("{matchLabels: {env: prod, tier: gold}}", set()),
        ("{names: ['t*']}", {"test"}),
        ("{names: ['!prod']}", {"test", "bare"}),
        ("{matchExpressions: [{key: env, operator: In, values: [prod, test]}]}", {"prod", "test"}),
        ("{matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}", {"test", "bare"}),
        ("{matchExpressions: [{key: env, operator: Exists}]}", {"prod", "test"}),
        ("{matchExpressions: [{key: env, operator: DoesNotExist}]}", {"bare"}),
        ("{names: [prod], matchLabels: {env: test}}", set()),
    ],
)
def test_clusters_are_chosen_by_name_and_label(selector: str, about: set[str]) -> None:
    clusters = [Cluster("prod", {"env": "prod"}), Cluster("test", {"env": "test"}), Cluster("bare")]
    made = bundle(policy(ALL, more=f"clusters: {selector}"))
    assert {cluster.name for cluster in clusters if ask(made, f"GET {POD}", cluster=cluster).allowed} == about


def test_a_condition_that_fails_is_a_denial_whichever_way_its_rule_goes() -> None:
    failing = "when: 'cluster.labels.nothing == \"a\"'"
    for effect in ("allow", "deny", "ask, ask: {approvers: [any]}"):
        rule = f"- {{id: c, effect: {effect}, verbs: [read], resources: [pods], {failing}}}\n{ALL}"
        decision = ask(policy(rule), f"GET {POD}")
        assert told(decision) == (False, "c")
        assert "needs 'nothing', which is not there" in decision.failure


@pytest.mark.parametrize("only", ["when: 'request.name == \"top\"'", "resourceNames: [top]"])
def test_a_rule_about_some_hides_no_other_from_the_rest(only: str) -> None:
    denied = policy(f"- {{id: no, effect: deny, verbs: [get], {only}}}\n{ALL}")
    assert told(ask(denied, f"GET {POD}")) == (True, "all")
    assert told(ask(denied, f"GET {PODS}/top")) == (False, "no")
    allowed = policy(f"- {{id: some, effect: allow, verbs: [get], resources: [pods], {only}}}\n{ALL}")
    assert told(ask(allowed, f"GET {POD}")) == (True, "all")
    assert told(ask(allowed, f"GET {PODS}/top")) == (True, "some")


def test_a_condition_decides_call_by_call() -> None:
    rule = "- {id: c, effect: allow, verbs: [get], resources: [pods], when: 'now.getHours() < 12'}"
    made = bundle(policy(rule))
    assert ask(made, f"GET {POD}", now=3600.0).allowed
    assert not ask(made, f"GET {POD}", now=13 * 3600.0).allowed
    assert ask(made, f"GET {POD}", now=3600.0).allowed


def test_an_obligation_comes_with_the_rule_that_allows() -> None:
    rule = (
        "- {id: e, effect: allow, verbs: [create], resources: [pods/exec], obligations: {maxDuration: 10m}}"
    )
    assert ask(policy(f"{rule}\n{ALL}"), f"GET {POD}/exec").max_duration_s == 600
    assert ask(policy(f"{ALL}\n{rule}"), f"GET {POD}/exec").max_duration_s is None


def test_a_rule_that_is_switched_off_is_not_there() -> None:
    off = policy(f"{ALL}\n- {{id: no, enabled: false, effect: deny, verbs: ['*']}}")
    assert ask(off, f"GET {POD}").allowed
    assert not ask(off.replace("false", "true"), f"GET {POD}").allowed


def test_an_agent_that_changed_is_decided_anew() -> None:
    made = bundle(policy(ALL, bind="{teams: [platform]}"))
    assert ask(made, f"GET {POD}", agent=Agent(teams=("platform",))).allowed
    assert not ask(made, f"GET {POD}", agent=Agent(teams=("other",))).allowed
    assert ask(made, f"GET {POD}", agent=Agent(teams=("platform",))).allowed


def test_a_cluster_that_changed_is_decided_anew() -> None:
    made = bundle(policy(ALL, more="clusters: {matchLabels: {env: test}}"))
    for env in ("test", "prod", "test"):
        cluster = Cluster("c", {"env": env})
        assert bool(made.scope_of(AGENT, cluster).rules) is (env == "test")
        assert ask(made, f"GET {POD}", cluster=cluster).allowed is (env == "test")
    for env in ("prod", "test"):
        cluster = Cluster("c", {"env": env})
        assert ask(made, f"GET {POD}", cluster=cluster).allowed is (env == "test")
        assert bool(made.scope_of(AGENT, cluster).rules) is (env == "test")


def test_a_hash_tells_what_policies_say_and_not_how_they_are_written() -> None:
    plain = bundle(policy(ALL), version=7)
    commented = bundle("# a comment\n" + policy(ALL).replace("{id: all, ", "{  id:   all, "), version=8)
    other = bundle(policy(ALL.replace("*/*", "pods/log")))
    assert plain.hash == commented.hash
    assert plain.hash != other.hash
    assert (plain.id, commented.id) == (f"7-{plain.hash}", f"8-{plain.hash}")


def test_the_order_of_files_means_nothing() -> None:
    one, two = policy(ALL, name="one"), policy(ALL, name="two")
    assert bundle(one, two).hash == bundle(two, one).hash


def test_a_hub_has_bounds() -> None:
    many = [policy(ALL, name=f"p{number}") for number in range(POLICIES_MAX + 1)]
    with pytest.raises(PolicyError, match=f"{POLICIES_MAX + 1} policies exceed the {POLICIES_MAX} of a hub"):
        compile_bundle(sources(*many), CONDITIONS)
    big = "\n".join(f"- {{id: r{number}, effect: deny, verbs: [get]}}" for number in range(900))
    with pytest.raises(PolicyError, match=f"4500 rules exceed the {RULES_MAX} of a hub"):
        compile_bundle(sources(*(policy(big, name=f"p{number}") for number in range(5))), CONDITIONS)


# -- the memo of kinds, compared with the rules evaluated one by one

VERBS = ["get", "list", "create", "delete", "read", "write", "*"]
RESOURCES = ["pods", "secrets", "pods/log", "pods/exec", "pods/*", "*", "*/*", "!secrets", "!pods"]
WHENS = [
    'request.name == "web"',
    'cluster.labels.env == "prod"',
    'cluster.labels.none == "x"',
    "request.reads",
]


def _some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


@st.composite
def rules(draw: st.DrawFn) -> str:
    lines = []
    for number in range(draw(st.integers(1, 6))):
        effect = draw(st.sampled_from(["allow", "allow", "ask", "deny"]))
        fields = [f"id: r{number}", f"effect: {effect}", f"verbs: {draw(_some(VERBS))}"]
        if effect == "ask":
            fields.append("ask: {approvers: [any]}")
        fields.append(f"resources: {draw(_some(RESOURCES))}")
        if draw(st.booleans()):
            fields.append(f"resourceNames: {draw(_some(['web', 'db-*', '!db-1']))}")
        if draw(st.booleans()):
            fields.append(f"namespaces: {draw(_some(['app-*', 'kube-system', '!app-2']))}")
        if draw(st.booleans()):
            fields.append(f"apiGroups: {draw(_some(['', 'apps', '!apps']))}")
        if draw(st.booleans()):
            fields.append(f"when: '{draw(st.sampled_from(WHENS))}'")
        lines.append(f"- {{{', '.join(fields)}}}")
    return "\n".join(lines)


REQUESTS = st.builds(
    "{} {}{}/{}{}{}{}".format,
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"]),
    st.sampled_from(["/api/v1", "/apis/apps/v1"]),
    st.sampled_from(["", "/namespaces/app-1", "/namespaces/app-2", "/namespaces/kube-system"]),
    st.sampled_from(["pods", "secrets"]),
    st.sampled_from(["", "/web", "/db-1", "/db-2"]),
    st.sampled_from(["", "/log", "/exec"]),
    st.sampled_from(["", "?dryRun=All"]),
)


def skips(of: Bundle, ask: Ask, agent: Agent, cluster: Cluster, info: RequestInfo) -> bool:
    """Whether a rule that asks leaves a dry run to the other rules."""
    if not ask.trusts(info):
        return False
    read = attrs.evolve(info, method="GET", verb="get", query=b"")
    return info.verb == "create" or plainly(of, agent, cluster, read)[0] == "allow"


def plainly(of: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo) -> tuple[str, str]:
    """The rules' decision, evaluated one by one without the memo."""
    if is_discovery(info):
        return "allow", "discovery"
    kind = request_kind_of(info)
    for effect in ("deny", "ask", "allow"):
        for each in of.policies:
            for rule in each.rules:
                if not binds(each, agent, cluster) or rule.effect != effect:
                    continue
                if effect != "deny" and not kind.verb:
                    continue
                if rule.ask is not None and skips(of, rule.ask, agent, cluster, info):
                    continue
                if mismatch(rule, kind) or not names_match(rule, info.name, kind):
                    continue
                try:
                    if rule.when and not CONDITIONS.compile(rule.when)(
                        Facts(kind, info, agent, cluster, 0.0)
                    ):
                        continue
                except ConditionError:
                    return "deny", rule.id
                return effect, rule.id
    return "deny", "no-rule-allows"


@given(rules(), rules(), st.lists(REQUESTS, min_size=1, max_size=12))
def test_what_is_remembered_decides_as_the_rules_do(one: str, two: str, requests: list[str]) -> None:
    made = bundle(policy(one, name="one"), policy(two, name="two", bind="{teams: [sre]}"))
    agents = [AGENT, Agent("other", teams=("sre", "platform"))]
    for request in requests:
        method, _, target = request.partition(" ")
        info = parse(method.encode(), target.encode())
        for agent in agents:
            decision = made.decide(agent, CLUSTER, info, 0.0)
            assert (decision.effect, decision.rule) == plainly(made, agent, CLUSTER, info)
            assert (decision.ask is not None) is (decision.effect == "ask")


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auth.policy.match.MEMO_KINDS_MAX", 10)
    monkeypatch.setattr("auth.policy.match.MEMO_PAIRS_MAX", 3)
    made = bundle(policy(ALL))
    for number in range(40):
        agent = attrs.evolve(AGENT, name=f"a{number % 7}")
        assert ask(made, f"GET /api/v1/namespaces/n{number}/pods", agent=agent).allowed
        assert len(made._pairs) <= 3
    for number in range(40):
        assert ask(made, f"GET /api/v1/namespaces/n{number}/pods").allowed
        assert len(made._rules_by_kind) <= 10
    made = bundle(policy(ALL))
    for number in range(MEMO_PATH_BYTES_MAX - 1, MEMO_PATH_BYTES_MAX + 9):
        assert ask(made, f"GET /{'y' * number}").allowed
    assert len(made._rules_by_kind) == 1
