"""The file of the keys that seal the secrets in PostgreSQL (proxy/hub/store/secrets/sealing.py).

One key a line, in hexadecimal. The first one seals, and all open, so that a key can be replaced.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

from proxy.hub.home.files.private_files import DataDirError, is_there, read_private, write_private
from proxy.hub.store.secrets.sealing import KEY_BYTES, KEYS_MAX, Seal

# The name of the file in the data folder.
SEAL_FILE = "seal.key"
_KEY = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}")


def fault_of_seal_file(stated: Path) -> str | None:
    """Return why a start can neither read nor make the file; repeats nothing that may be the key itself."""
    if _KEY.fullmatch(stated.name):
        return "must name a file, and not be the key itself"
    # Not Path.is_dir, which raises below a folder without access.
    return None if os.path.isdir(stated.parent) else "its folder does not exist"


@attrs.frozen
class SealFile:
    """The file, in the data folder or elsewhere."""

    path: Path

    def load(self) -> Seal:
        """Load the keys; raises DataDirError."""
        if not is_there(self.path):
            raise DataDirError(
                f"{self.path} is missing, with the key that opens the signing keys in the database: copy it "
                "from the hub that has run on this database, or from a backup"
            )
        # A running hub reads the file too, and a pipe would make it wait for a writer.
        if not self.path.is_file():
            raise DataDirError(f"{self.path} is not a regular file: put the file with the key there")
        keys = []
        for number, line in enumerate(read_private(self.path).splitlines(), 1):
            if not line.strip():
                continue
            try:
                key = bytes.fromhex(line.decode("ascii"))
            except ValueError:
                key = b""  # not chained: the cause would quote the secret
            if len(key) != KEY_BYTES:
                raise DataDirError(
                    f"{self.path}: line {number} is not {KEY_BYTES} bytes in hexadecimal; correct it, or "
                    "restore the file from a backup"
                )
            keys.append(key)
        if not 1 <= len(keys) <= KEYS_MAX:
            raise DataDirError(
                f"{self.path} holds {len(keys)} keys, and not 1 to {KEYS_MAX}; restore it from a backup"
            )
        return Seal(tuple(keys))

    def check(self) -> None:
        """Raise DataDirError if there is a file that cannot be used, or a link without one."""
        if self.path.is_symlink() or is_there(self.path):
            self.load()

    def load_or_make(self) -> Seal:
        """Load the keys, making one if the file is missing; raises DataDirError."""
        if not is_there(self.path):
            made = Seal.generate()
            # Another hub with this file may have made it, and sealed by it, meanwhile.
            write_private(self.path, made.keys[0].hex().encode("ascii") + b"\n", replace=False)
        return self.load()
