"""Finds headers of an answer that concern one connection or one origin, so that they are not simply
forwarded.

Names are in lower case, and bytes are those of a canonical head (`proxy.message.head`), where another line
follows each line feed but the last. `proxy.message.rewrite` decides how to treat such a header. This module
only detects them; nearly every answer has none.
"""

from __future__ import annotations

import re
from itertools import groupby

# RFC 9110 7.6.1, and the equivalent names of older proxies.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# These apply to the origin, which is the hub's: no cluster may set them for all others. NEL and its
# companions make a browser report each later request to a server they name.
RESPONSE_NEVER = frozenset(
    {
        b"alt-svc",
        b"clear-site-data",
        b"expect-ct",
        b"nel",
        b"public-key-pins",
        b"report-to",
        b"service-worker-allowed",
        b"set-cookie",
        b"set-cookie2",
        b"strict-transport-security",
        # An HTTP/1.0 form of Location, which some clients still follow and no server sends.
        b"uri",
        # Commands to a web server in front of the hub: send a local file or another URL instead of this
        # answer, cache it, or (Envoy) mark the sending server as unhealthy.
        b"x-accel-expires",
        b"x-accel-redirect",
        b"x-envoy-immediate-health-check-fail",
        b"x-lighttpd-send-file",
        b"x-litespeed-location",
        b"x-reproxy-url",
        b"x-sendfile",
        b"x-sendfile2",
    }
)
# The prefix of headers that hub and relay use between each other.
RESERVED_PREFIX = b"hawse-"
# The usual connection headers, and in nearly every answer the only ones to remove. Their options name no
# headers.
HOP_LINES = frozenset(
    {b"connection: keep-alive\r\n", b"connection: close\r\n", b"transfer-encoding: chunked\r\n"}
)
# All names that need more than forwarding, or may need more.
_REWRITTEN = HOP_BY_HOP | RESPONSE_NEVER | {b"close", b"location", b"sec-websocket-protocol"}
_BEGINNINGS = sorted([*(name + b":" for name in _REWRITTEN), RESERVED_PREFIX])
# Grouped by first letter, so that a line is compared with few names.
REWRITTEN = b"(?:%b)" % b"|".join(
    b"%b(?:%b)" % (letter, b"|".join([begins[1:] for begins in some]))
    for letter, some in groupby(_BEGINNINGS, lambda begins: begins[:1])
)
"""A pattern for the beginnings of their lines."""
_HOP = re.compile(rb"\n(?:" + b"|".join(line[:-2] for line in sorted(HOP_LINES)) + rb")\r(?=\n)")
_ANY_REWRITTEN = re.compile(rb"\n" + REWRITTEN)


def needs_rewriting(name: bytes) -> bool:
    """Whether a header of an answer needs more than forwarding, or may need more."""
    return name in _REWRITTEN or name.startswith(RESERVED_PREFIX)


def passing(head: bytes) -> bytes | None:
    """Return the bytes of an answer's head without HOP_LINES; None if a header needs more than that.

    Nearly every answer passes and is not parsed: its bytes are searched for the names. If no line is removed,
    the very same object is returned.
    """
    if _ANY_REWRITTEN.search(head) is None:
        return head
    without = _HOP.sub(b"", head)
    return without if _ANY_REWRITTEN.search(without) is None else None
