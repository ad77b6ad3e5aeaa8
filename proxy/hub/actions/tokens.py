"""Actions on the tokens of the admin API."""

from __future__ import annotations

import secrets

import attrs
import msgspec

from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.hub.answers import Done, time_text
from proxy.hub.directory import Changes
from proxy.hub.entities import Snapshot


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


@attrs.frozen
class TokenActions:
    """The operators' tokens."""

    directory: Changes
    pepper: bytes = attrs.field(repr=False)

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    def list_all(self) -> Done:
        """List the tokens of the admin API."""
        listed = sorted(self._now.admin_tokens_by_hash.values(), key=lambda token: token.name)
        return Done(
            {
                "tokens": [
                    {
                        "name": token.name,
                        "id": token.id,
                        "created_at": time_text(token.created_at),
                        "last_used_at": time_text(token.last_used_at),
                    }
                    for token in listed
                ]
            }
        )

    async def add(self, new: NewToken) -> Done:
        """Add a token of the admin API, which is shown this once."""
        token = new_api_key(secrets.token_bytes(32))
        digest = hash_key(token, self.pepper)
        token_id = await self.directory.change(lambda store: store.add_admin_token(new.name, digest))
        return Done(
            {"name": new.name, "id": token_id, "token": token},
            created=True,
            note=f"name={new.name} id={token_id}",
        )

    async def remove(self, name: str) -> Done:
        """Revoke a token of the admin API."""
        token_id = await self.directory.change(lambda store: store.remove_admin_token(name))
        return Done({"removed": name}, note=f"id={token_id}")
