from __future__ import annotations

import pytest

from sandbox.authn import User
from sandbox.objects import Object
from sandbox.rbac import GROUP, Attributes, Authorizer, rule_allows
from sandbox.storage import Store

JANE = User("jane", groups=("dev",))


def asked(verb: str = "get", resource: str = "pods", user: User = JANE, **more: str) -> Attributes:
    return Attributes(user=user, verb=verb, resource=resource, **more)


def rule(**fields: list[str]) -> Object:
    base: Object = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    base.update({key: [*value] for key, value in fields.items()})
    return base


@pytest.mark.parametrize(
    ("held", "wanted", "allowed"),
    [
        (rule(), asked(), True),
        (rule(), asked("list"), False),
        (rule(verbs=["*"]), asked("list"), True),
        (rule(), asked(group="apps"), False),
        (rule(apiGroups=["*"]), asked(group="apps"), True),
        (rule(), asked(subresource="log"), False),
        (rule(resources=["pods/log"]), asked(subresource="log"), True),
        (rule(resources=["pods/log"]), asked(), False),
        (rule(resources=["*/log"]), asked(subresource="log"), True),
        (rule(resources=["*"]), asked(subresource="log"), True),
        (rule(resourceNames=["p"]), asked(name="p"), True),
        (rule(resourceNames=["p"]), asked(name="q"), False),
        (rule(resourceNames=["p"]), asked("get"), False),
        (rule(), asked(resource="", path="/healthz"), False),
        ({"verbs": ["get"], "nonResourceURLs": ["/api/*"]}, asked(resource="", path="/api/v1"), True),
        ({"verbs": ["get"], "nonResourceURLs": ["/api/*"]}, asked(resource="", path="/api"), False),
        ({"verbs": ["get"], "nonResourceURLs": ["*"]}, asked(resource="", path="/x"), True),
    ],
)
def test_a_rule(held: Object, wanted: Attributes, allowed: bool) -> None:
    assert rule_allows(held, wanted) is allowed


@pytest.fixture
def store() -> Store:
    store = Store()

    def put(resource: str, name: str, value: Object, namespace: str = "") -> None:
        metadata: Object = {"name": name, **({"namespace": namespace} if namespace else {})}
        store.collection(GROUP, resource).put({"metadata": metadata, **value})

    put("clusterroles", "reader", {"rules": [rule()]})
    put("roles", "writer", {"rules": [rule(verbs=["create"])]}, "a")
    in_a: Object = {"kind": "ClusterRole", "name": "reader"}
    put("rolebindings", "jane", {"roleRef": in_a, "subjects": [{"kind": "User", "name": "jane"}]}, "a")
    own: Object = {"kind": "Role", "name": "writer"}
    put("rolebindings", "dev", {"roleRef": own, "subjects": [{"kind": "Group", "name": "dev"}]}, "a")
    bot: Object = {"kind": "ServiceAccount", "name": "bot", "namespace": "b"}
    put("clusterrolebindings", "bot", {"roleRef": in_a, "subjects": [bot]})
    missing: Object = {"kind": "ClusterRole", "name": "gone"}
    put("clusterrolebindings", "lost", {"roleRef": missing, "subjects": [{"kind": "User", "name": "lost"}]})
    return store


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        (asked(namespace="a"), True),
        (asked(namespace="b"), False),
        (asked(), False),
        (asked("create", namespace="a"), True),
        (asked(user=User("system:serviceaccount:b:bot"), namespace="c"), True),
        (asked(user=User("system:serviceaccount:c:bot"), namespace="c"), False),
        (asked("delete", user=User("root", groups=("system:masters",))), True),
    ],
)
def test_bindings(store: Store, wanted: Attributes, allowed: bool) -> None:
    assert (Authorizer(store).refusal(wanted) is None) is allowed


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            asked("list", namespace="b"),
            'pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "b"',
        ),
        (
            asked("create", name="p", subresource="exec", namespace="b"),
            'pods "p" is forbidden: User "jane" cannot create resource "pods/exec" in API group "" '
            'in the namespace "b"',
        ),
        (
            asked("list", "deployments", group="apps"),
            'deployments.apps is forbidden: User "jane" cannot list resource "deployments" in API group '
            '"apps" at the cluster scope',
        ),
        (asked("get", "", path="/<x>"), 'forbidden: User "jane" cannot get path "/&lt;x&gt;"'),
        (
            asked("list", user=User("lost")),
            'pods is forbidden: User "lost" cannot list resource "pods" in API group "" at the cluster '
            'scope: RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found',
        ),
    ],
)
def test_a_refusal_is_in_the_servers_words(store: Store, wanted: Attributes, message: str) -> None:
    refusal = Authorizer(store).refusal(wanted)
    assert refusal is not None
    assert (refusal.code, refusal.message) == (403, message)
