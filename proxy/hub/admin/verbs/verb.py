"""A verb of the admin API, declared once, at the method that implements it.

`verb` decorates a method of a group of actions. The declaration has everything else that the API needs: the
path, the name in the audit trail, the role that an admin token needs, the type of the body, and whether it
only revokes. `proxy.hub.admin.administration` collects all declarations.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import attrs

from proxy.hub.admin.verbs.answers import Answer
from proxy.hub.admin.verbs.call import Call
from proxy.hub.store.roles import Role

# An action that only reads the snapshot is not async.
Method = TypeVar("Method", bound=Callable[..., Answer | Awaitable[Answer]])
Revokes = bool | Callable[..., bool]
_PARAMETER = re.compile(r"\{(\w+)\}")
_DECLARATION = "admin_verb"


@attrs.frozen
class Endpoint:
    """A path with a method, its name in the trail, and the role that it needs."""

    method: str
    path: str
    verb: str
    resource: str
    role: Role
    """No default: an endpoint without a role cannot be made."""
    by_person: bool = False
    """Whether a person must decide, so that the role that includes all others does not suffice."""

    def admits(self, role: Role) -> bool:
        """Return whether a token or a session with this role may use it."""
        return role is self.role if self.by_person else role.may(self.role)

    @property
    def holders(self) -> tuple[Role, ...]:
        """The roles that may use it, the least first."""
        return tuple(role for role in Role if self.admits(role))


METRICS = Endpoint("GET", "/metrics", "get", "metrics", Role.METRICS)
OPENAPI = Endpoint("GET", "/v1/openapi.json", "get", "openapi", Role.VIEWER)
# They are no actions: they read nothing that an operator made, so a request is recorded only if refused.
ENDPOINTS = (METRICS, OPENAPI)


@attrs.frozen
class Verb(Endpoint):
    """The declaration of an action; reads its arguments from a call."""

    body: type | None = None
    query: type | None = None
    with_call: bool = False
    revokes: Revokes = False
    etag: bool = False
    answer: type | None = None
    reads: bool = False

    @property
    def changes(self) -> bool:
        """Whether it changes something, so that its intent is recorded first."""
        return self.method != "GET" and not self.reads

    def arguments(self, call: Call) -> list[object]:
        """Return the method's arguments: those in the path, the body, the query, the call itself.

        Raises InvalidError.
        """
        arguments: list[object] = [call.path[name] for name in _PARAMETER.findall(self.path)]
        if self.body is not None:
            arguments.append(call.decode(self.body))
        if self.query is not None:
            arguments.append(call.convert(self.query))
        if self.with_call:
            arguments.append(call)
        return arguments


def verb(
    method: str,
    path: str,
    name: str,
    resource: str,
    role: Role,
    *,
    body: type | None = None,
    query: type | None = None,
    with_call: bool = False,
    revokes: Revokes = False,
    etag: bool = False,
    answer: type | None = None,
    reads: bool = False,
    by_person: bool = False,
) -> Callable[[Method], Method]:
    """Declare a method of a group of actions as a verb of the admin API.

    The method gets the parameters of the path in their order, then the body and the query as the given types,
    then the call if `with_call` is set. `revokes` declares that a request only revokes rights: such a request
    works while the trail or the store cannot be written. If it is a function, it gets the group and the same
    arguments.

    `reads` declares that a verb whose method is not GET changes nothing that lasts.

    With `etag`, a read whose answer the client has already is a 304. `answer` is the shape of the answer's
    body, for the API's description; an answer is not checked against it outside the tests.

    `by_person` admits exactly the declared role: a person must decide, so `admin` does not suffice.
    """

    def declare(function: Method) -> Method:
        declared = Verb(
            method,
            path,
            name,
            resource,
            role,
            by_person=by_person,
            body=body,
            query=query,
            with_call=with_call,
            revokes=revokes,
            etag=etag,
            answer=answer,
            reads=reads,
        )
        setattr(function, _DECLARATION, declared)
        return function

    return declare


def declared_by(group: type) -> Iterator[tuple[str, Verb]]:
    """Yield the methods of a group that are verbs, in the order of the class."""
    for name, member in vars(group).items():
        declared = getattr(member, _DECLARATION, None)
        if isinstance(declared, Verb):
            yield name, declared
