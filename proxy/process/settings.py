"""Settings that both a hub and a relay have, their limits, and what is wrong with a value."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

MIB = 1024 * 1024
# Three times what 256 idle calls of one agent take in direct mode.
MEMORY_MIB_MIN = 64
# The interval of PINGs on an idle tunnel, for middleboxes that forget idle connections early. A tunnel with
# streams sends one in 5 s anyway. The maximum is how long a lost session can be resumed.
PING_S = 30
PING_S_MIN = 5
PING_S_MAX = 60


def fault_of_hub_url(url: str) -> str | None:
    """What is wrong with a hub's URL, or None. Hub and relay must spell it alike."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme != "https" or not parts.hostname or port == 0 or not re.fullmatch(r"[!-~]+", url):
        return "expected https://host or https://host:port"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user name or password"
    if "%" in parts.netloc:
        return "an address with a zone is in no certificate: use another address, or a name"
    if parts.path.rstrip("/") or "?" in url or "#" in url:
        return "the hub is at the root of its host, so no path, query or fragment"
    if url != url.lower():
        # Tokens compare the issuer as a string (RFC 7519 section 4.1.1), so there is one spelling.
        return "write it in lower case"
    return None


def fault_of_memory(mib: int) -> str | None:
    """What is wrong with the memory limit of a hub or a relay, or None."""
    return None if mib >= MEMORY_MIB_MIN else f"expected {MEMORY_MIB_MIN} or more"


def fault_of_ping(ping_s: int) -> str | None:
    """What is wrong with the PING interval, or None."""
    return None if PING_S_MIN <= ping_s <= PING_S_MAX else f"expected {PING_S_MIN} to {PING_S_MAX} seconds"
