"""Authorization in the admin API: the only check of an admin token, its expiry and its role.

It uses only the head of a request, so a request is refused before its body is read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
from starlette.requests import Request

from audit.record import Actor, ActorType
from auth.apikey import ApiKeyError, parse
from auth.apikey import hash as hash_key
from proxy.hub.admin.verbs.answers import time_text
from proxy.hub.admin.verbs.callers import CALLER, Caller, RefusedError
from proxy.hub.admin.verbs.verb import Endpoint
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import AdminToken
from proxy.hub.store.local_user import USER_HEADER, is_user, local_actor
from proxy.hub.store.roles import Role, listed

# In the scope's state: a function, called with the id of a request's valid token, or with None.
KNOWN = "known"
# In the scope's state: True at the console's listener, where only tokens count that were made for it.
REMOTE = "remote"

_ANONYMOUS = Actor(ActorType.ANONYMOUS)


@attrs.frozen
class Operators:
    """Admits requests by their admin tokens, or by the caller that the console has checked."""

    directory: Directory
    pepper: bytes = attrs.field(repr=False)
    clock: Callable[[], float]
    local_token: str
    """The name of this machine's token."""

    def admit(self, request: Request, endpoint: Endpoint) -> Caller:
        """Return the caller; raises RefusedError."""
        caller: Caller | None = request.scope.get("state", {}).get(CALLER)
        if caller is not None:
            if (refused := caller.still_valid()) is not None:
                raise refused
            _check_role("your session", caller.actor, caller.role, endpoint)
            return caller
        token, actor = self._authenticated(request)
        _check_role(f"the admin token {token.name}", actor, token.role, endpoint)
        if token.name == self.local_token:
            actor = _with_user(actor, request.headers.getlist(USER_HEADER))
        return Caller(
            actor=actor,
            role=token.role,
            person=token.person,
            still_valid=partial(self._still_valid, request, token.role),
        )

    def _still_valid(self, request: Request, role: Role) -> RefusedError | None:
        try:
            token, actor = self._authenticated(request)
        except RefusedError as refused:
            return refused
        if token.role is role:
            return None
        message = f"the admin token {token.name} had the role {role}, and has the role {token.role} now"
        return RefusedError(403, "forbidden", message, actor)

    def _authenticated(self, request: Request) -> tuple[AdminToken, Actor]:
        """Return the valid token of a request, and its actor; raises RefusedError."""
        token = self._token(request)
        now = self.clock()
        state = request.scope.get("state", {})
        here = token is not None and (token.remote or not state.get(REMOTE, False))
        known = state.get(KNOWN)
        if known is not None:
            known(None if token is None or not here or token.expired(now) else token.id)
        if token is None:
            message = "an admin token is needed: Authorization: Bearer hws_…"
            raise RefusedError(401, "unauthenticated", message, _ANONYMOUS, "no valid admin token")
        actor = Actor(ActorType.OPERATOR, token.name, token.id, credential="admin-token")
        if token.expired(now):
            message = (
                f"the admin token {token.name} expired at {time_text(token.expires_at)}: "
                "hawse admin token add NAME --role ROLE makes another"
            )
            raise RefusedError(401, "expired", message, actor)
        if not here:
            message = (
                f"the admin token {token.name} counts at the hub's admin listener alone: "
                "hawse admin token add NAME --role ROLE --remote makes one that counts here"
            )
            raise RefusedError(403, "not_remote", message, actor)
        self.directory.used.note_admin_token(token.id, now)
        return token, actor

    def _token(self, request: Request) -> AdminToken | None:
        values = request.headers.getlist("authorization")
        if len(values) != 1:
            return None
        scheme, _, token = values[0].partition(" ")
        try:
            digest = hash_key(parse(token.strip()), self.pepper)
        except ApiKeyError:
            return None
        # Keyed by an HMAC under a secret, so the dictionary's timing reveals nothing about a token.
        found = self.directory.current.admin_tokens_by_hash.get(digest)
        return found if scheme.lower() == "bearer" else None


def _check_role(credential: str, actor: Actor, role: Role, endpoint: Endpoint) -> None:
    """Refuse a role that the endpoint does not admit; raises RefusedError."""
    if not endpoint.admits(role):
        message = (
            f"{credential} has the role {role}, which may not {endpoint.verb} "
            f"{endpoint.resource}: that takes the role {listed(endpoint.holders)}"
        )
        raise RefusedError(403, "forbidden", message, actor)


def _with_user(actor: Actor, users: list[str]) -> Actor:
    """Add the machine's user to the actor of the local token; raises RefusedError.

    A client other than `hawse admin`, such as curl, sends no header. Its actor stays without a user.
    """
    if not users:
        return actor
    if len(users) > 1 or not is_user(users[0]):
        raise RefusedError(400, "invalid", f"{USER_HEADER} is not one user of this machine", actor)
    return Actor(actor.type, local_actor(users[0]), actor.id, credential=actor.credential)
