"""Which hubs this one dials. Of two hubs one dials, and tries again each second until there is a link, or the
other one is not living any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, Protocol

import attrs
import trio

from proxy.hub.membership.member import Member
from proxy.hub.peers.link import PeerLink
from proxy.hub.peers.linking import Linking
from tunnel import RESUME, Hello, Memory, Settings, Transport

# A dial fails for a moment at each restart, and that is no news.
UNREACHABLE_S: Final = 5.0


class Membership(Protocol):
    """What the mesh needs of `membership.Members`; a test has one of its own."""

    @property
    def me(self) -> Member:
        """This hub."""

    def others(self) -> list[Member]:
        """The other hubs: neither gone nor dead, and not this boot."""

    def by_boot(self, boot: str) -> Member | None:
        """The hub of this boot in any state."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call after each reading that differs."""


Connect = Callable[[Member, str], AbstractAsyncContextManager[Transport]]
"""Connects to a hub, for the session of this id or a new one (""); raises DialFailed. See PeerDialer."""


@attrs.define(eq=False)
class Dialling:
    """Keeps a task for each hub that this one has to dial."""

    members: Membership
    connect: Connect
    settings: Settings
    memory: Memory | None
    keep: Callable[[PeerLink], Awaitable[None]]
    """Serves a link until it has ended."""
    _linkings: dict[str, Linking] = attrs.field(init=False, factory=dict)
    """By boot."""

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Ids of living hubs that could not be dialled for UNREACHABLE_S."""
        until = trio.current_time() - UNREACHABLE_S
        return tuple(
            sorted({each.member.hub for each in self._linkings.values() if each.failing_since < until})
        )

    def dials(self, member: Member) -> bool:
        """Whether this hub has to dial the other one, by the rows of both: each side finds the same.

        One that has no address, or whose listener a newer process of the same hub has, dials the others. Of
        two that can be dialled, the one with the smaller id dials.
        """
        here, there = self._is_dialable(self.members.me), self._is_dialable(member)
        if here and there:
            return self.members.me.hub < member.hub
        return there

    def _is_dialable(self, member: Member) -> bool:
        rows = (self.members.me, *self.members.others())
        return bool(member.address) and not any(
            each.hub == member.hub and each.epoch > member.epoch for each in rows
        )

    def _wanted(self, boot: str) -> Member | None:
        """The row of a boot, while this hub has to dial it."""
        for member in self.members.others():
            if member.boot == boot:
                return member if member.living and self.dials(member) else None
        return None

    def follow(self, nursery: trio.Nursery) -> None:
        """Begin to dial the hubs that have to be dialled by the rows of now."""
        for member in self.members.others():
            if member.boot not in self._linkings and self._wanted(member.boot) is not None:
                linking = Linking(member, self.connect, self._hello(), self.settings, self.memory, self.keep)
                self._linkings[member.boot] = linking
                nursery.start_soon(self._run, linking, nursery)

    async def _run(self, linking: Linking, nursery: trio.Nursery) -> None:
        boot = linking.member.boot
        try:
            await linking.run(partial(self._wanted, boot))
        finally:
            del self._linkings[boot]
        # It may have to be dialled again since its last link ended.
        self.follow(nursery)

    def _hello(self) -> Hello:
        me = self.members.me
        return self.settings.stated_in(
            Hello(features=(RESUME,), instance=me.hub, boot_id=me.boot, software=me.software)
        )
