"""The hubs of one directory in PostgreSQL, as this hub has read them last.

This hub's own row is its lease (proxy/hub/membership/lease.py). The statement that renews it reads the rows
of all hubs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import trio

from proxy.hub.membership.member import ENDED, Member, MemberState


class LostLeaseError(Exception):
    """Another hub has closed the calls of this one, or the database has lost its row."""


@attrs.frozen
class Figures:
    """What a hub tells the others of itself with each renewal."""

    tunnels: int = 0
    calls: int = 0
    unreachable: tuple[str, ...] = ()
    """The ids of the hubs that it cannot link to."""


@attrs.define(eq=False)
class Members:
    """The hubs; for the loop's thread."""

    me: Member
    """This boot."""
    figures: Callable[[], Figures] = Figures
    """Read at each renewal; the hub sets it once its parts are built."""
    fault: str = ""
    """Why the last renewal has failed; "" if it has not."""
    _all: dict[str, Member] = attrs.field(init=False, factory=dict)
    """By boot, oldest first."""
    _listeners: list[Callable[[], None]] = attrs.field(init=False, factory=list)
    _begun: int = attrs.field(init=False, default=0)
    """How many renewals have begun, and the number of the last one that has succeeded."""
    _done: int = attrs.field(init=False, default=0)
    _noted: trio.Event = attrs.field(init=False, factory=trio.Event)
    _wanted: trio.Event = attrs.field(init=False, factory=trio.Event)

    def others(self) -> list[Member]:
        """Return the other boots that are not gone and not dead, living or not, oldest first.

        The old process of a hub that was replaced is one of them: its `hub` is that of `me`.
        """
        return [each for each in self._all.values() if each.boot != self.me.boot and each.state not in ENDED]

    def by_boot(self, boot: str) -> Member | None:
        """Return a boot in any state; None if it is unknown, or has ended some minutes ago."""
        return self._all.get(boot)

    def of_hub(self, hub: str) -> list[Member]:
        """Return the boots of a hub id that are not gone and not dead, this one included, newest first."""
        found = [each for each in self._all.values() if each.hub == hub and each.state not in ENDED]
        return found[::-1]

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reading that differs in more than ages, figures and versions.

        It runs on the loop, and must neither wait nor raise.
        """
        self._listeners.append(callback)

    def renew_soon(self) -> None:
        """Renew at once, as after a change of what the row says."""
        self._wanted.set()

    def leave(self) -> None:
        """Say that this hub drains, from now on."""
        self.me = attrs.evolve(self.me, state=MemberState.LEAVING)
        self.renew_soon()

    async def read(self) -> None:
        """Return once a renewal that begins after this call has read all hubs.

        While the database is away, that lasts as long: the caller bounds it.
        """
        number = self._begun + 1
        self.renew_soon()
        while self._done < number:
            await self._noted.wait()

    # The lease calls the methods below.

    async def wait_wanted(self) -> None:
        """Return once a renewal is wanted."""
        await self._wanted.wait()

    def begin(self) -> Member:
        """Begin a renewal; returns what it writes."""
        self._wanted = trio.Event()
        self._begun += 1
        figures = self.figures()
        return attrs.evolve(
            self.me, tunnels=figures.tunnels, calls=figures.calls, unreachable=figures.unreachable
        )

    def note(self, rows: Sequence[Member]) -> None:
        """Take the reading of a renewal."""
        self._done = self._begun
        before, self._all = self._all, {each.boot: each for each in rows}
        mine = self._all.get(self.me.boot)
        if mine is not None:
            # The state here is newer than the one that was read.
            self.me = self._all[self.me.boot] = attrs.evolve(mine, state=self.me.state)
        if list(map(_facts, before.values())) != list(map(_facts, self._all.values())):
            for listener in self._listeners:
                listener()
        noted, self._noted = self._noted, trio.Event()
        noted.set()


def _facts(member: Member) -> tuple[object, ...]:
    """What listeners are called for."""
    return (
        *(member.boot, member.address, member.certificate, member.software, member.links),
        *(member.state, member.unreachable, member.living),
    )
