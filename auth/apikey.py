"""API keys: what an agent or an operator shows before it has anything better.

`hws_` + 43 characters of secret + 6 of checksum. The prefix lets secret scanners find a leaked key; the
checksum lets them, and us, tell a key from a look-alike without asking a store.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib

PREFIX = "hws_"
SECRET_BYTES = 32
_SECRET_LENGTH = 43  # 62 ** 43 > 2 ** 256
_CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}")


class ApiKeyError(Exception):
    """Text that is not an API key; the message never holds the text."""


def new_api_key(random: bytes) -> str:
    """Make a key of 32 random bytes, which the caller takes from the system's generator."""
    if len(random) != SECRET_BYTES:
        raise ValueError(f"an API key is made of {SECRET_BYTES} random bytes, not {len(random)}")
    secret = _base62(int.from_bytes(random, "big"), _SECRET_LENGTH)
    return f"{PREFIX}{secret}{_checksum(secret)}"


def parse(text: str) -> str:
    """Return the key if it is whole and its checksum fits; raises ApiKeyError for all else.

    Says nothing about whether the key is known: it saves the store from noise and the user from half a paste.
    """
    if _KEY.fullmatch(text) is None:
        raise ApiKeyError(
            f"not an API key: it must be '{PREFIX}' and {_SECRET_LENGTH + _CHECKSUM_LENGTH} letters or digits"
        )
    secret = text[len(PREFIX) : -_CHECKSUM_LENGTH]
    if text[-_CHECKSUM_LENGTH:] != _checksum(secret):
        raise ApiKeyError("not an API key: its checksum does not fit (is it whole?)")
    return text


def hash(key: str, pepper: bytes) -> str:
    """Return what a store keeps instead of the key: HMAC-SHA256 under a pepper that is not in the store.

    A slow password hash would add nothing against 256 random bits and would cost each login 360 ms.
    """
    return hmac.new(pepper, key.encode("ascii"), hashlib.sha256).hexdigest()


def _checksum(secret: str) -> str:
    return _base62(zlib.crc32(secret.encode("ascii")), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
