"""Event ids: UUID version 7 (RFC 9562 section 5.7): they sort by time, so an index on them stays local."""

from __future__ import annotations

import os
import time

_TIMESTAMP_MAX_MS = 1 << 48


def uuid7(now_ms: int, random10: bytes) -> str:
    """Build the id from its two ingredients: milliseconds since the epoch, and ten random bytes.

    RFC 9562: a 48-bit big-endian timestamp, the version in the high nibble of byte 6, the variant
    in the top two bits of byte 8; 74 of the 80 random bits remain.
    """
    if not 0 <= now_ms < _TIMESTAMP_MAX_MS:
        raise ValueError(f"timestamp of {now_ms} ms does not fit 48 bits")
    if len(random10) != 10:
        raise ValueError(f"10 random bytes are needed, not {len(random10)}")
    raw = bytearray(now_ms.to_bytes(6, "big") + random10)
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_eid() -> str:
    """Make an id for an event that happens now."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
