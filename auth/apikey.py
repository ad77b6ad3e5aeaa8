"""API keys and one-time codes: the first credential of an agent or an operator.

Each is a prefix, a secret in base 62, and a checksum of 6 characters. An API key is `hws_` and a secret of 43
characters. A code is `hwc_` and a secret of 27 characters; it enrols one key and is then worthless. A code
that signs a browser in to the console is `hwo_` and as long. The prefix lets secret scanners find a leaked
credential. The checksum tells it from a look-alike without a store lookup.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib

import attrs

PREFIX = "hws_"
SECRET_BYTES = 32
CODE_PREFIX = "hwc_"
CONSOLE_CODE_PREFIX = "hwo_"
# Cannot be guessed, and is short enough to type once.
CODE_BYTES = 20
# Of the hub's secret that keys the hashes of all of them.
PEPPER_BYTES = 32
_CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class ApiKeyError(Exception):
    """Text that is not an API key or a code; the message never contains the text."""


@attrs.frozen
class _Form:
    """The format of one kind of secret."""

    name: str
    prefix: str
    secret_bytes: int
    length: int

    def write(self, random: bytes) -> str:
        if len(random) != self.secret_bytes:
            raise ValueError(f"{self.name} needs {self.secret_bytes} random bytes, not {len(random)}")
        secret = _base62(int.from_bytes(random, "big"), self.length)
        return f"{self.prefix}{secret}{_checksum(secret)}"

    def read(self, text: str) -> str:
        characters = self.length + _CHECKSUM_LENGTH
        if re.fullmatch(rf"{self.prefix}[0-9A-Za-z]{{{characters}}}", text) is None:
            raise ApiKeyError(
                f"not {self.name}: it must be '{self.prefix}' and {characters} letters or digits"
            )
        secret = text[len(self.prefix) : -_CHECKSUM_LENGTH]
        if text[-_CHECKSUM_LENGTH:] != _checksum(secret):
            raise ApiKeyError(f"not {self.name}: its checksum does not fit (is it whole?)")
        return text


_KEY = _Form("an API key", PREFIX, SECRET_BYTES, 43)  # 62 ** 43 > 2 ** 256
_CODE = _Form("an enrolment code", CODE_PREFIX, CODE_BYTES, 27)  # 62 ** 27 > 2 ** 160
_CONSOLE_CODE = _Form("a sign-in code", CONSOLE_CODE_PREFIX, CODE_BYTES, 27)


def new_api_key(random: bytes) -> str:
    """Make a key from 32 random bytes, which the caller takes from the system's generator."""
    return _KEY.write(random)


def parse(text: str) -> str:
    """Return the key if it is complete and its checksum fits; raises ApiKeyError otherwise.

    The key may still be unknown. This check spares the store lookups of noise, and tells a user of a
    truncated paste.
    """
    return _KEY.read(text)


def new_code(random: bytes) -> str:
    """Make a one-time code from 20 random bytes, which the caller takes from the system's generator."""
    return _CODE.write(random)


def parse_code(text: str) -> str:
    """Return the code if it is complete and its checksum fits; raises ApiKeyError otherwise."""
    return _CODE.read(text)


def new_console_code(random: bytes) -> str:
    """Make a code for the console from 20 random bytes of the system's generator."""
    return _CONSOLE_CODE.write(random)


def parse_console_code(text: str) -> str:
    """Return the code for the console if it is complete and its checksum fits; raises ApiKeyError."""
    return _CONSOLE_CODE.read(text)


def hash(key: str, pepper: bytes) -> str:
    """Return what a store keeps instead of the key: HMAC-SHA256 under a pepper that is not in the store.

    A slow password hash adds nothing against 160 or more random bits, and costs 360 ms per login.
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
