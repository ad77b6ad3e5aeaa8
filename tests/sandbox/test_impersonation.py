from __future__ import annotations

import pytest

from sandbox import requestinfo
from sandbox.authn import User
from sandbox.impersonation import AUTHENTICATION_GROUP, impersonate
from sandbox.objects import Json
from sandbox.rbac import GROUP, Authorizer
from sandbox.server import Request
from sandbox.status import StatusError
from sandbox.storage import Store

RELAY = User("system:serviceaccount:hawse:relay")


def request(*headers: tuple[str, str]) -> Request:
    lines = tuple((name.lower().encode(), value.encode()) for name, value in headers)
    return Request("GET", "/api/v1/pods", "/api/v1/pods", {}, lines)


@pytest.fixture
def authorizer() -> Authorizer:
    """Lets the relay act as agent:x and agent:y in acme/dev, with any value of one extra and one uid."""
    store = Store()
    allowed: tuple[tuple[str, str, list[Json]], ...] = (
        ("", "users", ["agent:x", "agent:y", "system:anonymous"]),
        ("", "groups", ["acme/dev", "a,b", "system:unauthenticated"]),
        ("", "serviceaccounts", ["bot"]),
        ("authentication.k8s.io", "userextras/acme.com/p", []),
        ("authentication.k8s.io", "uids", ["u1"]),
    )
    rules: list[Json] = [
        {"apiGroups": [group], "resources": [resource], "verbs": ["impersonate"], "resourceNames": names}
        for group, resource, names in allowed
    ]
    store.collection(GROUP, "clusterroles").put({"metadata": {"name": "r"}, "rules": rules})
    subjects: list[Json] = [{"kind": "ServiceAccount", "name": "relay", "namespace": "hawse"}]
    store.collection(GROUP, "clusterrolebindings").put(
        {"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": subjects}
    )
    return Authorizer(store)


USER = ("Impersonate-User", "agent:x")
GROUP_LINE = ("Impersonate-Group", "acme/dev")


def test_nothing_asked_for_is_no_impersonation(authorizer: Authorizer) -> None:
    assert impersonate(request(), RELAY, authorizer) is None


def test_an_empty_user_alone_is_no_impersonation(authorizer: Authorizer) -> None:
    assert impersonate(request(("Impersonate-User", "")), RELAY, authorizer) is None


@pytest.mark.parametrize(
    "header",
    [
        GROUP_LINE,
        ("Impersonate-Uid", "u1"),
        ("Impersonate-Extra-Acme.com%2fp", "v"),
        ("Impersonate-Group", ""),
    ],
)
@pytest.mark.parametrize("empty_user", [False, True])
def test_the_rest_of_the_family_needs_a_user(
    authorizer: Authorizer, header: tuple[str, str], empty_user: bool
) -> None:
    headers = [header, *([("Impersonate-User", "")] if empty_user else [])]
    with pytest.raises(StatusError, match="without impersonating a user") as caught:
        impersonate(request(*headers), RELAY, authorizer)
    assert caught.value.code == 400


def test_a_whole_identity(authorizer: Authorizer) -> None:
    headers = (
        USER,
        GROUP_LINE,
        ("Impersonate-Group", "a,b"),
        ("Impersonate-Uid", "u1"),
        ("Impersonate-Extra-Acme.com%2fP", "v1"),
        ("Impersonate-Extra-Acme.com%2fP", "v2"),
    )
    assert impersonate(request(*headers), RELAY, authorizer) == User(
        "agent:x", "u1", ("acme/dev", "a,b", "system:authenticated"), {"acme.com/p": ("v1", "v2")}
    )


