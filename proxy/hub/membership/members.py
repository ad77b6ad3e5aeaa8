"""The hubs of one directory in PostgreSQL, as this hub has read them last.

This hub's own row is its lease (proxy/hub/membership/lease.py), which is renewed every RENEW_EVERY_S. The
statement that renews it reads the rows of all hubs.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from proxy.hub.membership.member import Member

# A hub that stops renewing is not dialled any more after `stale_s` and two seconds.
RENEW_EVERY_S = 2.0


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

    def others(self) -> list[Member]:
        """Return the other boots that are not gone and not dead, living or not, oldest first.

        The old process of a hub that was replaced is one of them: its `hub` is that of `me`.
        """
        raise NotImplementedError

    def by_boot(self, boot: str) -> Member | None:
        """Return a boot in any state; None if it is unknown, or has ended some minutes ago."""
        raise NotImplementedError

    def of_hub(self, hub: str) -> list[Member]:
        """Return the boots of a hub id that are not gone and not dead, this one included, newest first."""
        raise NotImplementedError

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reading that differs in more than ages, figures and versions.

        It runs on the loop, and must neither wait nor raise.
        """
        raise NotImplementedError

    def renew_soon(self) -> None:
        """Renew at once, as after a change of what the row says."""
        raise NotImplementedError
