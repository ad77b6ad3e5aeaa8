"""The caller of the admin API: the actor, its role, and whether both still hold."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from audit.record import Actor
from proxy.hub.store.roles import Role

# A key of the scope's state. The console sets it in process, for its own requests; a server's scope always
# has a new state. Without it a request needs an admin token.
CALLER = "caller"


class RefusedError(Exception):
    """A request that is not admitted."""

    def __init__(self, status: int, code: str, message: str, actor: Actor, note: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.actor = actor
        self.note = note or message
        """For the trail."""


@attrs.frozen(kw_only=True)
class Caller:
    """The caller of one request."""

    actor: Actor
    """As the trail names it."""
    role: Role
    mode: str = "admin"
    """The way in, for the trail: `admin` with a token, `console` with a person's session."""
    session: str = ""
    """The id of a session of the console, whose reads are merged in the trail; "" for a token's request."""
    person: str = ""
    """Whose token it is, for the role approver; "" for the others."""
    still_valid: Callable[[], RefusedError | None] = attrs.field(repr=False)
    """Returns why the credential no longer gives this role, or None. It does not wait.

    It is called again before a change is made, and each second of a stream.
    """
