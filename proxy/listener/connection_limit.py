"""How many connections a listener for a few has at once, and which of them makes room for another.

Those that are known count as well, and are never ended for a newcomer. Of the others the oldest is: whoever
can reach the port could else keep everybody out by saying nothing. `proxy.listener.unauthenticated` does the
same where anyone may come, among whom are some on slow links.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager

import attrs
import trio

from tunnel.net.loglimit import LogLimit


class NoRoomError(Exception):
    """A connection that is turned away: all that are open are known."""


@attrs.define(eq=False)
class Guest:
    """A connection while it is open."""

    _scope: trio.CancelScope
    _guests: dict[trio.CancelScope, str | None]
    _known_max: int | None

    def known(self, who: str | None = "") -> None:
        """Record the authenticated client of this connection; None makes it unauthenticated again.

        A client with `known_max` other connections counts as unauthenticated on this one.
        """
        # One that makes room already is known too late.
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
    """How many connections one who is known keeps when others need the room; None for all."""
    open: int = 0
    _guests: dict[trio.CancelScope, str | None] = attrs.Factory(dict)
    """Who is there, None where that is not known, in their order; without those that are making room."""

    @contextmanager
    def entered(self, connections_max: int) -> Iterator[Guest]:
        """Count a connection for the block, which is cancelled when it has to make room; raises NoRoomError.

        It is a stranger's until the guest that is yielded is `known`.
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
        """Whoever is known as none of these is a stranger again."""
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
        # At once: the next newcomer ends another.
        del self._guests[oldest]
        oldest.cancel()
