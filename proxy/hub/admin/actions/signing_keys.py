"""Actions on the hub's signing keys."""

from __future__ import annotations

import attrs

from proxy.hub.admin.verbs.answers import Done, Payload, time_text
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.home.keyring import KeyRing
from proxy.hub.store.roles import Role
from proxy.hub.store.secrets.signing_keys import KeyState

_SHOWN = {KeyState.PUBLISHED: "published", KeyState.ACTIVE: "signing", KeyState.RETIRING: "retiring"}


@attrs.frozen
class SigningKeyActions:
    """The hub's signing keys."""

    ring: KeyRing

    @verb("GET", "/v1/keys", "list", "keys", Role.VIEWER)
    def list_all(self) -> Done:
        """List the hub's signing keys, with those that a new relay gets."""
        return Done(self._shown())

    @verb("POST", "/v1/keys", "rotate", "keys", Role.ADMIN)
    async def rotate(self) -> Done:
        """Sign with a new key; the old one verifies until all its tokens have expired."""
        before = await self.ring.rotate()
        note = f"kid={self.ring.current.active.kid} before={before}"
        return Done(self._shown(), created=True, note=note)

    def _shown(self) -> Payload:
        keys, retiring = self.ring.current, self.ring.retiring()
        listed = [
            {
                "kid": key.kid,
                "state": _SHOWN[keys.state_of(key.kid)],
                "retires_at": time_text(retiring.get(key.kid)),
            }
            for key in keys.public
        ]
        return {"keys": listed, "rotations": len(keys.succession), "pins": keys.pins.to_jwks()}
