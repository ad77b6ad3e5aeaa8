"""Seals secrets for the rows of a database, with keys that the database does not have.

AES-256-GCM encrypts a value and authenticates the name of its row with it, so the value opens in that row
only. A reader of the database, a dump or a replica learns no secret. A writer can still remove rows, or put
an earlier value back.
"""

from __future__ import annotations

import hashlib
import secrets

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from auth.assertion import encode
from auth.keys import unbase64

KEY_BYTES = 32
# As NIST SP 800-38D has it. Nonces are random: safe for 2**32 values a key, and a hub seals dozens.
NONCE_BYTES = 12
# Two during a rotation of the sealing key. A longer file is not one of ours.
KEYS_MAX = 8
_FORM = "1"


class SealError(Exception):
    """A value that does not open; the message names its row and holds nothing of the value."""


class UnknownSealingKeyError(SealError):
    """A value that was sealed by a key which is not here."""


@attrs.frozen
class Seal:
    """The sealing keys: the first one seals, and all open."""

    keys: tuple[bytes, ...] = attrs.field(repr=False)

    @keys.validator
    def _check_keys(self, _: object, keys: tuple[bytes, ...]) -> None:
        assert 1 <= len(keys) <= KEYS_MAX
        assert all(len(key) == KEY_BYTES for key in keys)

    @classmethod
    def generate(cls) -> Seal:
        """Make a new key from the system's generator."""
        return cls((secrets.token_bytes(KEY_BYTES),))

    def seal(self, value: bytes, row: str) -> str:
        """Seal a value for the row of this name."""
        key, nonce = self.keys[0], secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, value, row.encode())
        return f"{_FORM}.{_name_of(key)}.{encode(sealed)}"

    def open(self, sealed: str, row: str) -> bytes:
        """Return the value that was sealed for the row of this name; raises SealError."""
        named = ascii(row[:100])
        form, _, rest = sealed.partition(".")
        name, _, text = rest.partition(".")
        if form != _FORM:
            raise SealError(f"{named} is not a sealed value that this version knows")
        key = next((key for key in self.keys if _name_of(key) == name), None)
        if key is None:
            raise UnknownSealingKeyError(f"{named} is sealed by another key")
        try:
            data = unbase64(text)
            return AESGCM(key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], row.encode())
        except (InvalidTag, ValueError):
            raise SealError(f"{named} is damaged, or was sealed for another row") from None

    def is_current(self, sealed: str) -> bool:
        """Return whether the first key has sealed this value."""
        return sealed.startswith(f"{_FORM}.{_name_of(self.keys[0])}.")


def _name_of(key: bytes) -> str:
    """Return a key's name, from which the key cannot be computed."""
    return hashlib.sha256(b"hawse sealing key\0" + key).hexdigest()[:16]
