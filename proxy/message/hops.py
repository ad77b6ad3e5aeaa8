"""Which headers of an answer concern one connection or one origin, and so do not just pass on.

Names are in lower case, and bytes are those of a canonical head (`proxy.message.head`), where each line feed
but the last has a line behind it. What is done about a header is decided in `proxy.message.rewrite`; that
something has to be is found out here, and for nearly every answer it is nothing.
"""

from __future__ import annotations

import re
from itertools import groupby

# RFC 9110 7.6.1, and the names that older proxies use for the same.
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
# These speak for the origin, and the origin is the hub: no cluster may set them for all others. NEL and those
# that go with it have a browser report each later request to whom they name.
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
        # A Location of HTTP/1.0, which some clients still follow and no server sends.
        b"uri",
        # To a web server in front of the hub: send a file of yours or another URL in place of this, keep it
        # for others, or (Envoy) take the server that it came from out of service.
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
# Of headers by which hub and relay speak to each other.
RESERVED_PREFIX = b"hawse-"
# The usual words of an answer about one connection, which are all that has to go from nearly every answer.
# Their options are names themselves.
HOP_LINES = frozenset(
    {b"connection: keep-alive\r\n", b"connection: close\r\n", b"transfer-encoding: chunked\r\n"}
)
# Every name of which more is to be done, or may be.
_DEALT_WITH = HOP_BY_HOP | RESPONSE_NEVER | {b"close", b"location", b"sec-websocket-protocol"}
_BEGINNINGS = sorted([*(name + b":" for name in _DEALT_WITH), RESERVED_PREFIX])
# By their first letters, so that a line is compared with few of them.
DEALT_WITH = b"(?:%b)" % b"|".join(
    b"%b(?:%b)" % (letter, b"|".join([begins[1:] for begins in some]))
    for letter, some in groupby(_BEGINNINGS, lambda begins: begins[:1])
)
"""How each of their lines begins, as a pattern."""
_HOP = re.compile(rb"\n(?:" + b"|".join(line[:-2] for line in sorted(HOP_LINES)) + rb")\r(?=\n)")
_ANY_DEALT_WITH = re.compile(rb"\n" + DEALT_WITH)


def is_dealt_with(name: bytes) -> bool:
    """Whether more is to be done with a header of an answer than to pass it on, or may be."""
    return name in _DEALT_WITH or name.startswith(RESERVED_PREFIX)


def passing(head: bytes) -> bytes | None:
    """Return the bytes of an answer's head without HOP_LINES; None where more is to be done with it.

    Nearly every answer passes, and is not taken apart: its bytes are searched for the names, and are the very
    same object where none of them is there.
    """
    if _ANY_DEALT_WITH.search(head) is None:
        return head
    without = _HOP.sub(b"", head)
    return without if _ANY_DEALT_WITH.search(without) is None else None
