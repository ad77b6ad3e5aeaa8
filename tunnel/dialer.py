"""Keeps a relay connected to its hub: dials, serves the session, waits, and dials again.

This module decides when to dial, and what goes on meanwhile; `tunnel.dial` makes one dial.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NoReturn

import attrs
import trio

from tunnel.backoff import Backoff
from tunnel.dial import DialerConfig, DialFailed, dial, open_tunnel
from tunnel.protocol.errors import CloseCode, RemoteProtocolError
from tunnel.refusals import SessionClosed
from tunnel.session import Session

__all__ = ["run_dialer"]

log = logging.getLogger("tunnel.dialer")

# While a session can still be resumed, its streams wait for the next dial: the first comes within
# RESUME_FIRST_S, the others RESUME_PAUSE_S to twice that after the one before, none takes longer than
# RESUME_DIAL_S.
RESUME_FIRST_S: Final = 1.0
RESUME_PAUSE_S: Final = 1.0
RESUME_DIAL_S: Final = 5.0

# The close codes with which a hub ends a session and wants it back. All others refuse the relay.
_WANTED_BACK: Final = frozenset({CloseCode.NORMAL, CloseCode.DRAINING, CloseCode.RESUME_UNKNOWN})
_REFUSALS: Final = frozenset(int(code) for code in CloseCode) - _WANTED_BACK

# What a hub that goes away leaves the streams that are open, where its GOAWAY does not say; and how much
# later this end gives them up, should the hub have forgotten them.
LEAVING_S: Final = 900.0
LEAVING_SLACK_S: Final = 10.0
# Tunnels to hubs that go away, beside the current one: as many planned restarts within LEAVING_S.
LEAVING_MAX: Final = 8


async def run_dialer(
    config: DialerConfig,
    serve: Callable[[Session], Awaitable[None]],
    *,
    dialing: trio.CancelScope | None = None,
) -> None:
    """Keep a tunnel to the hub: one session after the other, each served by `serve`, until cancelled.

    `serve` returns, or raises SessionClosed, when its session has ended; any other exception ends the
    dialer. Dials never overlap and never stop. When the hub says that it will go away, the next tunnel is
    dialled at once, and the old session is served beside it to its end, or for as long as the hub said. When
    that one cannot be dialled, the end of the old session is followed by a dial within a second. A session
    that can be resumed goes on over the next connection when it has lost one; without streams only if the
    first dial succeeds.

    `dialing`, cancelled, ends the dialling alone: this returns when the sessions that are open have ended.
    """
    async with trio.open_nursery() as nursery:
        dialer = _Dialer(config, serve, nursery)
        with dialing or trio.CancelScope():
            await dialer.dial_for_ever()
    if dialer.failure is not None:
        raise dialer.failure


@attrs.define(eq=False)
class _Tunnel:
    """An open session, and how long it may still go on."""

    session: Session
    opened_at: float
    scope: trio.CancelScope
    ended: trio.Event = attrs.Factory(trio.Event)
    ending: str = ""
    failed: DialFailed | None = None
    """The last dial for the session's resumption."""