def test_every_value_is_checked_and_the_refused_one_named(authorizer: Authorizer) -> None:
    for headers, resource, name, group in (
        ([("Impersonate-User", "agent:z")], "users", "agent:z", ""),
        ([USER, GROUP_LINE, ("Impersonate-Group", "system:masters")], "groups", "system:masters", ""),
        ([USER, ("Impersonate-Uid", "u2")], "uids", "u2", "authentication.k8s.io"),
        ([USER, ("Impersonate-Extra-Other", "v")], "userextras", "v", "authentication.k8s.io"),
    ):
        with pytest.raises(StatusError) as caught:
            impersonate(request(*headers), RELAY, authorizer)
        shown = f"{resource}.{group}" if group else resource
        sub = "userextras/other" if resource == "userextras" else resource
        assert caught.value.code == 403
        assert caught.value.message == (
            f'{shown} "{name}" is forbidden: User "{RELAY.name}" cannot impersonate resource "{sub}" '
            f'in API group "{group}" at the cluster scope'
        )


def test_a_service_account_is_checked_as_one_and_has_its_groups(authorizer: Authorizer) -> None:
    header = ("Impersonate-User", "system:serviceaccount:a:bot")
    found = impersonate(request(header), RELAY, authorizer)
    assert found is not None
    assert found.groups == ("system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated")
    with pytest.raises(StatusError, match='serviceaccounts "other" is forbidden'):
        impersonate(request(("Impersonate-User", "system:serviceaccount:a:other")), RELAY, authorizer)


def test_who_is_not_authenticated_stays_so(authorizer: Authorizer) -> None:
    found = impersonate(request(("Impersonate-User", "system:anonymous")), RELAY, authorizer)
    assert found is not None
    assert found.groups == ("system:unauthenticated",)
    found = impersonate(request(USER, ("Impersonate-Group", "system:unauthenticated")), RELAY, authorizer)
    assert found is not None
    assert found.groups == ("system:unauthenticated",)


@pytest.fixture
def constrained() -> Authorizer:
    """Lets the relay read as agent:x in acme/dev, by constrained impersonation only."""
    store = Store()
    who = (("users", ["agent:x", "system:serviceaccount:a:b", "system:node:n"]), ("groups", ["acme/dev"]))
    rules: list[Json] = [
        {
            "apiGroups": [AUTHENTICATION_GROUP],
            "resources": [resource],
            "verbs": ["impersonate:user-info"],
            "resourceNames": [*names],
        }
        for resource, names in who
    ]
    rules += [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["impersonate-on:user-info:list"]},
        {"nonResourceURLs": ["*"], "verbs": ["impersonate-on:user-info:get"]},
    ]
    store.collection(GROUP, "clusterroles").put({"metadata": {"name": "r"}, "rules": rules})
    subjects: list[Json] = [{"kind": "ServiceAccount", "name": "relay", "namespace": "hawse"}]
    store.collection(GROUP, "clusterrolebindings").put(
        {"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": subjects}
    )
    return Authorizer(store)


@pytest.mark.parametrize(
    ("method", "path", "headers", "allowed"),
    [
        ("GET", "/api/v1/pods", [USER, GROUP_LINE], True),
        ("GET", "/version", [USER, GROUP_LINE], True),
        ("POST", "/api/v1/namespaces/a/pods", [USER, GROUP_LINE], False),
        ("GET", "/api/v1/pods", [("Impersonate-User", "agent:y")], False),
        ("GET", "/api/v1/pods", [USER, ("Impersonate-Group", "acme/ops")], False),
        # These have modes of their own.
        ("GET", "/api/v1/pods", [("Impersonate-User", "system:serviceaccount:a:b")], False),
        ("GET", "/api/v1/pods", [("Impersonate-User", "system:node:n")], False),
    ],
)
def test_the_constrained_form_asks_what_is_done_and_for_whom(
    constrained: Authorizer, method: str, path: str, headers: list[tuple[str, str]], allowed: bool
) -> None:
    info = requestinfo.parse(method, path, {})
    if allowed:
        acting = impersonate(request(*headers), RELAY, constrained, info)
        assert acting is not None
        assert acting.name == "agent:x"
    else:
        with pytest.raises(StatusError, match="cannot impersonate resource"):
            impersonate(request(*headers), RELAY, constrained, info)
    # A server without constrained impersonation refuses all of it.
    with pytest.raises(StatusError):
        impersonate(request(*headers), RELAY, constrained)
