"""The hub's time as it tells it to an agent or a relay whose clock is wrong: a text that it alone can make.

They date what they sign by that time though their own clock says otherwise. If anybody could name the time,
whoever answers once in the hub's place (by a stolen certificate, or where TLS is ended before the hub) could
name times to come, and have a store of assertions and hellos that are good then: what a key has signed is to
be worth nothing a minute later. So the text holds a MAC of the time, what is signed repeats it, and the hub
takes that for no other time. How far the clock is off does not matter then.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re

_TEXT = re.compile(r"([0-9]{1,11})\.[0-9a-f]{64}")


def hub_time(pepper: bytes, now: float) -> str:
    """Return the time with its MAC, under the pepper that also keys the stored hashes of keys and codes."""
    seconds = math.floor(now)
    # No key and no code begins so.
    return f"{seconds}.{hmac.new(pepper, b'hub time %d' % seconds, hashlib.sha256).hexdigest()}"


def is_hub_time(text: str, pepper: bytes, seconds: int) -> bool:
    """Whether the text, which is ASCII, is what the hub with this pepper has told at that time."""
    return hmac.compare_digest(text, hub_time(pepper, seconds))


def seconds_of(text: str) -> int | None:
    """The time in a text of that form, None where it is none. Its MAC is the hub's to check."""
    match = _TEXT.fullmatch(text)
    return None if match is None else int(match[1])
