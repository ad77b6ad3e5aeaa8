"""Authentication by bearer tokens, of the administrator and of service accounts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import time
import uuid
from collections.abc import Mapping

import attrs

from sandbox.objects import Json, Object, text
from sandbox.server import Request
from sandbox.status import unauthorized
from sandbox.storage import Collection

AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
MASTERS = "system:masters"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
# A browser cannot set Authorization on a WebSocket: the token is sent as one of the subprotocols.
WEBSOCKET_BEARER = "base64url.bearer.authorization.k8s.io."


@attrs.frozen
class User:
    """An identity, authenticated or impersonated."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)

    def to_json(self) -> Object:
        """Return the v1 UserInfo."""
        body: Object = {"username": self.name}
        if self.uid:
            body["uid"] = self.uid
        if self.groups:
            body["groups"] = [*self.groups]
        if self.extra:
            extra: dict[str, Json] = {key: [*values] for key, values in self.extra.items()}
            body["extra"] = extra
        return body


def split_service_account(name: str) -> tuple[str, str] | None:
    """Return namespace and name from a service account's user name."""
    if not name.startswith(SERVICE_ACCOUNT_PREFIX):
        return None
    namespace, colon, account = name.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
    return (namespace, account) if colon and namespace and account and ":" not in account else None


def service_account_groups(namespace: str) -> tuple[str, ...]:
    """Return the groups of each service account of a namespace."""
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


def service_account_user(namespace: str, name: str, uid: str = "") -> User:
    """Return the identity of a service account that authenticates with its token."""
    groups = (*service_account_groups(namespace), AUTHENTICATED)
    extra = {"authentication.kubernetes.io/credential-id": (f"JTI={uuid.uuid4()}",)} if uid else {}
    return User(f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}", uid, groups, extra)


@attrs.frozen
class _Credential:
    user: User
    expires_at: float


class Authenticator:
    """The valid tokens, stored as digests."""

    def __init__(self, accounts: Collection) -> None:
        self._accounts = accounts
        self._credentials: dict[bytes, _Credential] = {}

    def issue(self, user: User, *, lifetime_s: float = float("inf")) -> str:
        """Return a new token for a user."""
        token = secrets.token_urlsafe(32)
        self._credentials[_digest(token)] = _Credential(user, time.time() + lifetime_s)
        return token

    def authenticate(self, request: Request) -> User:
        """Return the user who sent a request; raises StatusError 401."""
        credential = self._credentials.get(_digest(_bearer(request)))
        if credential is None or credential.expires_at < time.time():
            raise unauthorized()
        user = credential.user
        account = split_service_account(user.name)
        if account and user.uid:
            # A token becomes invalid with its account, even if a new account gets the same name.
            item = self._accounts.get(*account)
            if item is None or text(item.value, "metadata", "uid") != user.uid:
                raise unauthorized()
        return user


def _bearer(request: Request) -> str:
    scheme, _, token = request.header(b"authorization").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for line in request.header_values(b"sec-websocket-protocol"):
        for protocol in line.split(","):
            if protocol.strip().startswith(WEBSOCKET_BEARER):
                return _decoded(protocol.strip().removeprefix(WEBSOCKET_BEARER))
    return ""


def _decoded(encoded: str) -> str:
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
