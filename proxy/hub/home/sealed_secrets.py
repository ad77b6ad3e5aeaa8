"""The secrets of a hub whose directory is in PostgreSQL: sealed rows, and the file that opens them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from audit.store import TrailMark
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.sealed import HubSecrets, SealedSecrets
from proxy.hub.store.secrets.sealing import Seal, SealError, UnknownSealingKeyError
from proxy.hub.store.secrets.signing_keys import SealedKeys, SigningKeys
from proxy.hub.store.store import Store

T = TypeVar("T")


def open_secrets(store: Store, trail: TrailMark | None, file: SealFile) -> HubSecrets:
    """Open the secrets, making them at the first start; raises DataDirError, StoreUnavailableError.

    `trail` is the one that the database names, if a hub has run on it. Secrets that a later key of the file
    has sealed are sealed by the first one.
    """
    found = store.sealed_secrets()
    if found.missing:
        _refuse_lost(trail)
        # The file is written first, since nothing opens the secrets without their key.
        seal = file.load_or_make()
        found = store.put_secrets(HubSecrets.generate(), seal)
    else:
        seal = file.load()
    opened = _opened(found.open, seal, file)
    if not found.is_current(seal):
        _opened(store.reseal, seal, file)
    return opened


def check_secrets(found: SealedSecrets, trail: TrailMark | None, file: SealFile) -> None:
    """Raise DataDirError where `open_secrets` would; changes nothing."""
    if not found.missing:
        _opened(found.open, file.load(), file)
        return
    _refuse_lost(trail)
    file.check()


def _refuse_lost(trail: TrailMark | None) -> None:
    if trail is not None:
        raise DataDirError(
            "the database of database.url has no signing keys, though a hub has run on it: restore a backup"
        )


class SealedKeyring:
    """The signing keys in the database, as the directory's snapshot has them."""

    def __init__(self, directory: Changes, file: SealFile, spread: Callable[[], Awaitable[None]]) -> None:
        """`spread` returns when all hubs have this hub's snapshot; raises StoreUnavailableError."""
        self._directory = directory
        self._file = file
        self._spread = spread
        self._last: tuple[SealedKeys, SigningKeys] | None = None

    def read(self) -> SigningKeys:
        """Return the keys of the snapshot; raises DataDirError."""
        rows = self._directory.current.signing_keys
        if self._last is None or self._last[0] != rows:
            self._last = rows, _opened(rows.open, self._file.load(), self._file)
        return self._last[1]

    async def change(self, *steps: Callable[[SigningKeys], SigningKeys]) -> SigningKeys:
        """Make each step when the snapshots of all hubs have the one before.

        Raises StoreUnavailableError; the steps before may have been made.
        """
        try:
            for number, step in enumerate(steps):
                if number:
                    await self.spread()
                await self._directory.change(partial(self._change, step))
            return self.read()
        except DataDirError as error:
            raise StoreUnavailableError(str(error)) from error

    async def spread(self) -> None:
        """Return when the snapshots of all hubs have the keys; raises StoreUnavailableError."""
        try:
            await self._spread()
        except StoreUnavailableError as error:
            raise StoreUnavailableError(
                f"the new key is published, and signs by itself once every hub verifies by it: {error}"
            ) from error

    def _change(self, step: Callable[[SigningKeys], SigningKeys], store: Store) -> None:
        _opened(partial(store.change_signing_keys, step), self._file.load(), self._file)


def _opened(use: Callable[[Seal], T], seal: Seal, file: SealFile) -> T:
    """Return what `use` returns; raises DataDirError for rows that the keys of the file do not open."""
    try:
        return use(seal)
    except UnknownSealingKeyError as error:
        raise DataDirError(
            f"{file.path} does not open the secrets in the database: {error}: copy the file from the hub "
            "that has run on this database, or from a backup"
        ) from error
    except SealError as error:
        raise DataDirError(f"the secrets in the database are damaged: {error}: restore a backup") from error
