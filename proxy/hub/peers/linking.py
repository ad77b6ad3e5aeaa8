"""Keeps one hub linked that this one has to dial."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final

import attrs
import trio

from proxy.hub.membership.member import Member
from proxy.hub.peers.link import PeerLink
from tunnel import (
    CloseCode,
    Hello,
    Memory,
    Rejected,
    RemoteProtocolError,
    Role,
    Session,
    SessionClosed,
    Settings,
    Transport,
    TransportClosed,
    open_session,
)
from tunnel.dialing.failure import DialFailed
from tunnel.dialing.redial import Redial
from tunnel.handshake import say_hello

# From the address to the WELCOME. Hubs are near one another.
DIAL_S: Final = 5.0
# Between two dials. A hub has a handful of peers, and each dial that fails costs it a millisecond.
PAUSE_S: Final = 1.0
# The first dial for a link that has lost its connection: its streams wait for it.
FIRST_S: Final = 0.1
# A failure that goes on is logged as often.
LOG_AGAIN_S: Final = 60.0

_log = logging.getLogger("hawse.hub.peers")


@attrs.define(eq=False)
class _Dialled:
    """A hub that has answered the hello."""

    transport: Transport
    greeting: bytes
    scope: trio.CancelScope
    done: bool = False

    def succeeded(self) -> None:
        """Take the dial for done: what fails from now on is the session's; raises DialFailed."""
        if self.scope.cancel_called:
            # A cancellation is under way that cannot be called back, and would end the session.
            raise _too_late()
        self.done = True
        self.scope.deadline = math.inf


def _too_late() -> DialFailed:
    return DialFailed(f"no answer within {DIAL_S:.0f} s")


@attrs.define(eq=False)
class Linking:
    """Dials one boot of a hub: for a link, and for each link that has lost its connection."""

    member: Member
    connect: Callable[[Member, str], AbstractAsyncContextManager[Transport]]
    hello: Hello
    settings: Settings
    memory: Memory | None
    keep: Callable[[PeerLink], Awaitable[None]]
    """Serves a link until it has ended."""
    failing_since: float = math.inf
    """When the first of the dials that fail was made, on trio's clock."""
    _logged: tuple[str, float] = "", -math.inf

    async def run(self, wanted: Callable[[], Member | None]) -> None:
        """Keep it linked, as long as `wanted` returns its row; returns when its last link has ended."""
        async with trio.open_nursery() as nursery:
            while (member := wanted()) is not None:
                self.member = member
                try:
                    link: PeerLink = await nursery.start(self._hold)
                except DialFailed as error:
                    self._failed(error)
                    await trio.sleep(PAUSE_S)
                else:
                    going = await link.session.wait_going_away()
                    await trio.sleep(PAUSE_S if going is None else FIRST_S)

    async def _hold(self, task_status: trio.TaskStatus[PeerLink]) -> None:
        """Open a link and serve it to its end; raises DialFailed if there is none."""
        async with (
            self._dial(self.hello) as dialled,
            open_session(
                dialled.transport,
                Role.DIALER,
                hello=self.hello,
                greeting=dialled.greeting,
                settings=self.settings,
                memory=self.memory,
            ) as session,
        ):
            # Before the dial is done: it raises SessionClosed for a session that has ended with its greeting.
            link = PeerLink(self.member, session)
            dialled.succeeded()
            self.failing_since = math.inf
            task_status.started(link)
            async with trio.open_nursery() as nursery:
                lost = partial(self._not_back, session)
                nursery.start_soon(Redial(session, self._dial, lambda: FIRST_S, self._back, lost).run)
                await self.keep(link)
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _dial(self, hello: Hello) -> AsyncIterator[_Dialled]:
        """Dial the hub and hear its answer; the connection is closed when the block is left.

        Raises DialFailed, also for what happens in the block before `succeeded`.
        """
        resume = "" if hello.resume is None else hello.resume.session_id
        dialled: _Dialled | None = None
        with trio.CancelScope(deadline=trio.current_time() + DIAL_S) as scope:
            try:
                async with self.connect(self.member, resume) as transport:
                    dialled = _Dialled(transport, await say_hello(transport, hello), scope)
                    yield dialled
            except (Rejected, SessionClosed, RemoteProtocolError, TransportClosed) as error:
                if dialled is not None and dialled.done:
                    raise
                forgotten = isinstance(error, Rejected) and error.close_code == CloseCode.RESUME_UNKNOWN
                raise DialFailed(f"it does not greet: {error}", forgotten=forgotten) from error
        if scope.cancelled_caught:
            raise _too_late()

    def _back(self) -> None:
        self.failing_since = math.inf
        _log.info("the link to hub %s goes on over another connection", self.member.name)

    def _not_back(self, session: Session, error: DialFailed) -> float:
        self._failed(error)
        if error.forgotten:
            session.abandon(str(error))
        return PAUSE_S

    def _failed(self, error: DialFailed) -> None:
        now, reason = trio.current_time(), str(error)
        self.failing_since = min(self.failing_since, now)
        logged, at = self._logged
        if reason != logged or now - at >= LOG_AGAIN_S:
            self._logged = reason, now
            _log.warning("no link to hub %s: %s", self.member.name, reason)
