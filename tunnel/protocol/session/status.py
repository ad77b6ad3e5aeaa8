"""The phase of a session, and what both sides have agreed on."""

from __future__ import annotations

import enum
import math
from typing import Final

import attrs

from tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from tunnel.protocol.greetings import Hello, Welcome

__all__ = ["CLOSED", "DETACHED", "GREETING", "OPEN", "Phase", "Role", "Status"]


class Role(enum.Enum):
    """Who dialled. Not client and server: the WebSocket's client serves the requests here."""

    DIALER = "dialer"
    LISTENER = "listener"


class Phase(enum.Enum):
    GREETING = "greeting"
    OPEN = "open"
    DETACHED = "detached"
    """The transport is lost and another may follow: owners go on as before, and all that they send waits."""
    CLOSED = "closed"


# Plain names for the hot path, as in `state`.
GREETING: Final = Phase.GREETING
OPEN: Final = Phase.OPEN
DETACHED: Final = Phase.DETACHED
CLOSED: Final = Phase.CLOSED


@attrs.define(eq=False)
class Status:
    role: Role
    wall_offset_s: float
    """What to add to `now` for the wall clock."""
    phase: Phase = attrs.field(init=False, default=GREETING)
    failure: RemoteProtocolError | None = attrs.field(init=False, default=None)
    """How the peer broke the protocol."""
    local: Hello | Welcome = attrs.field(init=False, factory=Hello)
    peer: Hello | Welcome = attrs.field(init=False, factory=Hello)
    resume_ttl_s: float = attrs.field(init=False, default=0.0)
    """How long the session outlives its transport, from the last byte received; 0: it does not."""
    detached_at: float = attrs.field(init=False, default=math.inf)
    """When the transport was lost; infinite while there is one."""

    def check_open(self) -> None:
        if self.phase is not OPEN and self.phase is not DETACHED:
            raise LocalProtocolError(f"the session is {self.phase.value}")

    def wall_ms(self, now: float) -> int:
        return max(0, round((now + self.wall_offset_s) * 1000))
