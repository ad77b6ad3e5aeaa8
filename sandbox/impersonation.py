"""Acting as somebody else by `Impersonate-*` headers, each value allowed by a check of its own.

The API server's rules, of which two surprise. An empty `Impersonate-User` alone is no impersonation at all:
the request goes on as whoever sent it. And anything else of the family without a user is a bad request.

Constrained impersonation (KEP-5284, on in a server of 1.36) is looked at first: the requestor may do this
under somebody's name (`impersonate-on:user-info:<verb>`), and it may be this user (`impersonate:user-info`).
Where that does not allow it, the legacy verb `impersonate` decides, and says why not in its own words.
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
class Wanted:
    """What the headers ask for."""

    user: str
    groups: tuple[str, ...]
    uid: str
    extra: tuple[tuple[str, str], ...]


def wanted(request: Request) -> Wanted | None:
    """Read the headers; None when nothing is asked for. Raises StatusError."""
    user = request.header(b"impersonate-user")
    groups = tuple(request.header_values(b"impersonate-group"))
    uid = request.header(b"impersonate-uid")
    extra = tuple(
        # What cannot be unescaped is recorded as it is.
        (unquote(name[len(_EXTRA) :].decode("latin-1")), value.decode("latin-1"))
        for name, value in request.headers
        if name.startswith(_EXTRA)
    )
    if user:
        return Wanted(user, groups, uid, extra)
    if groups or uid or extra:
        asked = [*groups, *(f"{key}={value}" for key, value in extra), *([uid] if uid else [])]
        raise bad_request(f"requested [{' '.join(asked)}] without impersonating a user")
    return None


def impersonate(
    request: Request, requestor: User, authorizer: Authorizer, info: RequestInfo | None = None
) -> User | None:
    """Return the identity that the request acts under, None for the requestor's own; raises StatusError.

    Without `info`, as of a server of 1.35: the legacy verb alone is asked for.
    """
    want = wanted(request)
    if want is None:
        return None
    if info is None or not _is_constrained(want, requestor, authorizer, info):
        for attributes in _checks(want, requestor):
            refusal = authorizer.refusal(attributes)
            if refusal is not None:
                raise refusal
    groups = want.groups
    account = split_service_account(want.user)
    if account and not groups:
        groups = service_account_groups(account[0])
    extra: dict[str, tuple[str, ...]] = {}
    for key, value in want.extra:
        extra[key] = (*extra.get(key, ()), value)
    return User(want.user, want.uid, _with_standing(want.user, groups), extra)


def _is_constrained(want: Wanted, requestor: User, authorizer: Authorizer, info: RequestInfo) -> bool:
    """Whether constrained impersonation allows it; of its modes the one for users and groups."""
    if split_service_account(want.user) or want.user.startswith("system:node:"):
        return False
    asked = Attributes.of_request(requestor, info)
    checks = [attrs.evolve(asked, verb=f"impersonate-on:user-info:{asked.verb}")]
    checks += [
        attrs.evolve(check, verb="impersonate:user-info", group=AUTHENTICATION_GROUP)
        for check in _checks(want, requestor)
    ]
    return all(authorizer.refusal(check) is None for check in checks)


def _checks(want: Wanted, requestor: User) -> list[Attributes]:
    """Everything that the requestor must be allowed, in the server's order."""

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

    account = split_service_account(want.user)
    if account:
        checks = [check("", "serviceaccounts", account[1], namespace=account[0])]
    else:
        checks = [check("", "users", want.user)]
    checks += [check("", "groups", group) for group in want.groups]
    checks += [check(AUTHENTICATION_GROUP, "userextras", value, subresource=key) for key, value in want.extra]
    if want.uid:
        checks.append(check(AUTHENTICATION_GROUP, "uids", want.uid))
    return checks


def _with_standing(user: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Add the group of all who are authenticated, or of all who are not."""
    if user == ANONYMOUS:
        return groups if UNAUTHENTICATED in groups else (*groups, UNAUTHENTICATED)
    if AUTHENTICATED in groups or UNAUTHENTICATED in groups:
        return groups
    return (*groups, AUTHENTICATED)
