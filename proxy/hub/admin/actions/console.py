"""Actions on the console's sign-in: one-time codes and sessions."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

import attrs
import msgspec

from auth.apikey import CODE_BYTES, new_console_code
from auth.apikey import hash as hash_key
from proxy.hub.admin.verbs.answers import Done, Payload, time_text
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError
from proxy.hub.store.entities import AdminToken, ConsoleSession
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store

# A code is for a browser that is open already. A demo prints one with its other lines.
CODE_S = 60
CODE_MIN_S = 10
CODE_MAX_S = 600


class NewCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expires_s: int = CODE_S
    """The code's lifetime in seconds, by the hub's clock."""


@attrs.frozen
class ConsoleActions:
    """The codes and sessions of people."""

    directory: Changes
    pepper: bytes = attrs.field(repr=False)
    clock: Callable[[], float]
    public_url: str
    """The console's URL; "" without a console."""
    hub_ca: Callable[[], str | None]

    @verb("POST", "/v1/console/codes", "create", "console codes", Role.VIEWER, body=NewCode, with_call=True)
    async def open(self, new: NewCode, call: Call) -> Done:
        """Make a one-time code that signs a browser in with the role of the token that asks."""
        if not self.public_url:
            raise ConflictError("this hub has no console: set console.listen in its hub.toml")
        if not CODE_MIN_S <= new.expires_s <= CODE_MAX_S:
            raise InvalidError(f"a code lasts {CODE_MIN_S} to {CODE_MAX_S} s, not {new.expires_s} s")
        code = new_console_code(secrets.token_bytes(CODE_BYTES))
        expires_at = self.clock() + new.expires_s
        await self.directory.change(
            partial(
                Store.add_console_code,
                code_hash=hash_key(code, self.pepper),
                token_id=call.token,
                operator=call.operator,
                expires_at=expires_at,
            )
        )
        return Done(
            {
                # In the fragment, which browsers send to no server.
                "url": f"{self.public_url}/signin#code={code}",
                "code": code,
                "role": call.role,
                "expires_at": time_text(expires_at),
                "own_ca": self.public_url.startswith("https:") and self.hub_ca() is not None,
            },
            created=True,
            note=f"role={call.role} expires={time_text(expires_at)}",
        )

    @verb("GET", "/v1/console/sessions", "list", "console sessions", Role.VIEWER, with_call=True)
    async def list_all(self, call: Call) -> Done:
        """List the sessions of the token that asks; for an auditor those of all tokens."""
        uses = await self.directory.read(Store.console_uses)
        now = self.clock()
        found = [
            (token, attrs.evolve(session, used_at=uses.get(session.id, session.used_at)))
            for token, session in self.directory.current.console_sessions.values()
            if (token.id == call.token or call.role.may(Role.AUDITOR)) and not token.expired(now)
        ]
        found.sort(key=lambda pair: pair[1].created_at)
        living = [_session(*each) for each in found if not each[1].ended(now)]
        return Done({"sessions": living})

    @verb(
        "DELETE",
        "/v1/console/sessions/{id}",
        "delete",
        "console sessions",
        Role.VIEWER,
        with_call=True,
        revokes=True,
    )
    async def end(self, session_id: str, call: Call) -> Done:
        """End a session at all hubs: one of the token that asks, or for an admin any."""
        held = {session.id: token for token, session in self.directory.current.console_sessions.values()}
        token = held.get(session_id)
        if token is None or not (token.id == call.token or call.role.may(Role.ADMIN)):
            raise NotFoundError(
                "there is no such session, or it is of another token, whose sessions an admin ends: "
                "hawse admin console list"
            )
        operator = await self.directory.change(partial(Store.end_console_session, session_id=session_id))
        return Done({"ended": session_id, "name": operator}, note=f"name={operator}")


def _session(token: AdminToken, session: ConsoleSession) -> Payload:
    return {
        "id": session.id,
        "name": session.operator,
        "token": token.name,
        "role": token.role,
        "created_at": time_text(session.created_at),
        "used_at": time_text(session.used_at),
        "expires_at": time_text(session.expires_at),
        "ip": session.ip,
        "user_agent": session.user_agent,
    }
