"""The links of a hub, among which those that carry a stream to a certain hub are found."""

from __future__ import annotations

import trio

from proxy.hub.membership.member import Member
from proxy.hub.peers.link import LinkDown, PeerLink


class HubLinks(list[PeerLink]):
    """All links that have not ended, the oldest first. A hub may have two, while a new one replaces the
    first."""

    def __init__(self) -> None:
        super().__init__()
        # Set, and replaced, when a link comes up.
        self._up = trio.Event()

    def link_to(self, boot: str) -> PeerLink | None:
        """Return the newest link to this boot of a hub that is up, or None."""
        for link in reversed(self):
            if link.member.boot == boot and link.up:
                return link
        return None

    async def wait_link(self, member: Member, within_s: float) -> PeerLink:
        """Return the newest link to a hub; a living hub that was just started or cut off is waited for.

        Raises LinkDown without a link `within_s`, and at once for a hub that does not renew its lease.
        """
        with trio.move_on_after(within_s if member.living else 0):
            while (link := self.link_to(member.boot)) is None:
                await self._up.wait()
            return link
        raise LinkDown(f"hub {member.hub} has no link to this one")

    def came_up(self) -> None:
        """Wake those that wait: a link is new, or has its connection back."""
        self._up.set()
        self._up = trio.Event()
