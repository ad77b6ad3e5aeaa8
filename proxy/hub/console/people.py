"""The people who are signed in: their sessions, which all hubs on one database share.

A session is in the snapshot, so one that ends at a hub ends at all of them. It has the role of its admin
token, and ends with it. It ends after IDLE_S without a request to any hub: uses are written with a delay, and
read again before a hub takes a session for idle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import attrs
import trio

from audit.record import Actor, ActorType
from auth.apikey import hash as hash_key
from proxy.hub.admin.verbs.callers import Caller, RefusedError
from proxy.hub.store.directory import USE_WRITTEN_EVERY_S, Directory
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.entities import IDLE_S, AdminToken, ConsoleSession
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store

_log = logging.getLogger("hawse.hub.console")


@attrs.frozen
class Person:
    """A person with a session (proxy.console.base.sessions.Person)."""

    session: str
    name: str
    role: str
    csrf: str = attrs.field(repr=False)
    expires_at: float
    token_id: str
    hash: str = attrs.field(repr=False)
    """Of the session's cookie."""
    approves_as: str = ""
    """The person of the admin token, for the role approver; "" for the others."""

    def may(self, role: str) -> bool:
        """Return whether the person's role includes the rights of `role`."""
        return Role(self.role).may(Role(role))

    @property
    def actor(self) -> Actor:
        """As the trail names the person."""
        return Actor(ActorType.OPERATOR, self.name, self.token_id, credential=f"console:{self.session}")


@attrs.define(eq=False)
class People:
    """The sessions at one hub."""

    directory: Directory
    pepper: bytes = attrs.field(repr=False)
    clock: Callable[[], float]
    # By session id; bounded by the sessions of the snapshot.
    _used: dict[str, float] = attrs.Factory(dict)
    _unwritten: dict[str, float] = attrs.Factory(dict)

    async def look_up(self, cookie: str) -> Person | None:
        """Return whose session a cookie is, and note the use; None if it has ended."""
        digest = hash_key(cookie, self.pepper)
        found = self.directory.current.console_sessions.get(digest)
        now = self.clock()
        if found is None or found[0].expired(now) or now >= found[1].expires_at:
            return None
        token, session = found
        if self._ended(token, session, now) and not await self._is_used_elsewhere(session):
            return None
        self._used[session.id] = self._unwritten[session.id] = now
        return self._person(digest, token, session)

    def caller(self, person: Person) -> Caller:
        """Return what the admin API knows a person by."""
        return Caller(
            actor=person.actor,
            role=Role(person.role),
            mode="console",
            session=person.session,
            person=person.approves_as,
            still_valid=partial(self.refused, person),
        )

    def refused(self, person: Person) -> RefusedError | None:
        """Return why a person's session no longer gives the role; None if it does."""
        if why := self.directory.refusal():
            # Another hub may have ended the session. Streams end too.
            return RefusedError(503, "unconfirmed", why, person.actor)
        found = self.directory.current.console_sessions.get(person.hash)
        if found is None or self._ended(*found, self.clock()):
            return RefusedError(401, "unauthenticated", "your session has ended: sign in again", person.actor)
        if found[0].role != person.role:
            message = f"your role was {person.role}, and is {found[0].role} now: load the page again"
            return RefusedError(403, "forbidden", message, person.actor)
        return None

    @property
    def recent(self) -> int:
        """The number of sessions with a request to this hub within IDLE_S, for the metrics."""
        since = self.clock() - IDLE_S
        return sum(used_at > since for used_at in self._used.values())

    def living(self) -> set[str]:
        """Return the ids of the sessions that have not ended."""
        now = self.clock()
        found = self.directory.current.console_sessions.values()
        return {session.id for token, session in found if not self._ended(token, session, now)}

    async def run(self) -> NoReturn:
        """Write the uses of sessions regularly; a failing store is logged, and these times are lost."""
        while True:
            await trio.sleep(USE_WRITTEN_EVERY_S)
            try:
                await self.write_uses()
            except StoreUnavailableError as error:
                _log.warning("cannot write the uses of the console's sessions: %s", error)

    async def write_uses(self) -> None:
        """Write the uses since the last write; raises StoreUnavailableError, and then they are lost."""
        known = {session.id for _, session in self.directory.current.console_sessions.values()}
        self._used = {key: at for key, at in self._used.items() if key in known}
        used, self._unwritten = self._unwritten, {}
        if used:
            await self.directory.change(partial(Store.note_console_uses, used=used))

    def _person(self, digest: str, token: AdminToken, session: ConsoleSession) -> Person:
        return Person(
            session=session.id,
            name=session.operator,
            role=token.role,
            # Not in the store, and of no use at another session.
            csrf=hash_key(f"console-csrf:{session.id}", self.pepper),
            expires_at=session.expires_at,
            token_id=token.id,
            hash=digest,
            approves_as=token.person,
        )

    def _ended(self, token: AdminToken, session: ConsoleSession, now: float) -> bool:
        return token.expired(now) or session.ended(now, self._used.get(session.id, 0.0))

    async def _is_used_elsewhere(self, session: ConsoleSession) -> bool:
        """Whether another hub has written a later use of a session that seems idle here."""
        try:
            uses = await self.directory.read(Store.console_uses)
        except StoreUnavailableError:
            return False
        return not session.ended(self.clock(), uses.get(session.id, 0.0))
