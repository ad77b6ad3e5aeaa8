"""Event ids: UUID version 7 (RFC 9562 section 5.7): they sort by time, so an index on them stays local."""

from __future__ import annotations

import os
import time

_TIMESTAMP_MAX_MS = 1 << 48
# The kernel is asked for the randomness of so many at once: by itself it costs more than the rest of an id.
IDS_AT_ONCE = 256
# Each entry is used once: popping one is a single step of the interpreter, whichever thread does it.
_unused: list[str] = []
# The digit that has the two bits of the variant, by a random one.
_VARIANTS = {digit: "89ab"[int(digit, 16) & 0b11] for digit in "0123456789abcdef"}


def uuid7(now_ms: int, random10: bytes) -> str:
    """Build the id from its two ingredients: milliseconds since the epoch, and ten random bytes.

    RFC 9562: a 48-bit big-endian timestamp, the version in the high nibble of byte 6, the variant
    in the top two bits of byte 8; 74 of the 80 random bits remain.
    """
    if not 0 <= now_ms < _TIMESTAMP_MAX_MS:
        raise ValueError(f"timestamp of {now_ms} ms does not fit 48 bits")
    if len(random10) != 10:
        raise ValueError(f"10 random bytes are needed, not {len(random10)}")
    return _joined(now_ms, _end(random10.hex()))


def _joined(now_ms: int, end: str) -> str:
    stamp = f"{now_ms:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-{end}"


def _end(digits: str) -> str:
    """The id behind its timestamp, of 20 random digits: the version takes one, the variant half of one."""
    return f"7{digits[1:4]}-{_VARIANTS[digits[4]]}{digits[5:8]}-{digits[8:]}"


def new_eid() -> str:
    """Make an id for an event that happens now; from any thread."""
    try:
        end = _unused.pop()
    except IndexError:
        # Two threads may both come here, and then there are only more of them.
        many = os.urandom(10 * IDS_AT_ONCE).hex()
        _unused.extend([_end(many[start : start + 20]) for start in range(20, len(many), 20)])
        end = _end(many[:20])
    return _joined(time.time_ns() // 1_000_000, end)
