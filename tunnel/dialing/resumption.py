"""Brings back a dialer's session that has lost its connection (PROTOCOL.md, "Resumption")."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from tunnel.dialing.dial import DialerConfig, dial
from tunnel.dialing.failure import DialFailed
from tunnel.dialing.tunnels import Tunnel
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.refusals import SessionClosed
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
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_dial_whenever_lost, config, tunnel, back, nursery)
        nursery.start_soon(_note_away, tunnel, away)
        # It can expire in the middle of a dial.
        await tunnel.session.wait_closed()
        nursery.cancel_scope.cancel()


async def _note_away(tunnel: Tunnel, away: Callable[[Tunnel], None]) -> None:
    session = tunnel.session
    while await session.wait_detached():
        losses = session.detaches
        await trio.sleep(AWAY_S)
        if session.detached and session.detaches == losses and not tunnel.away:
            away(tunnel)


async def _dial_whenever_lost(
    config: DialerConfig, tunnel: Tunnel, back: Callable[[Tunnel], None], nursery: trio.Nursery
) -> None:
    # While this dials, the previous connection may still be closing, for a second.
    while await tunnel.session.wait_detached():
        await nursery.start(_dial_again, config, tunnel, back)


async def _dial_again(
    config: DialerConfig,
    tunnel: Tunnel,
    back: Callable[[Tunnel], None],
    task_status: trio.TaskStatus[None],
) -> None:
    """Dial until the session goes on, which is when this is started, and carry it while it does."""
    session, name = tunnel.session, config.endpoint.name
    headers = [(AT_HEADER, tunnel.hub.encode("ascii"))] if tunnel.hub else []
    wait_s, hub_time = RESUME_FIRST_S * config.chance(), ""
    while True:
        await trio.sleep(wait_s)
        if session.closed:
            # It was closed in this loop pass; the task that waits for that cancels us in the next one.
            task_status.started()
            return
        try:
            async with dial(config, session.hello_again(), RESUME_DIAL_S, hub_time, headers) as attempt:
                attempt.succeeded()
                tunnel.failed = None
                log.info("the tunnel to %s is back, session %s goes on", name, session.session_id)
                back(tunnel)
                task_status.started()
                with suppress(SessionClosed, RemoteProtocolError):
                    await session.resume(attempt.transport, attempt.greeting)
            return
        except DialFailed as exc:
            log.info("session %s cannot go on yet: no tunnel to %s: %s", session.session_id, name, exc)
            wait_s = max(RESUME_PAUSE_S * (1 + config.chance()), exc.retry_after_s)
            hub_time = exc.hub_time
            tunnel.failed = exc
            if hub_time:
                wait_s = 0.0
            elif exc.forgotten and tunnel.believes(exc.hub):
                session.abandon("the hub does not know this session any more")
            elif not session.stream_count:
                # No stream waits for it. The dials for a new session back off, and these do not.
                session.abandon(f"tunnel lost: {exc}")
