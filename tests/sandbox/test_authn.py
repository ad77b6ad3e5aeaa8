from __future__ import annotations

import base64

import pytest

from sandbox.authn import Authenticator, User, service_account_user, split_service_account
from sandbox.server import Request
from sandbox.status import StatusError
from sandbox.storage import Collection, Store


def request(*headers: tuple[bytes, bytes]) -> Request:
    return Request("GET", "/", "/", {}, headers)


def bearer(token: str) -> Request:
    return request((b"authorization", f"Bearer {token}".encode()))


@pytest.fixture
def accounts() -> Collection:
    collection = Store().collection("", "serviceaccounts")
    collection.put({"metadata": {"namespace": "a", "name": "bot", "uid": "u1"}})
    return collection


def test_a_token_is_its_users(accounts: Collection) -> None:
    authenticator = Authenticator(accounts)
    jane, joe = User("jane"), User("joe")
    tokens = [authenticator.issue(jane), authenticator.issue(joe)]
    assert [authenticator.authenticate(bearer(token)) for token in tokens] == [jane, joe]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b"Bearer nonsense"),),
        ((b"authorization", b"Bearer \xff"),),
        ((b"authorization", b"Basic abc"),),
        ((b"authorization", b"Bearer"),),
        ((b"sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.%%%"),),
    ],
)
def test_everybody_else_is_nobody(accounts: Collection, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(StatusError) as caught:
        Authenticator(accounts).authenticate(request(*headers))
    assert (caught.value.code, caught.value.message) == (401, "Unauthorized")


def test_a_token_ends(accounts: Collection) -> None:
    authenticator = Authenticator(accounts)
    token = authenticator.issue(User("jane"), lifetime_s=-1)
    with pytest.raises(StatusError):
        authenticator.authenticate(bearer(token))


def test_a_token_dies_with_its_account(accounts: Collection) -> None:
    authenticator = Authenticator(accounts)
    user = service_account_user("a", "bot", "u1")
    token = authenticator.issue(user)
    assert authenticator.authenticate(bearer(token)) == user
    accounts.put({"metadata": {"namespace": "a", "name": "bot", "uid": "another"}})
    with pytest.raises(StatusError):
        authenticator.authenticate(bearer(token))


def test_a_websockets_token_may_be_a_subprotocol(accounts: Collection) -> None:
    authenticator = Authenticator(accounts)
    token = authenticator.issue(User("jane"))
    encoded = base64.urlsafe_b64encode(token.encode()).rstrip(b"=")
    line = b"v5.channel.k8s.io, base64url.bearer.authorization.k8s.io." + encoded
    assert authenticator.authenticate(request((b"sec-websocket-protocol", line))).name == "jane"


@pytest.mark.parametrize(
    ("name", "account"),
    [
        ("system:serviceaccount:a:b", ("a", "b")),
        ("system:serviceaccount:a", None),
        ("system:serviceaccount:a:", None),
        ("system:serviceaccount:a:b:c", None),
        ("agent:a", None),
    ],
)
def test_the_names_of_service_accounts(name: str, account: tuple[str, str] | None) -> None:
    assert split_service_account(name) == account


def test_a_user_as_the_api_shows_it() -> None:
    user = User("u", "1", ("g",), {"k": ("v", "w")})
    assert user.to_json() == {"username": "u", "uid": "1", "groups": ["g"], "extra": {"k": ["v", "w"]}}
    assert User("u").to_json() == {"username": "u"}
