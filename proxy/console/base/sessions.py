"""Who is signed in: the part of the hub that the pages need, as types.

The pages import nothing of the hub. The hub implements these (proxy.hub.console), and tests/console/dev.py
does so without a sign-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import attrs
from starlette.types import Scope


class SignInError(Exception):
    """A sign-in that is refused; the text says why and what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen
class Offer:
    """What a code would give."""

    name: str
    role: str
    expires_at: float


class Person(Protocol):
    """A person with a session."""

    @property
    def session(self) -> str:
        """The session's id."""
        ...

    @property
    def name(self) -> str:
        """The name as the trail has it: that of the admin token."""
        ...

    @property
    def role(self) -> str:
        """The name of the role."""
        ...

    @property
    def csrf(self) -> str:
        """The secret of the session's forms."""
        ...

    @property
    def expires_at(self) -> float:
        """When the session ends at the latest, in epoch seconds."""
        ...

    def may(self, role: str) -> bool:
        """Return whether the person's role includes the rights of `role`."""
        ...


class SignIn(Protocol):
    """The sessions of people."""

    def person(self, scope: Scope) -> Person | None:
        """Return who asks, by the request's cookie."""
        ...

    def caller(self, person: Person) -> Any:
        """Return what the admin API finds in the scope's state under "caller"."""
        ...

    def refusal(self, scope: Scope, person: Person | None, token: str) -> str:
        """Return why a change may not be made, or nothing.

        A change comes from a page of the console's own origin, and has the token of the session's forms.
        Without a person (at the sign-in) the origin alone counts.
        """
        ...

    async def offer(self, code: str, ip: str) -> Offer:
        """Return what a code would give, without using it up; raises SignInError."""
        ...

    async def redeem(self, code: str, ip: str, user_agent: str) -> str:
        """Use up a code, and return the value of `Set-Cookie`; raises SignInError."""
        ...

    @property
    def clear_cookie(self) -> str:
        """The value of `Set-Cookie` that removes a session's cookie."""
        ...

    def holders(self, role: str) -> Sequence[str]:
        """Return the roles that include the rights of `role`, the least first."""
        ...
