"""The hub's signing keys while it runs: rotation, and the removal of old keys.

A new key signs at once, without an interruption: before its first token, relays get a statement about it that
the old key has signed (auth/key_rotation.py), and the hub accepts both keys. The old key is removed after
OVERLAP_S, when all tokens that it signed have expired. Its statement stays, so that a relay enrolled under
the old key can follow the rotations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

import trio

from auth.assertion import LIFETIME_S
from auth.jws import TokenError
from auth.key_rotation import ROTATIONS_MAX, KeyRotation, issue_rotation, read_rotation
from auth.keys import KeySet, SigningKey
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.private_files import DataDirError
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.signing_keys import SigningKeys

# Twice the lifetime of a token: the second half covers clock differences and suspended processes.
OVERLAP_S = 2.0 * LIFETIME_S
# How often to check for expired keys.
LOOK_S = 5.0

_log = logging.getLogger("hawse.hub.keys")


class KeyRing:
    """The keys of one hub; `on_rotation` is called, without a checkpoint, as soon as a new key signs."""

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
        self.current = self._committed(data.keys.load_or_make())

    def reload(self) -> None:
        """Read the keys again, because another hub may have changed them; raises DataDirError."""
        self.current = self._committed(self._data.keys.load_or_make())

    def retiring(self) -> dict[str, int]:
        """The keys that only verify, each with the time of its removal (epoch seconds)."""
        keys = {key.kid for key in self.current.all} - {self.current.active.kid}
        return {
            statement.signer: statement.retires_at
            for statement in self._statements(self.current)
            if statement.signer in keys
        }

    async def rotate(self) -> str:
        """Sign with a new key from now on, and return the `kid` of the old one.

        Raises StoreUnavailableError, and then the old key still signs. Cancelled while it waits for another
        change, nothing has changed; once begun it runs to its end.
        """
        before = await self._change(self._rotated)
        _log.warning("the hub signs with key %s from now on", self.current.active.kid)
        return before.active.kid

    async def run(self) -> NoReturn:
        """Drop expired keys; a folder that cannot be written is logged and tried again."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.drop_retired()
            except StoreUnavailableError as error:
                _log.error("cannot drop an expired signing key: %s", error)

    async def drop_retired(self) -> None:
        """Drop the keys whose tokens have all expired, from the folder too; raises StoreUnavailableError."""
        gone = [kid for kid, at in self.retiring().items() if at <= self._clock()]
        if gone:
            await self._change(self._pruned)
            _log.info("dropped signing key %s: all its tokens have expired", ", ".join(gone))

    async def _change(self, change: Callable[[SigningKeys], SigningKeys]) -> SigningKeys:
        """Make a change, and return the keys as they were before it."""
        async with self._limiter:
            keys = change(self.current)
            try:
                # Not abandoned on cancellation: the folder and the keys in use must not differ.
                await trio.to_thread.run_sync(self._data.keys.store, keys)
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
        """Return the keys without an unfinished rotation, which a crash may have left.

        The new key of such a rotation has signed nothing. Its statement is the last one, signed by the active
        key.
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

    def _statements(self, keys: SigningKeys) -> list[KeyRotation]:
        """Return the rotation statements whose signing keys still exist."""
        found = []
        for statement in keys.succession:
            try:
                found.append(read_rotation(statement, keys.public.get))
            except TokenError:
                continue  # its key was removed
        return found
