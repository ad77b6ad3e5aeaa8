"""Actions on the tokens of the admin API."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import attrs
import msgspec

from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.hub.admin.verbs import shapes
from proxy.hub.admin.verbs.answers import Done, Payload, time_text
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import InvalidError
from proxy.hub.store.entities import AdminToken, Snapshot
from proxy.hub.store.names import shown
from proxy.hub.store.roles import Role, listed
from proxy.hub.store.store import Store

DAY_S = 86400
# A shorter lifetime is a typing error: the token must reach its user first.
LIFETIME_MIN_S = 60
# Ten years, as for a certificate authority. For a longer use, leave out the expiry.
LIFETIME_MAX_S = 3650 * DAY_S
# Early enough for an operator who reads the list once a week.
ENDS_SOON_S = 14 * DAY_S


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    role: str = ""
    """Required; the empty default leads to an error that lists the roles."""
    expires_s: int | None = None
    """The lifetime in seconds, by the hub's clock; None for no expiry."""
    remote: bool = False
    """Whether it counts at the console's listener too."""
    person: str = ""
    """Who approves with it; required for the role approver, and refused for the others."""


@attrs.frozen
class TokenActions:
    """The operators' tokens."""

    directory: Changes
    pepper: bytes = attrs.field(repr=False)
    clock: Callable[[], float]

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb("GET", "/v1/tokens", "list", "tokens", Role.AUDITOR, answer=shapes.Tokens)
    async def list_all(self) -> Done:
        """List the tokens of the admin API."""
        used = await self.directory.read(Store.last_used)
        listed = sorted(self._now.admin_tokens_by_hash.values(), key=lambda token: token.name)
        now = self.clock()
        return Done({"tokens": [_token(token, used, now) for token in listed]})

    @verb("POST", "/v1/tokens", "create", "tokens", Role.ADMIN, body=NewToken)
    async def add(self, new: NewToken) -> Done:
        """Add a token of the admin API, which is shown only once."""
        role = _role(new.role)
        expires_at = None
        if new.expires_s is not None:
            if not LIFETIME_MIN_S <= new.expires_s <= LIFETIME_MAX_S:
                raise InvalidError(
                    f"a token lasts {LIFETIME_MIN_S} s to {LIFETIME_MAX_S // DAY_S} days, "
                    f"not {new.expires_s} s: leave it out for a token without an end"
                )
            expires_at = self.clock() + new.expires_s
        token = new_api_key(secrets.token_bytes(32))
        digest = hash_key(token, self.pepper)
        token_id = await self.directory.change(
            lambda store: store.add_admin_token(
                new.name, digest, role=role, expires_at=expires_at, remote=new.remote, person=new.person
            )
        )
        ends = time_text(expires_at)
        return Done(
            {
                "name": new.name,
                "id": token_id,
                "role": role,
                "remote": new.remote,
                "person": new.person,
                "expires_at": ends,
                "token": token,
            },
            created=True,
            note=f"name={new.name} id={token_id} role={role} expires={ends or 'never'}"
            f"{' remote' if new.remote else ''}{f' person={new.person}' if new.person else ''}",
        )

    @verb("DELETE", "/v1/tokens/{name}", "delete", "tokens", Role.ADMIN, with_call=True, revokes=True)
    async def remove(self, name: str, call: Call) -> Done:
        """Revoke a token of the admin API, as of the time of the call."""
        token_id = await self.directory.change(lambda store: store.remove_admin_token(name, at=call.at))
        return Done({"removed": name}, note=f"id={token_id}")


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        fault = f"{shown(text)} is no role" if text else "a token needs a role"
        raise InvalidError(f"{fault}: choose {listed(tuple(Role))}") from None


def _token(token: AdminToken, used: Mapping[str, float], now: float) -> Payload:
    return {
        "name": token.name,
        "id": token.id,
        "role": token.role,
        "role_chosen": token.role_chosen,
        "remote": token.remote,
        "expires_at": time_text(token.expires_at),
        "created_at": time_text(token.created_at),
        "last_used_at": time_text(used.get(token.id)),
        "warnings": _warnings(token, now),
        "person": token.person,
    }


def _warnings(token: AdminToken, now: float) -> list[str]:
    """Return the warnings about a token, with the next steps."""
    found = []
    another = f"hawse admin token add NAME --role {'approver --person NAME' if token.person else 'ROLE'}"
    if not token.role_chosen:
        found.append(
            f"may do everything, since it is older than roles: `{another}` makes one that may do less, "
            f"and `hawse admin token remove {token.name}` ends this one"
        )
    if token.expires_at is not None and token.expired(now):
        found.append(
            f"expired at {time_text(token.expires_at)}: `hawse admin token remove {token.name}` removes it"
        )
    elif token.expires_at is not None and token.expires_at - now < ENDS_SOON_S:
        found.append(f"ends at {time_text(token.expires_at)}: `{another}` makes the next one")
    return found
