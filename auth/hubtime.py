"""A hub time that the hub authenticates, for agents and relays whose clocks are wrong.

They date what they sign by this time, although their own clock disagrees. Suppose that any peer could state
the time. An attacker who answers once as the hub (with a stolen certificate, or where TLS ends before the
hub) could then state future times. The victim would sign a stock of assertions and hellos that become valid
later, although a signature must be worthless a minute after it was made.

So the text carries a MAC of the time. The signed token repeats the text, and the hub accepts it for that time
only. How far the client's clock is off does not matter.
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
    # No key and no code begins with this prefix, so the MACs cannot collide.
    return f"{seconds}.{hmac.new(pepper, b'hub time %d' % seconds, hashlib.sha256).hexdigest()}"


def is_hub_time(text: str, pepper: bytes, seconds: int) -> bool:
    """Whether the text, which is ASCII, is the one that the hub with this pepper makes for that time."""
    return hmac.compare_digest(text, hub_time(pepper, seconds))


def seconds_of(text: str) -> int | None:
    """The time in a text of this form, or None. Only the hub can check its MAC."""
    match = _TEXT.fullmatch(text)
    return None if match is None else int(match[1])
