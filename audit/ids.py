"""Event ids: UUID version 7 (RFC 9562 section 5.7). They sort by time, so an index on them stays local."""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache

_TIMESTAMP_MAX_MS = 1 << 48
# Random bytes are read from the kernel for this many ids at once: one read costs more than the rest of an id.
IDS_AT_ONCE = 256
# Each entry is used once: `pop` is atomic, so any thread may call it.
_unused: list[str] = []
# A random byte with the version in its upper half, and one with the variant in its two top bits.
_VERSION = bytes(0x70 | byte & 0x0F for byte in range(256))
_VARIANT = bytes(0x80 | byte & 0x3F for byte in range(256))
_GROUPS = re.compile("(.{4})(.{4})(.{12})")


def uuid7(now_ms: int, random10: bytes) -> str:
    """Build an id from milliseconds since the epoch and ten random bytes.

    RFC 9562: a 48-bit big-endian timestamp, the version in the high nibble of byte 6, the variant in the top
    two bits of byte 8; 74 of the 80 random bits remain.
    """
    if not 0 <= now_ms < _TIMESTAMP_MAX_MS:
        raise ValueError(f"timestamp of {now_ms} ms does not fit 48 bits")
    if len(random10) != 10:
        raise ValueError(f"10 random bytes are needed, not {len(random10)}")
    return _beginning(now_ms) + _ends(random10)[0]


def first_id(now_ms: int) -> str:
    """A lower bound of the ids of this millisecond and later ones, for comparisons as text."""
    return _beginning(min(max(0, now_ms), _TIMESTAMP_MAX_MS - 1))


def milliseconds(prefix: str) -> tuple[int, int]:
    """The creation times of ids with this prefix: earliest and latest millisecond since the epoch."""
    digits = prefix.replace("-", "")[:12]
    return int(digits.ljust(12, "0"), 16), int(digits.ljust(12, "f"), 16)


# A busy hub makes many ids per millisecond.
@lru_cache(1)
def _beginning(now_ms: int) -> str:
    return f"{now_ms >> 16:08x}-{now_ms & 0xFFFF:04x}-"


def _ends(random: bytes) -> list[str]:
    """The parts of ids after the timestamps, one per ten random bytes."""
    marked = bytearray(random)
    marked[0::10] = random[0::10].translate(_VERSION)
    marked[2::10] = random[2::10].translate(_VARIANT)
    return ["-".join(groups) for groups in _GROUPS.findall(marked.hex())]


def new_eid() -> str:
    """Make an id for an event that happens now; callable from any thread."""
    try:
        end = _unused.pop()
    except IndexError:
        # Two threads may refill at once; then there are just more entries.
        end, *others = _ends(os.urandom(10 * IDS_AT_ONCE))
        _unused.extend(others)
    return _beginning(time.time_ns() // 1_000_000) + end
