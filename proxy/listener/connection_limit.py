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


class NoRoomError(Exception):
    """A connection is refused: all open ones are authenticated."""


@attrs.define(eq=False)
class Guest:
    """One open connection."""

    _scope: trio.CancelScope
    _guests: dict[trio.CancelScope, str | None]
    _known_max: int | None

    def known(self, who: str | None = "") -> None:
        """Record the authenticated client of this connection; None makes it unauthenticated again.

        A client with `known_max` other connections counts as unauthenticated on this one.
        """
        # The connection is being evicted already.
        if self._scope not in self._guests:
            return
        if who is not None and self._known_max is not None:
            others = sum(each == who for scope, each in self._guests.items() if scope is not self._scope)
            who = who if others < self._known_max else None
        self._guests[self._scope] = who


@attrs.define(eq=False)
class Room:
    """Counts a listener's connections."""

    log: LogLimit
    known_max: int | None = None
    """Connections of one client that are never evicted; None for all."""
    open: int = 0
    _guests: dict[trio.CancelScope, str | None] = attrs.Factory(dict)
    """The client of each connection, None if unauthenticated, oldest first; without evicted ones."""

    @contextmanager
    def entered(self, connections_max: int) -> Iterator[Guest]:
        """Count a connection for the block, which is cancelled if it is evicted; raises NoRoomError.

        The connection is unauthenticated until `known` is called on the yielded object.
        """
        if self.open >= connections_max:
            self._make_room(f"{self.open} are open, the limit")
        scope = trio.CancelScope()
        self.open += 1
        self._guests[scope] = None
        try:
            with scope:
                yield Guest(scope, self._guests, self.known_max)
        finally:
            self.open -= 1
            self._guests.pop(scope, None)

    def doubt_all_but(self, valid: Container[str]) -> None:
        """Treat all clients except `valid` ones as unauthenticated again."""
        for scope, who in self._guests.items():
            if who is not None and who not in valid:
                self._guests[scope] = None

    def _make_room(self, why: str) -> None:
        oldest = next((scope for scope, who in self._guests.items() if who is None), None)
        if oldest is None:
            self.log.warning(f"turned away a connection: {why}", trio.current_time())
            raise NoRoomError(why)
        self.log.warning(
            f"ended the oldest connection that has shown no token, or one of many: {why}", trio.current_time()
        )
        # Removed at once, so that the next newcomer evicts another connection.
        del self._guests[oldest]
        oldest.cancel()
