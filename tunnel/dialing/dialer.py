"""Keeps a relay connected to its hubs: dials, serves the sessions, waits, and dials again.

This module decides when to dial, and what goes on meanwhile; `dial` makes one dial, and `resumption` brings
back a session that has lost its connection. One loop dials, whenever a tunnel is missing and a dial is due. A
task for each tunnel watches it, and says when the next dial is due once it ends or its hub goes away.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NoReturn

import attrs
import trio

from tunnel.dialing.backoff import Backoff
from tunnel.dialing.dial import DialerConfig, open_tunnel
from tunnel.dialing.failure import DialFailed
from tunnel.dialing.resumption import AWAY_S, bring_back
from tunnel.dialing.tunnels import Tunnel, Tunnels
from tunnel.protocol.errors import CloseCode
from tunnel.protocol.events import GoAway
from tunnel.refusals import SessionClosed
from tunnel.session import Session

__all__ = ["run_dialer"]

log = logging.getLogger("tunnel.dialer")

# The close codes with which a hub ends a session and wants it back. All others refuse the relay.
_WANTED_BACK: Final = frozenset({CloseCode.NORMAL, CloseCode.DRAINING, CloseCode.RESUME_UNKNOWN})
_REFUSALS: Final = frozenset(int(code) for code in CloseCode) - _WANTED_BACK

# What a hub that goes away leaves the streams that are open, where its GOAWAY does not say; and how much
# later this end gives them up, should the hub have forgotten them.
LEAVING_S: Final = 900.0
LEAVING_SLACK_S: Final = 10.0
# Tunnels to hubs that go away, beside the current ones: as many planned restarts within LEAVING_S.
LEAVING_MAX: Final = 8

# Between our GOAWAY and the end of a session without streams: OPENs that cross the GOAWAY are refused.
CROSSING_S: Final = 1.0

# Dials for one more tunnel that come to hubs which have one. A balancer that chooses at random among three
# hubs, of which one is dead, sends one relay in 256 to the wrong one each time. With half as many dials it is
# one in 16.
ELSEWHERE_MAX: Final = 8
# How long a relay is content with the tunnels that it has after that: a balancer may send it to one hub only.
# Up to a fifth more, by chance.
CONTENT_S: Final = 300.0
CONTENT_SPREAD: Final = 0.2


async def run_dialer(
    config: DialerConfig,
    serve: Callable[[Session], Awaitable[None]],
    *,
    dialing: trio.CancelScope | None = None,
    dialled: Callable[[str], None] | None = None,
) -> None:
    """Keep as many tunnels as the hub asks for, each to another hub and served by `serve`, until cancelled.

    `serve` returns, or raises SessionClosed, when its session has ended; any other exception ends the
    dialer. Dials for new sessions never overlap and never stop. When a hub says that it will go away, the
    next tunnel is dialled at once, and the old session is served beside it to its end, or for as long as the
    hub said. When that one cannot be dialled, the end of the old session is followed by a dial within a
    second. A session that can be resumed goes on over the next connection when it has lost one; without
    streams only if the first dial succeeds.

    `dialing`, cancelled, ends the dialling alone: this returns when the sessions that are open have ended.
    `dialled` is called with the result of each dial for a new session: `up`, `refused` (by the hub) or
    `failed`.
    """
    async with trio.open_nursery() as nursery:
        dialer = _Dialer(config, serve, nursery, dialled or _ignore)
        with dialing or trio.CancelScope():
            await dialer.dial_for_ever()
    if dialer.failure is not None:
        raise dialer.failure


@attrs.define(eq=False)
class _Dialer:
    config: DialerConfig
    serve: Callable[[Session], Awaitable[None]]
    nursery: trio.Nursery
    dialled: Callable[[str], None]
    backoff: Backoff = attrs.field(init=False)
    tunnels: Tunnels = attrs.Factory(Tunnels)
    due_at: float = -math.inf
    """When the next dial is due, if a tunnel is missing then."""
    due_earlier: trio.Event = attrs.Factory(trio.Event)
    hub_time: str = ""
    """What the next dial is dated by; see DialFailed."""
    met: int = 0
    """Dials that have come to hubs which have a tunnel, since a tunnel came up or was lost."""
    draining: Tunnel | None = None
    """The newest tunnel whose hub said GOAWAY, until another tunnel is up."""
    awaits_drain: bool = False
    """A dial got no answer while that hub drains: it may listen again only after it has ended."""
    failure: Exception | None = None

    @backoff.default
    def _backoff_by_chance(self) -> Backoff:
        return Backoff(self.config.chance)

    # --- dialling ---

    async def dial_for_ever(self) -> NoReturn:
        while True:
            await self._wait_due()
            if not self.tunnels.missing:
                continue
            listed = self.tunnels.hubs
            try:
                await self.nursery.start(self._hold, self.hub_time, listed)
            except DialFailed as exc:
                self.dialled("refused" if exc.refused or exc.busy else "failed")
                self._note_failure(exc, listed)

    async def _wait_due(self) -> None:
        while trio.current_time() < self.due_at:
            self.due_earlier = trio.Event()
            with trio.move_on_at(self.due_at):
                await self.due_earlier.wait()
        await trio.lowlevel.checkpoint()
        self.due_at = math.inf
        self.awaits_drain = False

    def _dial_in(self, wait_s: float) -> None:
        """Dial after `wait_s`, or earlier if that was due."""
        self.due_at = min(self.due_at, trio.current_time() + wait_s)
        self.due_earlier.set()

    async def _hold(self, hub_time: str, elsewhere: list[str], task_status: trio.TaskStatus[None]) -> None:
        """Open a tunnel and serve it to its end; raises DialFailed if there is none."""
        tunnel: Tunnel | None = None
        try:
            with trio.CancelScope() as scope:
                async with open_tunnel(self.config, hub_time, elsewhere) as session:
                    tunnel = Tunnel(session, trio.current_time(), scope)
                    self._take_up(tunnel)
                    task_status.started()
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

    def _take_up(self, tunnel: Tunnel) -> None:
        """Keep a new tunnel, and say when the next one is to be dialled."""
        # Not kept: the hub accepts it for a minute, and our clock may have been set meanwhile.
        self.hub_time = ""
        self.dialled("up")
        self.met = 0
        self.draining = None
        heeded = self.tunnels.heeded
        self.tunnels.add(tunnel)
        self.nursery.start_soon(self._watch, tunnel)
        self.nursery.start_soon(bring_back, self.config, tunnel, self._note_away, self._note_back)
        up, wanted = self.tunnels.up, self.tunnels.wanted
        which = f", to hub {tunnel.hub}, {up} of {wanted}" if self.tunnels.several else ""
        log.info(
            "the tunnel to %s is up, session %s%s",
            self.config.endpoint.name, tunnel.session.session_id, which,
        )  # fmt: skip
        if heeded and not self.tunnels.heeded:
            log.warning(
                "hub %s took a second tunnel, so something in front of %s drops the header hawse-elsewhere: "
                "this relay keeps one tunnel until it restarts",
                tunnel.hub, self.config.endpoint.name,
            )  # fmt: skip
        if self.tunnels.surplus:
            # Another one came back during the dial, and may have streams.
            self._end_surplus(tunnel)
        if self.tunnels.missing:
            self._dial_in(self.backoff.wait_after_tunnel_s(trio.current_time()))

    def _note_failure(self, failed: DialFailed, listed: list[str]) -> None:
        """Say when the next dial is to follow one that has failed."""
        self.hub_time = failed.hub_time
        if failed.busy and failed.hub in listed:
            self._note_met(failed)
            return
        wait_s = 0.0 if failed.hub_time else self._wait_after_failure_s(failed)
        level, what = (logging.INFO, "no other tunnel") if self.tunnels.up else (logging.WARNING, "no tunnel")
        log.log(
            level,
            "%s to %s: %s; the next attempt is in %.0f s",
            what, self.config.endpoint.name, failed, wait_s,
        )  # fmt: skip
        self.awaits_drain = self._hub_drains and not failed.refused
        self._dial_in(wait_s)

    def _note_met(self, failed: DialFailed) -> None:
        """Say when to dial again after a dial for one more tunnel came to a hub that has one."""
        self.met += 1
        tunnels = self.tunnels
        if self.met < ELSEWHERE_MAX or not tunnels.up:
            self._dial_in(self.backoff.wait_after_dial_s(trio.current_time(), failed.retry_after_s))
            return
        self.met = 0
        wait_s = CONTENT_S * (1 + CONTENT_SPREAD * self.config.chance())
        log.info(
            "%d dials of %s came to hubs that have a tunnel: there are %d of %d tunnels, and the next "
            "attempt is in %.0f s",
            ELSEWHERE_MAX, self.config.endpoint.name, tunnels.up, tunnels.wanted, wait_s,
        )  # fmt: skip
        self._dial_in(wait_s)

    def _wait_after_failure_s(self, failed: DialFailed) -> float:
        if failed.busy and self.tunnels.several:
            return self.backoff.wait_after_dial_s(trio.current_time(), failed.retry_after_s)
        if failed.refused:
            return self.backoff.wait_after_refusal_s(failed.retry_after_s)
        if self._hub_drains:
            return self.backoff.wait_while_draining_s()
        return self.backoff.wait_after_dial_s(trio.current_time())

    @property
    def _hub_drains(self) -> bool:
        """Whether the one hub has said GOAWAY and still serves the session."""
        tunnel = self.draining
        if tunnel is None or self.tunnels.several:
            return False
        return not (tunnel.session.closed or tunnel.session.detached)

    # --- the open tunnels ---

    async def _watch(self, tunnel: Tunnel) -> None:
        """Wait until the tunnel ends, or its hub goes away, and have another one dialled."""
        session = tunnel.session
        going = await session.wait_going_away()
        self.backoff.note_session(trio.current_time() - tunnel.opened_at)
        if going is not None and tunnel in self.tunnels.current:
            self._follow_goaway(tunnel, going)
        await tunnel.ended.wait()
        stayed = tunnel in self.tunnels.current
        self.tunnels.remove(tunnel)
        if stayed:
            lived_s = trio.current_time() - tunnel.opened_at
            log.warning(
                "the tunnel to %s ended after %.0f s: %s; %s",
                self.config.endpoint.name, lived_s, tunnel.ending,
                self._replace(self._wait_after_end_s, tunnel),
            )  # fmt: skip

    def _replace(self, wait_s: Callable[[Tunnel], float], tunnel: Tunnel) -> str:
        """Have a tunnel replaced `wait_s` from now, if it is missing; returns for the log what follows."""
        self.met = 0
        if not self.tunnels.missing:
            return f"there are {self.tunnels.up} others"
        next_s = wait_s(tunnel)
        self._dial_in(next_s)
        return f"the next attempt is in {next_s:.0f} s"

    def _follow_goaway(self, tunnel: Tunnel, going: GoAway) -> None:
        """Dial another hub, or the hub's successor, beside the tunnel that ends."""
        session = tunnel.session
        if session.closed:
            self.tunnels.remove(tunnel)
        else:
            self._let_go(tunnel, going.drain_ms / 1000)
            self.draining = tunnel
            self.nursery.start_soon(self._wait_for_drain, tunnel)
        self.met = 0
        wait_s = self.backoff.wait_after_goaway_s(trio.current_time(), going.retry_after_ms / 1000)
        log.info(
            "the hub at %s goes away (%s): dialling again in %.1f s, streams that go on there: %d",
            self.config.endpoint.name, going.reason, wait_s, session.stream_count,
        )  # fmt: skip
        self._dial_in(wait_s)

    async def _wait_for_drain(self, tunnel: Tunnel) -> None:
        """Dial as soon as a draining hub ends, if no dial was answered meanwhile.

        A hub that no other one has replaced listens again only after it has ended.
        """
        await tunnel.session.wait_detached()
        if self.draining is tunnel and self.awaits_drain:
            self._dial_in(self.backoff.wait_after_tunnel_s(trio.current_time()))

    def _wait_after_end_s(self, tunnel: Tunnel) -> float:
        session, failed = tunnel.session, tunnel.failed
        asked_s = session.peer_going_away.retry_after_ms / 1000 if session.peer_going_away else 0.0
        if failed is not None and failed.refused and not (failed.busy and self.tunnels.several):
            return self.backoff.wait_after_refusal_s(failed.retry_after_s)
        if asked_s or session.close_code in _REFUSALS:
            return self.backoff.wait_after_refusal_s(asked_s)
        hub_is_here = failed is not None and failed.forgotten
        return self.backoff.wait_after_tunnel_s(trio.current_time(), hub_is_here=hub_is_here)

    def _note_away(self, tunnel: Tunnel) -> None:
        """Replace a tunnel that may come back, but not soon, where there are other hubs."""
        if not self.tunnels.several or tunnel not in self.tunnels.current:
            return
        tunnel.away = True
        log.info(
            "session %s has lost its connection, and is not back after %.0f s; %s",
            tunnel.session.session_id, AWAY_S,
            self._replace(lambda _: self.backoff.wait_after_tunnel_s(trio.current_time()), tunnel),
        )  # fmt: skip

    def _note_back(self, tunnel: Tunnel) -> None:
        """Keep a tunnel that is back, or let it go if it was replaced meanwhile."""
        tunnel.away = False
        if tunnel in self.tunnels.current and self.tunnels.surplus:
            self._end_surplus(tunnel)

    def _end_surplus(self, tunnel: Tunnel) -> None:
        """End a tunnel with its streams, as others are enough."""
        log.info(
            "session %s ends with its streams: there are %d other tunnels",
            tunnel.session.session_id, self.tunnels.up - 1,
        )  # fmt: skip
        tunnel.session.go_away(
            code=CloseCode.DRAINING,
            drain_ms=int(LEAVING_S * 1000),
            reason="another tunnel of this relay has replaced this one",
        )
        self._let_go(tunnel, LEAVING_S)
        self.nursery.start_soon(_end_without_streams, tunnel.session)

    def _let_go(self, tunnel: Tunnel, drain_s: float) -> None:
        """Bound the time of a tunnel that ends beside the next one."""
        tunnel.scope.deadline = trio.current_time() + (drain_s or LEAVING_S) + LEAVING_SLACK_S
        self.tunnels.leave(tunnel)
        leaving = self.tunnels.leaving
        if len(leaving) > LEAVING_MAX:
            log.warning(
                "%d tunnels to hubs that go away are open, the limit is %d: the oldest is closed",
                len(leaving), LEAVING_MAX,
            )  # fmt: skip
            leaving[0].scope.cancel()


def _ignore(_: str) -> None:
    """Count no dial."""


async def _end_without_streams(session: Session) -> None:
    await trio.sleep(CROSSING_S)
    await session.wait_quiet()
    session.end(CloseCode.NORMAL, "replaced by another tunnel")


async def _serve_until_closed(session: Session, serve: Callable[[Session], Awaitable[None]]) -> str:
    with suppress(SessionClosed):
        await serve(session)
    return await session.wait_closed() if session.closed else "closed by us"
