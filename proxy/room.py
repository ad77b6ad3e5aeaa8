"""How many connections a listener for a few has at once, and which of them makes room for another.

Those that are known count as well, and are never ended for a newcomer. Of the others the oldest is: whoever
can reach the port could else keep everybody out by saying nothing. `proxy.gate` does the same where anyone
may come, among whom are some on slow links.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from tunnel.loglimit import LogLimit


class NoRoomError(Exception):
    """A connection that is turned away: all that are open are known."""


@attrs.define(eq=False)
class Guest:
    """A connection while it is open."""

    _scope: trio.CancelScope
    _strangers: dict[trio.CancelScope, None]

    def known(self) -> None:
        """It is known who is there."""
        self._strangers.pop(self._scope, None)

    def doubted(self) -> None:
        """It is not known any more whether that is still so."""
        if not self._scope.cancel_called:
            self._strangers.setdefault(self._scope)


@attrs.define(eq=False)
class Room:
    """Counts a listener's connections."""

    log: LogLimit
    open: int = 0
    _strangers: dict[trio.CancelScope, None] = attrs.Factory(dict)
    """Of each connection that is not known yet, in their order."""

    @contextmanager
    def entered(self, connections_max: int) -> Iterator[Guest]:
        """Count a connection for the block, which is cancelled when it has to make room; raises NoRoomError.

        It is a stranger's until the guest that is yielded is `known`.
        """
        if self.open >= connections_max:
            self._make_room(f"{self.open} are open, the limit")
        scope = trio.CancelScope()
        self.open += 1
        self._strangers[scope] = None
        try:
            with scope:
                yield Guest(scope, self._strangers)
        finally:
            self.open -= 1
            self._strangers.pop(scope, None)

    def _make_room(self, why: str) -> None:
        if not self._strangers:
            self.log.warning(f"turned away a connection: {why}", trio.current_time())
            raise NoRoomError(why)
        self.log.warning(f"ended the oldest connection that has shown no token: {why}", trio.current_time())
        oldest = next(iter(self._strangers))
        # At once: the next newcomer ends another.
        del self._strangers[oldest]
        oldest.cancel()
