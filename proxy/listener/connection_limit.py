"""Limits the connections of an internal listener, and picks the one to evict for a newer one.

Authenticated connections count too, but are never evicted. The oldest unauthenticated one is: otherwise a
client that sends nothing could block the port for all others. `proxy.listener.unauthenticated` does the same
for public listeners, where some clients are on slow links.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager

import attrs
import trio

from tunnel.net.loglimit import LogLimit


class ConnectionLimitError(Exception):
    """A connection is refused: all open ones are authenticated."""


@attrs.define(eq=False)
class CountedConnection:
    """One open connection."""

    _scope: trio.CancelScope
    _clients: dict[trio.CancelScope, str | None]
    _per_client_max: int | None

    def set_client(self, client: str | None = "") -> None:
        """Record the authenticated client of this connection; None makes it unauthenticated again.

        A client with `per_client_max` other connections counts as unauthenticated on this one.
        """
        # The connection is being evicted already.
        if self._scope not in self._clients:
            return
        if client is not None and self._per_client_max is not None:
            others = sum(each == client for scope, each in self._clients.items() if scope is not self._scope)
            client = client if others < self._per_client_max else None
        self._clients[self._scope] = client


@attrs.define(eq=False)
class ConnectionLimit:
    """Counts a listener's connections."""

    log: LogLimit
    per_client_max: int | None = None
    """Connections of one client that are never evicted; None for all."""
    open: int = 0
    _clients: dict[trio.CancelScope, str | None] = attrs.Factory(dict)
    """The client of each connection, None if unauthenticated, oldest first; without evicted ones."""

    @contextmanager
    def counted(self, connections_max: int) -> Iterator[CountedConnection]:
        """Count a connection for the block, which is cancelled if it is evicted; raises ConnectionLimitError.

        The connection is unauthenticated until `set_client` is called on the yielded object.
        """
        if self.open >= connections_max:
            self._evict_oldest(f"{self.open} are open, the limit")
        scope = trio.CancelScope()
        self.open += 1
        self._clients[scope] = None
        try:
            with scope:
                yield CountedConnection(scope, self._clients, self.per_client_max)
        finally:
            self.open -= 1
            self._clients.pop(scope, None)

    def deauthenticate_all_but(self, valid: Container[str]) -> None:
        """Treat all clients except `valid` ones as unauthenticated again."""
        for scope, client in self._clients.items():
            if client is not None and client not in valid:
                self._clients[scope] = None

    def _evict_oldest(self, why: str) -> None:
        oldest = next((scope for scope, client in self._clients.items() if client is None), None)
        if oldest is None:
            self.log.warning(f"refused a connection: {why}", trio.current_time())
            raise ConnectionLimitError(why)
        self.log.warning(
            f"evicted the oldest unauthenticated connection, or one of many of one token: {why}",
            trio.current_time(),
        )
        # Removed at once, so that the next newcomer evicts another connection.
        del self._clients[oldest]
        oldest.cancel()
