"""What the actions on the trail need of a hub."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from audit.errors import NoTrail
from audit.mask import Masks
from audit.search.search import SearchReader
from proxy.hub.admin.trail.denials import LastDenials
from proxy.hub.admin.trail.follow import TrailPoll
from proxy.hub.admin.trail.searches import TrailSearches


@attrs.frozen
class TrailService:
    """The searches and the followers of a hub's trail."""

    searches: TrailSearches
    poll: TrailPoll
    masks: Masks
    """Masks search texts, since each search is an event."""
    denials: LastDenials

    @classmethod
    def of(cls, open_reader: Callable[[], SearchReader], masks: Masks) -> TrailService:
        """Build both. `open_reader` opens the trail, in any thread; it raises AuditUnavailable."""
        searches = TrailSearches(open_reader)
        return cls(searches, TrailPoll(searches), masks, LastDenials(searches))

    async def run(self) -> None:
        """Look for new events until cancelled, and close the trail then."""
        try:
            await self.poll.run()
        finally:
            self.searches.close()

    @classmethod
    def without_trail(cls) -> TrailService:
        """Build a service whose searches say that there is no trail, as for the tests of other actions."""
        return cls.of(_no_trail, Masks())


def _no_trail() -> SearchReader:
    raise NoTrail("no audit trail is open")
