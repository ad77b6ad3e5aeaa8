"""The hub's signing keys while it runs: rotation, and the removal of old keys.

A rotation has two steps. First the new key is published: all hubs that use these keys verify by it. Then it
is active: the old key signs a statement about it (auth/key_rotation.py), relays get that before the first
token of the new key, and all hubs accept both keys. So a token that one hub signs is known to all others. A
crash between the steps leaves a published key, which a later start makes active.

The old key is removed after OVERLAP_S, when all tokens that it signed have expired. Its statement stays, so
that a relay enrolled under the old key can follow the rotations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NoReturn, Protocol, TypeAlias

import attrs
import trio

from auth.assertion import LIFETIME_S
from auth.jws import TokenError
from auth.key_rotation import ROTATIONS_MAX, KeyRotation, issue_rotation, read_rotation
from auth.keys import KEYS_MAX, SigningKey
from proxy.hub.home.files.key_folder import KeyFolder
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.store.engines.errors import ConflictError, StoreUnavailableError
from proxy.hub.store.secrets.signing_keys import KeyState, SigningKeys

# Twice the lifetime of a token: the second half covers clock differences and suspended processes.
OVERLAP_S = 2.0 * LIFETIME_S
# How often to check for expired keys, and for a published key that a crash has left.
LOOK_S = 5.0

Step: TypeAlias = Callable[[SigningKeys], SigningKeys]

_log = logging.getLogger("hawse.hub.keys")


class KeySource(Protocol):
    """Where the keys of a ring are kept."""

    def read(self) -> SigningKeys:
        """Return the keys that are there; raises DataDirError."""
        ...

    async def change(self, *steps: Step) -> SigningKeys:
        """Make each step when all hubs that use these keys have the one before, and return the result.

        Raises StoreUnavailableError; the steps before may have been made. Cancelled while it waits for
        another change, the rest is not made; a step that has begun runs to its end.
        """
        ...

    async def spread(self) -> None:
        """Return when all hubs have the keys that are there; raises StoreUnavailableError."""
        ...


class FolderKeyring:
    """The keys in a data folder, which one hub uses: all steps are one change."""

    def __init__(self, folder: KeyFolder) -> None:
        self._folder = folder
        # One change of the folder at a time.
        self._limiter = trio.CapacityLimiter(1)

    def read(self) -> SigningKeys:
        """Return the keys, making the first one at the first start; raises DataDirError."""
        return self._folder.load_or_make()

    async def change(self, *steps: Step) -> SigningKeys:
        """Make the steps, and return the result; raises StoreUnavailableError."""
        try:
            # Not abandoned on cancellation: the folder and the keys in use must not differ.
            return await trio.to_thread.run_sync(partial(self._change, *steps), limiter=self._limiter)
        except DataDirError as error:
            raise StoreUnavailableError(str(error)) from error

    async def spread(self) -> None:
        """Return: there is no other hub."""

    def _change(self, *steps: Step) -> SigningKeys:
        keys = self._folder.load_or_make()
        for step in steps:
            keys = step(keys)
        return self._folder.store(keys)


class KeyRing:
    """The keys of one hub; `on_rotation` is called, without a checkpoint, as soon as a new key signs."""

    def __init__(
        self, source: KeySource, *, issuer: str, clock: Callable[[], float], on_rotation: Callable[[], None]
    ) -> None:
        """Read the keys; raises DataDirError."""
        self._source = source
        self._issuer = issuer
        self._clock = clock
        self._on_rotation = on_rotation
        self.current = source.read()

    def reload(self) -> None:
        """Read the keys again, because another hub may have changed them; raises DataDirError."""
        self._replace(self._source.read())

    def follow(self) -> None:
        """Read the keys again after a change of the directory. Keys that do not open change nothing."""
        try:
            self.reload()
        except DataDirError as error:
            _log.error("cannot use the signing keys that another hub has changed: %s", error)

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

        Raises ConflictError at the limit of keys, and StoreUnavailableError. Then, and when this is cancelled
        while it waits for another change, the old key still signs; if the new one was published by then,
        `run` makes it active.
        """
        published = ""

        def publish(keys: SigningKeys) -> SigningKeys:
            nonlocal published
            keys = self._published(keys)
            assert keys.published is not None
            published = keys.published.kid
            return keys

        await self._change(publish, lambda keys: self._activated(published, keys))
        # The last statement is the one of this rotation.
        return self._statements(self.current)[-1].signer

    async def activate(self) -> None:
        """Sign with the published key, if there is one; raises StoreUnavailableError."""
        if (published := self.current.published) is not None:
            await self._source.spread()
            await self._change(partial(self._activated, published.kid))

    async def run(self) -> NoReturn:
        """Drop expired keys, and finish rotations; a failure is logged and tried again."""
        while True:
            await trio.sleep(LOOK_S)
            for finish, what in (
                (self.activate, "sign with a published key"),
                (self.drop_retired, "drop an expired signing key"),
            ):
                try:
                    await finish()
                except StoreUnavailableError as error:
                    _log.error("cannot %s: %s", what, error)

    async def drop_retired(self) -> None:
        """Drop the keys whose tokens have all expired, from the folder too; raises StoreUnavailableError."""
        gone = [kid for kid, at in self.retiring().items() if at <= self._clock()]
        if gone:
            await self._change(self._pruned)
            _log.info("dropped signing key %s: all its tokens have expired", ", ".join(gone))

    async def _change(self, *steps: Step) -> None:
        self._replace(await self._source.change(*steps))

    def _replace(self, keys: SigningKeys) -> None:
        before, self.current = self.current, keys
        if before.active.kid != keys.active.kid:
            _log.warning("the hub signs with key %s from now on", keys.active.kid)
            self._on_rotation()

    def _published(self, keys: SigningKeys) -> SigningKeys:
        if keys.published is not None:
            # A rotation that was cut short, or one of another hub, is finished instead.
            return keys
        if len(keys.all) >= KEYS_MAX:
            raise ConflictError(f"the hub has {KEYS_MAX} signing keys, the limit: try in {OVERLAP_S:.0f} s")
        new = SigningKey.generate()
        return attrs.evolve(keys, all=(*keys.all, new), published=new)

    def _activated(self, published: str, keys: SigningKeys) -> SigningKeys:
        new, now = keys.published, self._clock()
        if new is None or new.kid != published:
            # Another hub has done it. If it has published the next key, some hub may not know that one yet.
            return keys
        statement = issue_rotation(
            keys.active, issuer=self._issuer, successor=new.public, now=now, retires_at=now + OVERLAP_S
        )
        succession = (*keys.succession, statement)[-ROTATIONS_MAX:]
        return SigningKeys(new, keys.all, succession)

    def _pruned(self, keys: SigningKeys) -> SigningKeys:
        now = self._clock()
        ends = {statement.signer: statement.retires_at for statement in self._statements(keys)}
        kept = tuple(
            key
            for key in keys.all
            if keys.state_of(key.kid) is not KeyState.RETIRING or ends.get(key.kid, now) > now
        )
        return attrs.evolve(keys, all=kept)

    def _statements(self, keys: SigningKeys) -> list[KeyRotation]:
        """Return the rotation statements whose signing keys still exist."""
        found = []
        for statement in keys.succession:
            try:
                found.append(read_rotation(statement, keys.public.get))
            except TokenError:
                continue  # its key was removed
        return found
