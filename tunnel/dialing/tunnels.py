"""The tunnels of a dialer: which are open, and whether another one is missing.

A hub that is one of several behind one name asks for more than one tunnel. Each is a session to another hub,
or none: a second session to a hub would replace the first one and break its streams. So a dial for one more
lists the hubs that have one, and these refuse it.
"""

from __future__ import annotations

import re
from typing import Final

import attrs
import trio

from tunnel.dialing.failure import DialFailed
from tunnel.protocol.greetings import Welcome
from tunnel.session import Session

__all__ = ["TUNNELS_MAX", "Tunnel", "Tunnels"]

# Tunnels at once, even if a hub asks for more.
TUNNELS_MAX: Final = 8
# Sessions at once, besides those that leave: as many again that have lost their connection and were replaced.
SESSIONS_MAX: Final = 2 * TUNNELS_MAX

# An id that can stand in a header, in a list.
_HUB_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@attrs.define(eq=False)
class Tunnel:
    """An open session, and how long it may still go on."""

    session: Session
    opened_at: float
    scope: trio.CancelScope
    hub: str = attrs.field(init=False)
    """The id of its hub; "" for one that does not say, or says what cannot be listed."""
    asked: int = attrs.field(init=False)
    """How many tunnels its hub asks for."""
    away: bool = False
    """It has lost its connection for so long that another tunnel is to replace it."""
    ended: trio.Event = attrs.Factory(trio.Event)
    ending: str = ""
    failed: DialFailed | None = None
    """The last dial for the session's resumption."""

    @hub.default
    def _hub_of_welcome(self) -> str:
        hub = self.welcome.replica
        return hub if _HUB_ID.fullmatch(hub) else ""

    @asked.default
    def _asked_in_welcome(self) -> int:
        return min(self.welcome.tunnels, TUNNELS_MAX)

    def believes(self, hub: str) -> bool:
        """Whether a hub with this id knows that the session is over: with several, only its own does."""
        return hub == self.hub or self.asked == 1

    @property
    def welcome(self) -> Welcome:
        """The hub's WELCOME to this session."""
        welcome = self.session.peer
        assert isinstance(welcome, Welcome), "a dialer hears a WELCOME"
        return welcome


@attrs.define(eq=False)
class Tunnels:
    """The open tunnels of one dialer."""

    current: list[Tunnel] = attrs.Factory(list)
    """Those that are to stay, the oldest first."""
    leaving: list[Tunnel] = attrs.Factory(list)
    """Those that end beside their successors, as one of the two ends said, the oldest first."""
    several: bool = False
    """Whether the last hub that answered has others beside it."""
    heeded: bool = True
    """False once a hub took a session although the dial listed it: something on the way drops the list."""

    def add(self, tunnel: Tunnel) -> None:
        """Take up a new tunnel."""
        self.several = tunnel.asked > 1
        if tunnel.hub in self.hubs:
            self.heeded = False
        self.current.append(tunnel)

    def leave(self, tunnel: Tunnel) -> None:
        """Note that a tunnel ends beside its successor."""
        self.current.remove(tunnel)
        self.leaving.append(tunnel)

    def remove(self, tunnel: Tunnel) -> None:
        """Forget a tunnel that has ended."""
        for tunnels in (self.current, self.leaving):
            if tunnel in tunnels:
                tunnels.remove(tunnel)

    @property
    def hubs(self) -> list[str]:
        """The ids of the hubs that have a session, for a dial for one more."""
        return [tunnel.hub for tunnel in self.current if tunnel.hub]

    @property
    def up(self) -> int:
        """How many are here, or may be back in a moment."""
        return sum(not tunnel.away for tunnel in self.current)

    @property
    def wanted(self) -> int:
        """How many there should be."""
        # A hub without an id cannot be listed.
        if not self.heeded or not all(tunnel.hub for tunnel in self.current):
            return 1
        return self._asked

    @property
    def _asked(self) -> int:
        return max((tunnel.asked for tunnel in self.current), default=1)

    @property
    def surplus(self) -> bool:
        """Whether there are more than the hubs ask for."""
        return self.up > self._asked

    @property
    def missing(self) -> bool:
        """Whether another tunnel should be dialled."""
        return self.up < self.wanted and len(self.current) < SESSIONS_MAX