@attrs.define(eq=False)
class _Dialer:
    config: DialerConfig
    serve: Callable[[Session], Awaitable[None]]
    nursery: trio.Nursery
    backoff: Backoff = attrs.field(init=False)
    leaving: list[_Tunnel] = attrs.Factory(list)
    """Those whose hub said that it will go away, the oldest first."""
    draining: Session | None = None
    """The newest of their sessions, until another tunnel is up."""
    failure: Exception | None = None

    @backoff.default
    def _backoff_by_chance(self) -> Backoff:
        return Backoff(self.config.chance)

    async def dial_for_ever(self) -> NoReturn:
        hub_time = ""
        while True:
            try:
                tunnel = await self.nursery.start(self._hold, hub_time)
            except DialFailed as exc:
                hub_time = exc.hub_time
                wait_s = 0.0 if hub_time else self._wait_after_failure_s(exc)
                log.warning(
                    "no tunnel to %s: %s; the next attempt is in %.0f s",
                    self.config.endpoint.name, exc, wait_s,
                )  # fmt: skip
                if not exc.refused:
                    wait_s = await self._wait_for_drain(wait_s)
            else:
                # Not kept: the hub accepts it for a minute, and our clock may have been set meanwhile.
                hub_time = ""
                self.draining = None
                wait_s = await self._watch(tunnel)
            await trio.sleep(wait_s)

    def _wait_after_failure_s(self, failed: DialFailed) -> float:
        if failed.refused:
            return self.backoff.wait_after_refusal_s(failed.retry_after_s)
        if self._hub_drains:
            return self.backoff.wait_while_draining_s()
        return self.backoff.wait_after_dial_s(trio.current_time())

    @property
    def _hub_drains(self) -> bool:
        """Whether the hub that was dialled last has said GOAWAY and still serves the session."""
        session = self.draining
        return session is not None and not (session.closed or session.detached)

    async def _wait_for_drain(self, wait_s: float) -> float:
        """Wait `wait_s`, or until a draining hub ends; returns how long to wait after that.

        A hub that no other one has replaced listens again only after it has ended.
        """
        if self.draining is None or not self._hub_drains:
            return wait_s
        with trio.move_on_after(wait_s):
            await self.draining.wait_detached()
            return self.backoff.wait_after_tunnel_s(trio.current_time())
        return 0.0

    async def _hold(self, hub_time: str, task_status: trio.TaskStatus[_Tunnel]) -> None:
        """Open a tunnel and serve it to its end; raises DialFailed if there is none."""
        tunnel: _Tunnel | None = None
        try:
            with trio.CancelScope() as scope:
                async with open_tunnel(self.config, hub_time) as session:
                    tunnel = _Tunnel(session, trio.current_time(), scope)
                    task_status.started(tunnel)
                    self.nursery.start_soon(self._bring_back, tunnel)
                    tunnel.ending = await _serve_until_closed(session, self.serve)
        except Exception as exc:
            if tunnel is None:
                raise
            # Kept out of the nursery, which would wrap it.
            self.failure = exc
            self.nursery.cancel_scope.cancel()
        finally:
            if tunnel is not None:
                tunnel.ended.set()
                if tunnel in self.leaving:
                    self.leaving.remove(tunnel)
                if self.draining is tunnel.session:
                    self.draining = None

    async def _watch(self, tunnel: _Tunnel) -> float:
        """Wait until another tunnel is to be dialled; returns how many seconds later."""
        name, session = self.config.endpoint.name, tunnel.session
        log.info("the tunnel to %s is up, session %s", name, session.session_id)
        going = await session.wait_going_away()
        lived_s = trio.current_time() - tunnel.opened_at
        self.backoff.note_session(lived_s)
        if going is not None:
            if not session.closed:
                self._let_go(tunnel, going.drain_ms / 1000)
            wait_s = self.backoff.wait_after_goaway_s(trio.current_time(), going.retry_after_ms / 1000)
            log.info(
                "the hub at %s goes away (%s): dialling again in %.1f s, streams that go on there: %d",
                name, going.reason, wait_s, session.stream_count,
            )  # fmt: skip
            return wait_s
        await tunnel.ended.wait()
        lived_s = trio.current_time() - tunnel.opened_at
        asked_s = session.peer_going_away.retry_after_ms / 1000 if session.peer_going_away else 0.0
        failed = tunnel.failed
        if failed is not None and failed.refused:
            wait_s = self.backoff.wait_after_refusal_s(failed.retry_after_s)
        elif asked_s or session.close_code in _REFUSALS:
            wait_s = self.backoff.wait_after_refusal_s(asked_s)
        else:
            hub_is_here = failed is not None and failed.forgotten
            wait_s = self.backoff.wait_after_tunnel_s(trio.current_time(), hub_is_here=hub_is_here)
        log.warning(
            "the tunnel to %s ended after %.0f s: %s; the next attempt is in %.0f s",
            name, lived_s, tunnel.ending, wait_s,
        )  # fmt: skip
        return wait_s

    async def _bring_back(self, tunnel: _Tunnel) -> None:
        """Dial another connection for the session whenever it has lost one, until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dial_whenever_lost, tunnel, nursery)
            # It can expire in the middle of a dial.
            await tunnel.session.wait_closed()
            nursery.cancel_scope.cancel()

    async def _dial_whenever_lost(self, tunnel: _Tunnel, nursery: trio.Nursery) -> None:
        # While this dials, the previous connection may still be closing, for a second.
        while await tunnel.session.wait_detached():
            await nursery.start(self._dial_again, tunnel)

    async def _dial_again(self, tunnel: _Tunnel, task_status: trio.TaskStatus[None]) -> None:
        """Dial until the session goes on, which is when this is started, and carry it while it does."""
        session, name = tunnel.session, self.config.endpoint.name
        wait_s, hub_time = RESUME_FIRST_S * self.config.chance(), ""
        while True:
            await trio.sleep(wait_s)
            if session.closed:
                # It was closed in this loop pass; the task that waits for that cancels us in the next one.
                task_status.started()
                return
            try:
                async with dial(self.config, session.hello_again(), RESUME_DIAL_S, hub_time) as attempt:
                    attempt.succeeded()
                    tunnel.failed = None
                    log.info("the tunnel to %s is back, session %s goes on", name, session.session_id)
                    task_status.started()
                    with suppress(SessionClosed, RemoteProtocolError):
                        await session.resume(attempt.transport, attempt.greeting)
                return
            except DialFailed as exc:
                log.info("session %s cannot go on yet: no tunnel to %s: %s", session.session_id, name, exc)
                wait_s = max(RESUME_PAUSE_S * (1 + self.config.chance()), exc.retry_after_s)
                hub_time = exc.hub_time
                tunnel.failed = exc
                if hub_time:
                    wait_s = 0.0
                elif exc.forgotten:
                    session.abandon("the hub does not know this session any more")
                elif not session.stream_count:
                    # No stream waits for it. The dials for a new session back off, and these do not.
                    session.abandon(f"tunnel lost: {exc}")

    def _let_go(self, tunnel: _Tunnel, drain_s: float) -> None:
        """Bound the time of a tunnel that ends beside the next one."""
        tunnel.scope.deadline = trio.current_time() + (drain_s or LEAVING_S) + LEAVING_SLACK_S
        self.leaving.append(tunnel)
        self.draining = tunnel.session
        if len(self.leaving) > LEAVING_MAX:
            oldest = self.leaving[0]
            log.warning(
                "%d tunnels to hubs that go away are open, the limit is %d: the oldest is closed",
                len(self.leaving), LEAVING_MAX,
            )  # fmt: skip
            oldest.scope.cancel()


async def _serve_until_closed(session: Session, serve: Callable[[Session], Awaitable[None]]) -> str:
    with suppress(SessionClosed):
        await serve(session)
    return await session.wait_closed() if session.closed else "closed by us"
