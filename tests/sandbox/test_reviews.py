from __future__ import annotations

import pytest

from sandbox.authn import Authenticator, User, service_account_user
from sandbox.objects import Json, Object, integer, items, mapping, strings, text
from sandbox.rbac import GROUP, Authorizer
from sandbox.reviews import Reviews
from sandbox.server import Request
from sandbox.status import StatusError
from sandbox.storage import Store

JANE = User("jane", groups=("dev",))


@pytest.fixture
def store() -> Store:
    """Lets jane read pods in namespace a."""
    store = Store()
    rules: list[Json] = [
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"]},
        {"verbs": ["get"], "nonResourceURLs": ["/version"]},
    ]
    store.collection(GROUP, "clusterroles").put({"metadata": {"name": "r"}, "rules": rules})
    subjects: list[Json] = [{"kind": "User", "name": "jane"}]
    reference: Object = {"kind": "ClusterRole", "name": "r"}
    metadata: Object = {"name": "b", "namespace": "a"}
    store.collection(GROUP, "rolebindings").put(
        {"metadata": metadata, "roleRef": reference, "subjects": subjects}
    )
    return store


@pytest.fixture
def authenticator(store: Store) -> Authenticator:
    return Authenticator(store.collection("", "serviceaccounts"))


@pytest.fixture
def reviews(store: Store, authenticator: Authenticator) -> Reviews:
    return Reviews(Authorizer(store), authenticator)


def pod(name: str = "p", namespace: str = "a") -> Object:
    return {"resourceAttributes": {"verb": "get", "resource": "pods", "name": name, "namespace": namespace}}


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (pod(), True),
        (pod("q"), False),
        (pod(namespace="b"), False),
        ({"nonResourceAttributes": {"verb": "get", "path": "/version"}}, False),
    ],
)
def test_may_i(reviews: Reviews, spec: Object, allowed: bool) -> None:
    review: Object = {"kind": "SelfSubjectAccessReview", "spec": spec}
    assert reviews.answer(review, JANE, "")["status"] == {"allowed": allowed}


def test_may_somebody_else(reviews: Reviews) -> None:
    spec: Object = {**pod(), "user": "jane"}
    assert reviews.answer({"kind": "SubjectAccessReview", "spec": spec}, User("x"), "")["status"] == {
        "allowed": True
    }
    local: Object = {"kind": "LocalSubjectAccessReview", "spec": spec}
    assert reviews.answer(local, User("x"), "a")["status"] == {"allowed": True}
    with pytest.raises(StatusError, match="must match namespace"):
        reviews.answer(local, User("x"), "b")


def test_all_that_i_may(reviews: Reviews) -> None:
    review: Object = {"kind": "SelfSubjectRulesReview", "spec": {"namespace": "a"}}
    status = mapping(reviews.answer(review, JANE, ""), "status")
    assert [strings(rule, "resourceNames") for rule in items(status, "resourceRules")] == [["p"]]
    assert items(status, "nonResourceRules") == [{"verbs": ["get"], "nonResourceURLs": ["/version"]}]
    assert status["incomplete"] is False
    with pytest.raises(StatusError, match="no namespace on request"):
        reviews.answer({"kind": "SelfSubjectRulesReview"}, JANE, "")


def test_a_token_is_that_of_the_account(reviews: Reviews, authenticator: Authenticator, store: Store) -> None:
    account: Object = {"metadata": {"namespace": "a", "name": "bot", "uid": "u"}}
    store.collection("", "serviceaccounts").put(account)
    answer = reviews.issue_token({}, account)
    assert integer(answer, "spec", "expirationSeconds") == 3600
    header = (b"authorization", f"Bearer {text(answer, 'status', 'token')}".encode())
    found = authenticator.authenticate(Request("GET", "/", "/", {}, (header,)))
    assert (found.name, found.groups) == (
        "system:serviceaccount:a:bot",
        service_account_user("a", "bot").groups,
    )


@pytest.mark.parametrize(("seconds", "why"), [(599, "less than 10 minutes"), (1 << 33, "larger than 2\\^32")])
def test_a_tokens_life_has_bounds(reviews: Reviews, seconds: int, why: str) -> None:
    with pytest.raises(StatusError, match=why) as caught:
        reviews.issue_token({"spec": {"expirationSeconds": seconds}}, {"metadata": {"name": "x"}})
    assert caught.value.code == 422
