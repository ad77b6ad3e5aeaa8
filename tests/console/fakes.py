"""A sign-in without a sign-in: every request is that of one person."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from starlette.types import Scope

from audit.record import Actor, ActorType
from proxy.console.base.sessions import Offer, Person, SignInError
from proxy.hub.admin.verbs.callers import Caller
from proxy.hub.store.roles import Role

CSRF = "c" * 43


@attrs.frozen
class FakePerson:
    role: Role = Role.ADMIN
    name: str = "ops"
    session: str = "session-1"
    csrf: str = CSRF
    expires_at: float = 2_000_000_000.0
    approves_as: str = ""
    """The person of the admin token, for the role approver."""

    def may(self, role: str) -> bool:
        return self.role.may(Role(role))


@attrs.define
class FakeSignIn:
    """Signed in as `who`, or nobody; the code is `good`."""

    who: FakePerson | None = attrs.Factory(FakePerson)
    good: str = "hwo_good"

    def person(self, scope: Scope) -> Person | None:
        return self.who

    def caller(self, person: Person) -> Caller:
        actor = Actor(ActorType.OPERATOR, person.name, "token-1", credential=f"console:{person.session}")
        return Caller(
            actor=actor,
            role=Role(person.role),
            mode="console",
            session=person.session,
            person=self.who.approves_as if self.who is not None else "",
            still_valid=lambda: None,
        )

    def refusal(self, scope: Scope, person: Person | None, token: str) -> str:
        return "" if person is None or token == person.csrf else "The form has no token of this session."

    async def offer(self, code: str, ip: str) -> Offer:
        if code != self.good:
            raise SignInError(401, "This code is not valid, or was used already.")
        return Offer("ops", "admin", 2_000_000_000.0)

    async def redeem(self, code: str, ip: str, user_agent: str) -> str:
        await self.offer(code, ip)
        return "hawse=x; HttpOnly; Path=/"

    @property
    def clear_cookie(self) -> str:
        return "hawse=; Max-Age=0; Path=/"

    def holders(self, role: str) -> Sequence[str]:
        return Role(role).holders
