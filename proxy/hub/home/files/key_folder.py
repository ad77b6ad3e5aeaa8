"""The folder of the hub's signing keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs

from auth.jws import TokenError
from auth.key_rotation import read_rotation
from auth.keys import KeyFormatError, KeySet, SigningKey
from proxy.hub.home.files.private_files import DataDirError, explained, is_there, read_private, write_private
from proxy.hub.store.secrets.signing_keys import SigningKeys

# A signed statement (auth/key_rotation.py).
_STATEMENT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)


@attrs.frozen
class KeyFolder:
    """The folder of the signing keys: a file for each, the active key's kid, and the rotation statements."""

    path: Path
    has_run: Callable[[], bool]
    """Whether a hub has run on the data folder. Then the keys must exist."""

    def load_or_make(self) -> SigningKeys:
        """Load the signing keys, making the first one at the first start; raises DataDirError."""
        found = self.load()
        if found is not None:
            return found
        # An interrupted first start may have left a key, which is as good as a new one.
        first = next(iter(self._keys().values()), None) or SigningKey.generate()
        return self.store(SigningKeys(first, (first,)))

    def load(self) -> SigningKeys | None:
        """Load the signing keys, without a rotation that a crash has cut short.

        None before the first start has made them. Raises DataDirError.
        """
        keys = self._keys()
        active_file = self.path / "active"
        if not keys and self.has_run():
            raise DataDirError(
                f"{self.path} holds no signing key, though this hub has run before: "
                "restore a backup, since relays trust only the keys of their enrolment"
            )
        if not keys or (len(keys) == 1 and not (is_there(active_file) or self.has_run())):
            return None
        kid = read_private(active_file).decode("ascii", "replace").strip() if is_there(active_file) else ""
        if kid not in keys:
            raise DataDirError(
                f"{active_file}: names no existing key; write one of {', '.join(keys)} into it"
            )
        return _committed(SigningKeys(keys[kid], tuple(keys.values()), self._succession()))

    def _keys(self) -> dict[str, SigningKey]:
        keys = {}
        for file in self._key_files():
            try:
                key = SigningKey.from_pem(read_private(file))
            except KeyFormatError as error:
                raise DataDirError(f"{file}: {error}; restore it from a backup") from error
            if file.stem != key.kid:
                raise DataDirError(f"{file}: holds the key {key.kid}; name the file after it")
            keys[key.kid] = key
        return keys

    def _key_files(self) -> list[Path]:
        if not is_there(self.path):
            return []
        try:
            # Path.glob would treat an unreadable folder as an empty one.
            return sorted(file for file in self.path.iterdir() if file.suffix == ".pem")
        except OSError as error:
            raise DataDirError(f"cannot read {self.path}: {explained(error)}") from error

    def _succession(self) -> tuple[str, ...]:
        file = self.path / "succession"
        there = is_there(file)
        statements = tuple(read_private(file).decode("ascii", "replace").split()) if there else ()
        # Written before `active`, even before the first rotation.
        if not there or not all(map(_STATEMENT.fullmatch, statements)):
            raise DataDirError(
                f"{file}: {'damaged' if there else 'missing'}; restore it from a backup, or make it an empty "
                "file and apply new manifests for each relay that was enrolled before the last rotation "
                "(hawse admin cluster key)"
            )
        return statements

    def store(self, keys: SigningKeys) -> SigningKeys:
        """Make the folder hold exactly these keys, and return them; raises DataDirError.

        A crash in between leaves keys with which the hub starts: a new key is written before `active` names
        it, and old keys are removed last.
        """
        # A folder has one hub, so both steps of a rotation are one change.
        assert keys.published is None
        try:
            self._write(keys)
        except OSError as error:
            message = f"cannot keep the signing keys in {self.path}: {explained(error)}"
            raise DataDirError(message) from error
        return keys

    def _write(self, keys: SigningKeys) -> None:
        for key in keys.all:
            if not is_there(self.path / f"{key.kid}.pem"):
                write_private(self.path / f"{key.kid}.pem", key.to_pem())
        statements = "".join(f"{statement}\n" for statement in keys.succession)
        write_private(self.path / "succession", statements.encode("ascii"))
        write_private(self.path / "active", f"{keys.active.kid}\n".encode("ascii"))
        kept = {f"{key.kid}.pem" for key in keys.all}
        for file in self.path.glob("*.pem"):
            if file.name not in kept:
                file.unlink(missing_ok=True)


def _committed(keys: SigningKeys) -> SigningKeys:
    """Return the keys without an unfinished rotation, which a crash may have left.

    The new key of such a rotation has signed nothing. The active key has signed the last statement, about it.
    """
    if not keys.succession:
        return keys
    try:
        last = read_rotation(keys.succession[-1], KeySet([keys.active.public]).get)
    except TokenError:
        return keys
    kept = tuple(key for key in keys.all if key.kid != last.successor)
    return SigningKeys(keys.active, kept, keys.succession[:-1])
