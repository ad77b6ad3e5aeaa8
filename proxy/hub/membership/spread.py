"""Waits until all hubs decide by the directory as this hub does."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from proxy.hub.membership.member import Member
from proxy.hub.membership.members import Members
from proxy.hub.store.directory import Directory
from proxy.hub.store.engines.errors import StoreUnavailableError

# A hub learns of a change within some milliseconds, and at the next poll otherwise.
SPREAD_WAIT_S = 2.0
# Between two readings: other hubs renew once they have applied a change.
LOOK_S = 0.1


@attrs.define(eq=False)
class Spread:
    """The spreading of this hub's changes; on SQLite there are no others."""

    directory: Directory
    members: Members | None = None
    """Set once this hub has joined the others."""

    @property
    def others(self) -> Sequence[Member]:
        """The other hubs that run, at the last reading."""
        return () if self.members is None else self.members.others()

    async def wait(self) -> Sequence[Member]:
        """Return the hubs that have not applied this hub's state within SPREAD_WAIT_S, and may decide by an
        older one.
        """
        if self.members is None:
            return ()
        number = self.directory.applied.version.number
        with trio.move_on_after(SPREAD_WAIT_S):
            # At least one reading: a hub may have joined since the last one.
            while True:
                await self.members.read()
                if not self._behind(number):
                    return ()
                await trio.sleep(LOOK_S)
        return self._behind(number)

    async def demand(self) -> None:
        """Wait as `wait` does; raises StoreUnavailableError if a hub is behind."""
        behind = await self.wait()
        if behind:
            raise StoreUnavailableError(notice_of(behind))

    def _behind(self, number: int) -> list[Member]:
        return [each for each in self.others if each.applied < number]


def notice_of(behind: Sequence[Member]) -> str:
    """Word which hubs have not applied a change; "" for none."""
    if not behind:
        return ""
    named = ", ".join(
        f"{each.name}, whose lease ends in {each.ends_in_s:.0f} s at the latest" for each in behind
    )
    return f"not yet in force at every hub; missing: {named}"
