"""Which version of the directory a hub has applied, and what has confirmed it.

Without a lease (SQLite), each poll confirms the version that it reads. A hub with a lease is confirmed by its
renewals alone: a primary that its standby has left answers polls, and takes no commit.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from proxy.hub.store.versions.snapshot_age import SnapshotAge
from proxy.hub.store.versions.version import Version


@attrs.frozen
class Found:
    """A version that was read, with the time of the statement that confirms it."""

    version: Version
    confirmed_s: float


@attrs.define(eq=False)
class Applied:
    """The version that one hub has applied; `find` is for the thread that reads, all else for the loop."""

    age: SnapshotAge
    version: Version
    """The newest version that was read and that all listeners know, without changes in memory."""
    renewal_fault: str = ""
    """Why the last renewal of the lease has failed; "" if it has not."""
    found: Found = attrs.field(init=False)
    _renewal: Found | None = attrs.field(init=False, default=None)
    """The version that the last renewal has read, and when it was sent."""

    @found.default
    def _found_at_first(self) -> Found:
        return Found(self.version, self.age.confirmed_s)

    def find(self, version: Version, sent_s: float, keeps: Callable[[Version], bool]) -> None:
        """Note a version that was read by a statement which was sent then.

        `keeps` returns whether the database still has a version that is not the newest.
        """
        renewal = self._renewal
        if renewal is None:
            self.found = Found(version, sent_s)
            return
        # A change may have followed the renewal. But a server that was left behind has other changes.
        known = renewal.version
        follows = known == version or (known.number < version.number and keeps(known))
        self.found = Found(version, renewal.confirmed_s if follows else self.found.confirmed_s)

    def apply(self, found: Found) -> None:
        """Note that all listeners know this version."""
        self.version = found.version
        self.age.confirm(found.confirmed_s)

    def renew(self, version: Version, sent_s: float) -> bool:
        """Note a renewal of the lease; returns whether a poll has to read what it confirms."""
        self._renewal = Found(version, sent_s)
        if version != self.version:
            return True
        self.age.confirm(sent_s)
        return False
