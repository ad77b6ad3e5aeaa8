"""The TLS session of the last connection to each server, so that the next handshake costs a third.

A session holds for the context that verified it and the name it was verified for; another CA file is another
context. In TLS 1.3 the server's tickets come after the handshake, with its first data, so the session is
asked of a connection when it is closed, or when the next one is dialled while it is still open.

A resumed handshake shows no certificate: it only proves that this is the server that was verified before. For
how long that may go on, from ticket to ticket, is bounded here; then the certificate is asked for again.
"""

from __future__ import annotations

import ssl
import time
import weakref
from collections.abc import Callable
from typing import Final

import attrs

__all__ = ["ClientContext", "Resumption"]

# From the last handshake with a certificate. Where many dials matter, they come seconds apart.
VERIFIED_S: Final = 3600.0

# A ticket serves many connections, and a copy of it costs 80 µs; some servers forget after five minutes.
FRESH_S: Final = 60.0

# Servers of one context: the API server, a hub, or the relays under one public CA.
SERVERS_MAX: Final = 256


class ClientContext(ssl.SSLContext):
    """A context for clients that remembers a session for each server."""

    def __init__(self, protocol: int | None = None) -> None:
        # OpenSSL's part is made by __new__. A session refers to its context, so it can only be kept in it.
        self._resumptions: dict[str, Resumption] = {}

    def resumption(self, server_name: str) -> Resumption:
        """Return what is kept for a server, which is nothing at first."""
        found = self._resumptions.get(server_name)
        if found is None:
            if len(self._resumptions) >= SERVERS_MAX:
                del self._resumptions[next(iter(self._resumptions))]
            found = self._resumptions[server_name] = Resumption()
        return found


@attrs.define(eq=False)
class Resumption:
    """What is kept for one server."""

    clock: Callable[[], float] = time.monotonic
    _session: ssl.SSLSession | None = None
    _verified_at: float = 0.0
    _kept_at: float = 0.0
    # The newest connection, while it is open: its tickets may have come meanwhile.
    _newest: weakref.ref[ssl.SSLObject] | None = None
    _newest_verified_at: float = 0.0
    # Of each connection that is dialled: when that was verified which it offers to resume. Another handshake
    # may end meanwhile, and then what is kept is another session.
    _offered: weakref.WeakKeyDictionary[ssl.SSLObject, float] = attrs.Factory(weakref.WeakKeyDictionary)

    def prepare(self, connection: ssl.SSLObject) -> None:
        """Have the handshake of a new connection resume, if there is what to resume."""
        newest = None if self._newest is None else self._newest()
        if newest is not None:
            self.keep(newest)
        if self._session is not None and self.clock() - self._verified_at < VERIFIED_S:
            connection.session = self._session
            self._offered[connection] = self._verified_at

    def opened(self, connection: ssl.SSLObject) -> None:
        """Note that the handshake of a connection has ended."""
        self._newest = weakref.ref(connection)
        offered_at = self._offered.pop(connection, None)
        if connection.session_reused:
            assert offered_at is not None
            self._newest_verified_at = offered_at
        else:
            # What was kept, if anything, is not accepted any more.
            self._session = None
            self._newest_verified_at = self.clock()

    def keep(self, connection: ssl.SSLObject) -> None:
        """Keep the session of a connection, if it is the newest; called before it is closed."""
        if self._newest is None or self._newest() is not connection:
            return
        now = self.clock()
        if self._session is not None and now - self._kept_at < FRESH_S:
            return
        session = connection.session
        # Without a ticket it cannot be resumed, or only by a server that remembers it (TLS 1.2); few do.
        if session is not None and session.has_ticket:
            self._session = session
            self._kept_at = now
            self._verified_at = self._newest_verified_at
