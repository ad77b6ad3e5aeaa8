"""The hub's signing keys while it runs: a rotation, and the end of the key before it.

The new key signs at once. That interrupts nobody: relays hear of it, in the old key's own words, before the
first token that it signs (auth/key_rotation.py), and the hub verifies by both. The old key goes after
OVERLAP_S, when every token that it signed has ended; its statement stays, so that a relay that was enrolled
under it finds its way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

import trio

from auth.jws import TokenError
from auth.key_rotation import ROTATIONS_MAX, KeyRotation, issue_rotation, read_rotation
from auth.keys import KeySet, SigningKey
from auth.signed import LIFETIME_S
from proxy.hub.home.datadir import DataDir, DataDirError, SigningKeys
from proxy.hub.store.errors import StoreUnavailableError

# Twice the life of a token: what is left covers clocks that differ, and whoever was suspended meanwhile.
OVERLAP_S = 2.0 * LIFETIME_S
# Between two looks for keys whose time is over.
LOOK_S = 5.0

_log = logging.getLogger("hawse.hub.keys")


class KeyRing:
    """The keys of one hub; `on_rotation` is called, without a wait, as soon as a new one signs."""

    def __init__(
        self, data: DataDir, *, issuer: str, clock: Callable[[], float], on_rotation: Callable[[], None]
    ) -> None:
        """Load the keys, making the first one at the first start; raises DataDirError."""
        self._data = data
        self._issuer = issuer
        self._clock = clock
        self._on_rotation = on_rotation
        # One change of the folder at a time.
        self._limiter = trio.CapacityLimiter(1)
        self.current = self._committed(data.signing_keys())

    def reload(self) -> None:
        """Take what stands in the folder, which another hub had until now; raises DataDirError."""
        self.current = self._committed(self._data.signing_keys())

    def retiring(self) -> dict[str, int]:
        """The keys that verify and do not sign any more, each with the end of its time (epoch seconds)."""
        keys = {key.kid for key in self.current.all} - {self.current.active.kid}
        return {said.signer: said.retires_at for said in self._said(self.current) if said.signer in keys}

    async def rotate(self) -> str:
        """Let a new key sign from now on, and return the `kid` of the one before.

        Raises StoreUnavailableError, and then the old one still signs. Cancelled while it waits for its turn,
        nothing has happened; once begun it runs to its end.
        """
        before = await self._change(self._rotated)
        _log.warning("the hub signs with key %s from now on", self.current.active.kid)
        return before.active.kid

    async def run(self) -> NoReturn:
        """Drop the keys whose time is over; a folder that cannot be written is logged and tried again."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.drop_retired()
            except StoreUnavailableError as error:
                _log.error("cannot drop a signing key whose time is over: %s", error)

    async def drop_retired(self) -> None:
        """Drop the keys whose every token has ended, from the folder too; raises StoreUnavailableError."""
        gone = [kid for kid, at in self.retiring().items() if at <= self._clock()]
        if gone:
            await self._change(self._pruned)
            _log.info("dropped signing key %s: every token by it has ended", ", ".join(gone))

    async def _change(self, change: Callable[[SigningKeys], SigningKeys]) -> SigningKeys:
        """Make a change, and return the keys as they were before it."""
        async with self._limiter:
            keys = change(self.current)
            try:
                # Not abandoned on cancellation: the folder and what is in use here must not differ.
                await trio.to_thread.run_sync(self._data.store_signing_keys, keys)
            except DataDirError as error:
                raise StoreUnavailableError(str(error)) from error
            before, self.current = self.current, keys
            if before.active.kid != keys.active.kid:
                self._on_rotation()
            return before

    def _rotated(self, keys: SigningKeys) -> SigningKeys:
        now, new = self._clock(), SigningKey.generate()
        statement = issue_rotation(
            keys.active, issuer=self._issuer, successor=new.public, now=now, retires_at=now + OVERLAP_S
        )
        succession = (*keys.succession, statement)[-ROTATIONS_MAX:]
        return SigningKeys(new, (*keys.all, new), succession)

    def _pruned(self, keys: SigningKeys) -> SigningKeys:
        now = self._clock()
        retiring = self.retiring()
        kept = tuple(
            key for key in keys.all if key.kid == keys.active.kid or retiring.get(key.kid, now) > now
        )
        return SigningKeys(keys.active, kept, keys.succession)

    def _committed(self, keys: SigningKeys) -> SigningKeys:
        """The keys without what a crash left of a rotation that was never announced.

        Such a key has signed nothing: its statement stands last, and is signed by the key that is active.
        """
        if not keys.succession:
            return keys
        try:
            last = read_rotation(keys.succession[-1], KeySet([keys.active.public]).get)
        except TokenError:
            return keys
        succession = keys.succession[:-1]
        kept = tuple(key for key in keys.all if key.kid != last.successor)
        return SigningKeys(keys.active, kept, succession)

    def _said(self, keys: SigningKeys) -> list[KeyRotation]:
        """What the statements of keys that are still here say."""
        said = []
        for statement in keys.succession:
            try:
                said.append(read_rotation(statement, keys.public.get))
            except TokenError:
                continue  # by a key that is gone
        return said
