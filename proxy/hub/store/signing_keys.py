"""The hub's signing keys, apart from where they are kept."""

from __future__ import annotations

import attrs

from auth.keys import KeySet, SigningKey


@attrs.frozen
class SigningKeys:
    """The hub's signing keys: one signs, and all verify, for the overlap of a rotation."""

    active: SigningKey
    all: tuple[SigningKey, ...]
    succession: tuple[str, ...] = ()
    """The statements that lead from older keys to the active one, oldest first."""
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
