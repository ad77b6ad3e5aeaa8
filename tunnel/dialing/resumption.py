"""Brings back a dialer's session that has lost its connection (PROTOCOL.md, "Resumption")."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import attrs
import trio

from tunnel.dialing.dial import Attempt, DialerConfig, dial
from tunnel.dialing.failure import DialFailed
from tunnel.dialing.redial import Redial
from tunnel.dialing.tunnels import Tunnel
from tunnel.protocol.greetings import Hello
from tunnel.websocket.upgrade import AT_HEADER

__all__ = ["bring_back"]

log = logging.getLogger("tunnel.dialer")

# While a session can still be resumed, its streams wait for the next dial: the first comes within
# RESUME_FIRST_S, the others RESUME_PAUSE_S to twice that after the one before, none takes longer than
# RESUME_DIAL_S.
RESUME_FIRST_S: Final = 1.0
RESUME_PAUSE_S: Final = 1.0
RESUME_DIAL_S: Final = 5.0

# A session that has lost its connection for this long is away: the time of the first dials for it. Its hub
# may be dead, and the session is given up after a minute only.
AWAY_S: Final = 3.0


async def bring_back(
    config: DialerConfig, tunnel: Tunnel, away: Callable[[Tunnel], None], back: Callable[[Tunnel], None]
) -> None:
    """Dial another connection for the session whenever it has lost one, until it ends.

    Calls `away` when a connection was lost AWAY_S ago, and `back` whenever there is another one.
    """
    resumption = _Resumption(config, tunnel, back)
    redial = Redial(
        tunnel.session, resumption.dial, resumption.first_wait_s, resumption.back, resumption.failed
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note_away, tunnel, away)
        await redial.run()
        nursery.cancel_scope.cancel()


async def _note_away(tunnel: Tunnel, away: Callable[[Tunnel], None]) -> None:
    session = tunnel.session
    while await session.wait_detached():
        losses = session.detaches
        await trio.sleep(AWAY_S)
        if session.detached and session.detaches == losses and not tunnel.away:
            away(tunnel)


@attrs.define(eq=False)
class _Resumption:
    """A relay's dials for one session."""

    config: DialerConfig
    tunnel: Tunnel
    note_back: Callable[[Tunnel], None]
    hub_time: str = ""
    """That of the last refusal, which dates the next dial's token."""

    def first_wait_s(self) -> float:
        self.hub_time = ""
        return RESUME_FIRST_S * self.config.chance()

    def dial(self, hello: Hello) -> AbstractAsyncContextManager[Attempt]:
        hub = self.tunnel.hub
        headers = [(AT_HEADER, hub.encode("ascii"))] if hub else []
        return dial(self.config, hello, RESUME_DIAL_S, self.hub_time, headers)

    def back(self) -> None:
        self.tunnel.failed = None
        name, session_id = self.config.endpoint.name, self.tunnel.session.session_id
        log.info("the tunnel to %s is back, session %s goes on", name, session_id)
        self.note_back(self.tunnel)

    def failed(self, error: DialFailed) -> float:
        tunnel, session, name = self.tunnel, self.tunnel.session, self.config.endpoint.name
        log.info("session %s cannot go on yet: no tunnel to %s: %s", session.session_id, name, error)
        self.hub_time = error.hub_time
        tunnel.failed = error
        if error.hub_time:
            return 0.0
        if error.forgotten and tunnel.believes(error.hub):
            session.abandon("the hub does not know this session any more")
        elif not session.stream_count:
            # No stream waits for it. The dials for a new session back off, and these do not.
            session.abandon(f"tunnel lost: {error}")
        return max(RESUME_PAUSE_S * (1 + self.config.chance()), error.retry_after_s)
