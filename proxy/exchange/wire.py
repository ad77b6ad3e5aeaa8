"""Common to both roles of HTTP/1.1: the memory of a connection."""

from __future__ import annotations

from collections.abc import Sized

from proxy.message.body import BODY_BYTES_MAX
from tunnel.net.tls import TLSStream

# The memory of an idle TLS connection. OpenSSL takes 28 KiB of it as a server and 35 as a client. The rest
# are the Python objects.
CONNECTION_BYTES = 40 * 1024
# The largest read of a client's connection: 0.8 ms, if each TLS record has one byte. Only the read of a body
# after a large one may be larger.
CLIENT_BYTES_AT_ONCE = 16 * 1024


def held_bytes(tls: TLSStream, received: Sized, *, framed: bool) -> int:
    """The memory of a connection: itself, the bytes `received` and not taken, and the unsent bytes.

    A body `framed` in chunks is counted twice while it is unsent: the unframed copy exists as well.
    """
    unsent = tls.held_up_bytes
    unframed = min(unsent, BODY_BYTES_MAX) if framed else 0
    return CONNECTION_BYTES + len(received) + unsent + unframed
