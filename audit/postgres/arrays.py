"""Encodes columns of a batch as PostgreSQL's binary arrays.

A batch is one array per column, so that one statement inserts it. psycopg's own dumpers take several times as
long: they dispatch on the type of each element.

The format is that of `array_recv` (PostgreSQL, src/backend/utils/adt/arrayfuncs.c): the number of dimensions,
a flag for nulls, the type of the elements, their number, the first index, and each element with its length.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

# Types of elements (PostgreSQL, src/include/catalog/pg_type.dat).
_BYTEA, _INT8, _INT4, _TEXT, _UUID = 17, 20, 23, 25, 2950

_HEADER = struct.Struct("!5i")
_length = struct.Struct("!i").pack
# The length of a UUID, in hexadecimal digits.
_UUID_LENGTH = "00000010"
# Names and kinds repeat from batch to batch.
_TEXTS_MAX = 1024


def int4(value: int) -> bytes:
    """One integer of 32 bits."""
    return _length(value)


int8 = struct.Struct("!q").pack


def uuid(text: str) -> bytes:
    """One UUID."""
    return bytes.fromhex(text.replace("-", ""))


def int8s(values: Sequence[int]) -> bytes:
    """An array of 64-bit integers."""
    parts = chain.from_iterable(zip([8] * len(values), values, strict=True))
    return _header(_INT8, values) + struct.pack("!" + "iq" * len(values), *parts)


def int4s(values: Sequence[int]) -> bytes:
    """An array of 32-bit integers."""
    parts = chain.from_iterable(zip([4] * len(values), values, strict=True))
    return _header(_INT4, values) + struct.pack(f"!{2 * len(values)}i", *parts)


def uuids(values: Sequence[str]) -> bytes:
    """An array of UUIDs, from their texts."""
    digits = _UUID_LENGTH.join(["", *values]).replace("-", "")
    return _header(_UUID, values) + bytes.fromhex(digits)


def texts(values: Sequence[str]) -> bytes:
    """An array of texts."""
    return _header(_TEXT, values) + b"".join(map(_text, values))


def blobs(values: Sequence[bytes]) -> bytes:
    """An array of byte strings."""
    lengths = map(_length, map(len, values))
    return _header(_BYTEA, values) + b"".join(chain.from_iterable(zip(lengths, values, strict=True)))


def _header(kind: int, values: Sequence[object]) -> bytes:
    return _HEADER.pack(1, 0, kind, len(values), 1)


@lru_cache(_TEXTS_MAX)
def _text(value: str) -> bytes:
    encoded = value.encode()
    return _length(len(encoded)) + encoded
