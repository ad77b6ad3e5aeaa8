"""Impersonation by `Impersonate-*` headers; each header value needs a permission of its own.

These are the API server's rules, of which two are surprising. An empty `Impersonate-User` alone is not
impersonation: the request continues as its sender. Other headers of the family without a user are a bad
request.

Constrained impersonation (KEP-5284, enabled in a 1.36 server) is checked first. It needs two permissions: for
this request under another identity (`impersonate-on:user-info:<verb>`), and for this user
(`impersonate:user-info`). If it does not allow the request, the legacy verb `impersonate` decides, and its
error message is returned.
"""

from __future__ import annotations

from urllib.parse import unquote

import attrs

from sandbox.authn import (
    AUTHENTICATED,
    UNAUTHENTICATED,
    User,
    service_account_groups,
    split_service_account,
)
from sandbox.rbac import Attributes, Authorizer
from sandbox.requestinfo import RequestInfo
from sandbox.server import Request
from sandbox.status import bad_request

ANONYMOUS = "system:anonymous"
AUTHENTICATION_GROUP = "authentication.k8s.io"
_EXTRA = b"impersonate-extra-"


@attrs.frozen
class Impersonation:
    """The requested impersonation."""

    user: str
    groups: tuple[str, ...]
    uid: str
    extra: tuple[tuple[str, str], ...]


def requested_impersonation(request: Request) -> Impersonation | None:
    """Read the headers; None without impersonation. Raises StatusError."""
    user = request.header(b"impersonate-user")
    groups = tuple(request.header_values(b"impersonate-group"))
    uid = request.header(b"impersonate-uid")
    extra = tuple(
        # An undecodable name is recorded unchanged.
        (unquote(name[len(_EXTRA) :].decode("latin-1")), value.decode("latin-1"))
        for name, value in request.headers
        if name.startswith(_EXTRA)
    )
    if user:
        return Impersonation(user, groups, uid, extra)
    if groups or uid or extra:
        attributes = [*groups, *(f"{key}={value}" for key, value in extra), *([uid] if uid else [])]
        raise bad_request(f"requested [{' '.join(attributes)}] without impersonating a user")
    return None


def impersonate(
    request: Request, requestor: User, authorizer: Authorizer, info: RequestInfo | None = None
) -> User | None:
    """Return the identity that the request acts as, None for the requestor's own; raises StatusError.

    Without `info`, as in a 1.35 server: only the legacy verb is checked.
    """
    requested = requested_impersonation(request)
    if requested is None:
        return None
    if info is None or not _is_constrained(requested, requestor, authorizer, info):
        for attributes in _checks(requested, requestor):
            refusal = authorizer.refusal(attributes)
            if refusal is not None:
                raise refusal
    groups = requested.groups
    account = split_service_account(requested.user)
    if account and not groups:
        groups = service_account_groups(account[0])
    extra: dict[str, tuple[str, ...]] = {}
    for key, value in requested.extra:
        extra[key] = (*extra.get(key, ()), value)
    return User(requested.user, requested.uid, _with_standing(requested.user, groups), extra)


def _is_constrained(
    requested: Impersonation, requestor: User, authorizer: Authorizer, info: RequestInfo
) -> bool:
    """Whether constrained impersonation allows it, in its mode for users and groups."""
    if split_service_account(requested.user) or requested.user.startswith("system:node:"):
        return False
    attributes = Attributes.of_request(requestor, info)
    checks = [attrs.evolve(attributes, verb=f"impersonate-on:user-info:{attributes.verb}")]
    checks += [
        attrs.evolve(check, verb="impersonate:user-info", group=AUTHENTICATION_GROUP)
        for check in _checks(requested, requestor)
    ]
    return all(authorizer.refusal(check) is None for check in checks)


def _checks(requested: Impersonation, requestor: User) -> list[Attributes]:
    """All required permissions of the requestor, in the server's order."""

    def check(
        group: str, resource: str, name: str, *, subresource: str = "", namespace: str = ""
    ) -> Attributes:
        return Attributes(
            user=requestor,
            verb="impersonate",
            group=group,
            resource=resource,
            subresource=subresource,
            namespace=namespace,
            name=name,
        )

    account = split_service_account(requested.user)
    if account:
        checks = [check("", "serviceaccounts", account[1], namespace=account[0])]
    else:
        checks = [check("", "users", requested.user)]
    checks += [check("", "groups", group) for group in requested.groups]
    checks += [
        check(AUTHENTICATION_GROUP, "userextras", value, subresource=key) for key, value in requested.extra
    ]
    if requested.uid:
        checks.append(check(AUTHENTICATION_GROUP, "uids", requested.uid))
    return checks


def _with_standing(user: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Add the group of all authenticated users, or of all unauthenticated ones."""
    if user == ANONYMOUS:
        return groups if UNAUTHENTICATED in groups else (*groups, UNAUTHENTICATED)
    if AUTHENTICATED in groups or UNAUTHENTICATED in groups:
        return groups
    return (*groups, AUTHENTICATED)
