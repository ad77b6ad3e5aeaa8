"""The hub's signing keys, and their rows in a database, which hold the private halves sealed."""

from __future__ import annotations

from enum import StrEnum

import attrs

from auth.keys import KEYS_MAX, KeyFormatError, KeySet, SigningKey
from proxy.hub.store.secrets.sealing import Seal, SealError


class KeyState(StrEnum):
    """What a signing key does. All of them verify."""

    PUBLISHED = "published"
    """It signs as soon as all hubs can verify its signatures."""
    ACTIVE = "active"
    RETIRING = "retiring"
    """It signs no more, and goes when the tokens that it has signed have expired."""


@attrs.frozen
class SigningKeys:
    """The hub's signing keys: one signs, and all verify, for the overlap of a rotation."""

    active: SigningKey
    all: tuple[SigningKey, ...]
    succession: tuple[str, ...] = ()
    """The statements that lead from older keys to the active one, oldest first."""
    published: SigningKey | None = None
    """The next key, between the two steps of a rotation."""
    public: KeySet = attrs.field(init=False)
    """For agents, and for the hub to verify its own tokens; the active key is the first."""

    @public.default
    def _public_of_all(self) -> KeySet:
        others = sorted((key for key in self.all if key.kid != self.active.kid), key=lambda key: key.kid)
        return KeySet(key.public for key in (self.active, *others))

    @property
    def pins(self) -> KeySet:
        """The keys that a newly enrolled relay gets: none that is about to be removed."""
        return KeySet([self.active.public])

    def state_of(self, kid: str) -> KeyState:
        """Return the state of one of these keys."""
        if kid == self.active.kid:
            return KeyState.ACTIVE
        is_next = self.published is not None and kid == self.published.kid
        return KeyState.PUBLISHED if is_next else KeyState.RETIRING


@attrs.frozen
class SealedKey:
    """The row of one key."""

    kid: str
    state: KeyState
    sealed: str = attrs.field(repr=False)

    def open(self, seal: Seal) -> SigningKey:
        """Return the key; raises SealError."""
        row = row_of(self.kid)
        try:
            return SigningKey.from_pem(seal.open(self.sealed, row))
        except KeyFormatError:
            raise SealError(f"{row!a} holds no signing key") from None


@attrs.frozen
class SealedKeys:
    """The rows of all keys; none of a hub whose keys are in its data folder."""

    keys: tuple[SealedKey, ...] = ()
    succession: tuple[str, ...] = ()

    def open(self, seal: Seal) -> SigningKeys:
        """Return the keys; raises SealError."""
        keys = {row.kid: row.open(seal) for row in self.keys}
        active = [keys[row.kid] for row in self.keys if row.state is KeyState.ACTIVE]
        published = [keys[row.kid] for row in self.keys if row.state is KeyState.PUBLISHED]
        if len(active) != 1 or len(published) > 1:
            raise SealError(f"signing_keys has {len(active)} active and {len(published)} published keys")
        if len(keys) > KEYS_MAX:
            raise SealError(f"signing_keys has {len(keys)} keys, more than {KEYS_MAX}")
        return SigningKeys(active[0], tuple(keys.values()), self.succession, next(iter(published), None))


def row_of(kid: str) -> str:
    """Return the name that a key's row is sealed for."""
    return f"signing_keys/{kid}"
