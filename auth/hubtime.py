"""The hub's time as it tells it to an agent whose clock is wrong: a text that the hub alone can make.

An agent dates what it signs by that time though its own clock says otherwise. If anybody could name the time,
whoever answers once in the hub's place (by a stolen certificate, or where TLS is ended before the hub) could
name times to come, and have a store of assertions that are good then: a key of the agent's own is to be worth
nothing a minute later. So the text holds a MAC of the time, the assertion repeats it, and the hub takes that
for no other time. How far the clock is off does not matter then.
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


def seconds_of(text: str) -> int | None:
    """The time in a text of that form, None where it is none. Its MAC is the hub's to check."""
    match = _TEXT.fullmatch(text)
    return None if match is None else int(match[1])
