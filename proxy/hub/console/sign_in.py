"""Signs people in at the console: proxy.console.base.sessions.SignIn on the hub's store.

A one-time code begins a session. It is good once, at any hub, for the time that the operator asked for. An
unknown, used or expired code gets one answer, and an address with many wrong ones is refused for a while.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import attrs
import trio
from starlette.types import Scope

from audit.errors import AuditUnavailable
from audit.events import new_event
from audit.record import Actor, ActorType, Client, Decision, Event, Kind, Phase, utc
from audit.record import Request as AuditRequest
from audit.record import Response as AuditResponse
from auth.apikey import ApiKeyError, parse_console_code
from auth.apikey import hash as hash_key
from proxy.console.base import sessions
from proxy.console.base.sessions import Offer, SignInError
from proxy.hub.admin.verbs.callers import Caller
from proxy.hub.console.origin import COOKIE_BYTES, Origin
from proxy.hub.console.people import People, Person
from proxy.hub.identity.code_throttle import FORGIVEN_AFTER_S, CodeThrottle
from proxy.hub.membership.spread import Spread
from proxy.hub.store.directory import Directory
from proxy.hub.store.engines.errors import NotFoundError, StoreUnavailableError
from proxy.hub.store.entities import AdminToken, ConsoleCode
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store

# In the scope's state: the person whose session the request's cookie is, looked up by the gate.
PERSON = "person"
_MODE = "console"
_SIGN_IN = AuditRequest("POST", "/signin", verb="create", resource="console sessions")
_NOT_ACCEPTED = (
    "This code is not valid, or was used already. It works once and for a short time: run "
    "`hawse admin console open` for another."
)


class Recorder(Protocol):
    """The part of the audit recorder that the sign-in uses."""

    async def intent(self, event: Event) -> None:
        """Return once the event is durable; raises AuditUnavailable."""
        ...

    def complete(self, event: Event) -> None:
        """Queue the end of an action."""
        ...


@attrs.define(eq=False)
class ConsoleSignIn:
    """The sign-in of people at one hub."""

    people: People
    origin: Origin
    recorder: Recorder
    spread: Spread
    throttle: CodeThrottle = attrs.Factory(CodeThrottle)
    signed_in: int = attrs.field(init=False, default=0)
    """Sessions that began at this hub, for the metrics."""
    refused: int = attrs.field(init=False, default=0)
    """Codes that were not accepted, for the metrics."""

    @property
    def _directory(self) -> Directory:
        return self.people.directory

    @property
    def _clock(self) -> Callable[[], float]:
        return self.people.clock

    def person(self, scope: Scope) -> Person | None:
        """Return who asks."""
        person: Person | None = scope["state"].get(PERSON)
        return person

    def caller(self, person: sessions.Person) -> Caller:
        """Return what the admin API knows a person by."""
        assert isinstance(person, Person), "looked up by the gate"
        return self.people.caller(person)

    def holders(self, role: str) -> Sequence[str]:
        """Return the roles that include the rights of `role`, the least first."""
        return Role(role).holders

    def refusal(self, scope: Scope, person: sessions.Person | None, token: str) -> str:
        """Return why a change may not be made, or nothing."""
        if scope["method"] != "POST":
            return "A change is a POST."
        if fault := self.origin.cross_site(scope["headers"]):
            return fault
        if person is None or hmac.compare_digest(token.encode(), person.csrf.encode()):
            return ""
        return "The page is of another session: load it again."

    async def offer(self, code: str, ip: str) -> Offer:
        """Return what a code would give, without using it up; raises SignInError."""
        _, token, found = self._accepted(code, ip, "")
        return Offer(found.operator, token.role, found.expires_at)

    async def redeem(self, code: str, ip: str, user_agent: str) -> str:
        """Use up a code, and return the value of `Set-Cookie`; raises SignInError.

        If cancelled during the write, the session may have begun, and its cookie is lost.
        """
        digest, token, found = self._accepted(code, ip, user_agent)
        session_id, cookie = str(uuid.uuid4()), secrets.token_urlsafe(COOKIE_BYTES)
        actor = Actor(ActorType.OPERATOR, found.operator, token.id, credential=f"console:{session_id}")
        event = self._event(Kind.CONSOLE_OPENED, actor, ip, user_agent, Phase.INTENT)
        try:
            await self.recorder.intent(event)
        except AuditUnavailable as error:
            raise SignInError(
                503, f"The audit trail cannot be written, so no session begins: {error}."
            ) from error
        begin = partial(
            Store.redeem_console_code,
            code_hash=digest,
            session_hash=hash_key(cookie, self.people.pepper),
            session_id=session_id,
            ip=ip,
            user_agent=user_agent,
        )
        try:
            await self._directory.change(begin)
        except NotFoundError as error:
            # Another request has used it meanwhile.
            self._end(event, 401, str(error))
            raise self._not_accepted(ip) from error
        except StoreUnavailableError as error:
            self._end(event, 503, str(error))
            raise SignInError(503, "The hub cannot store the session: try again.") from error
        except BaseException as error:
            # Only the store shows whether the session has begun.
            self._end(event, 500, f"ended by {type(error).__name__}")
            raise
        self._end(event, 201, f"role={token.role}")
        self.signed_in += 1
        # The browser's next request may reach another hub.
        await self.spread.wait()
        return self.origin.set_cookie(cookie)

    @property
    def clear_cookie(self) -> str:
        """The `Set-Cookie` of a sign-out."""
        return self.origin.clear_cookie

    def _accepted(self, code: str, ip: str, user_agent: str) -> tuple[str, AdminToken, ConsoleCode]:
        """Return a good code's digest, its token and what it gives; raises SignInError."""
        if why := self._directory.refusal():
            raise SignInError(503, f"{why[:1].upper()}{why[1:]}.")
        if self.throttle.refuses(ip, trio.current_time()):
            why = (
                f"This address has sent too many wrong codes: wait {FORGIVEN_AFTER_S:.0f} s, then try again."
            )
            self._refused(429, why, ip, user_agent)
            raise SignInError(429, why)
        now = self._clock()
        try:
            digest = hash_key(parse_console_code(code), self.people.pepper)
        except ApiKeyError:
            self._refused(401, "not a sign-in code", ip, user_agent)
            raise self._not_accepted(ip) from None  # its message may contain the code
        # The dictionary is keyed by an HMAC under a secret, so lookup timing reveals nothing about a code.
        found = self._directory.current.console_codes.get(digest)
        if found is None or found[1].expires_at <= now or found[0].expired(now):
            note = "the code is unknown, was used, or has expired"
            self._refused(401, note, ip, user_agent)
            raise self._not_accepted(ip)
        return digest, *found

    def _not_accepted(self, ip: str) -> SignInError:
        self.throttle.failed(ip, trio.current_time())
        self.refused += 1
        return SignInError(401, _NOT_ACCEPTED)

    def _refused(self, status: int, note: str, ip: str, user_agent: str) -> None:
        event = self._event(Kind.AUTH_FAILED, Actor(ActorType.ANONYMOUS), ip, user_agent)
        self._end(event, status, note)

    def _event(
        self, kind: Kind, actor: Actor, ip: str, user_agent: str, phase: Phase = Phase.COMPLETE
    ) -> Event:
        return new_event(
            kind,
            actor,
            org=self._directory.current.org,
            at=self._clock(),
            phase=phase,
            client=Client(ip, user_agent, _MODE),
            req=_SIGN_IN,
            decision=Decision("deny") if kind is Kind.AUTH_FAILED else None,
        )

    def _end(self, event: Event, status: int, note: str) -> None:
        self.recorder.complete(event.completed(utc(self._clock()), resp=AuditResponse(status), note=note))
