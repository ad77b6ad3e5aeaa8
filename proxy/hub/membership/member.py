"""One hub process among those of a directory, as its row in the table `hubs` describes it."""

from __future__ import annotations

import enum

import attrs

LINKS = 1
"""The version of the links' protocol that this software speaks."""
# A hub refuses everything new at its `stale_s`. The others use it for this much longer, since their readings
# are up to a renewal old.
LIVING_MARGIN_S = 2.0
# A hub ends all calls at its `stale_streams_s`. The others close them in the trail this much later.
DEAD_MARGIN_S = 15.0


class MemberState(enum.StrEnum):
    """The state of a hub process."""

    SERVING = "serving"
    LEAVING = "leaving"
    """It drains: it was stopped, or another process has replaced it."""
    GONE = "gone"
    """It has ended in order. Its calls have their ends in the trail."""
    DEAD = "dead"
    """Another hub has closed its calls, since its lease had ended."""


ENDED = frozenset({MemberState.GONE, MemberState.DEAD})


@attrs.frozen(kw_only=True)
class Member:
    """A hub process, at the last reading of its row."""

    hub: str
    """The id of its data folder's hub: 8 hexadecimal digits, which stay over restarts."""
    boot: str
    """The id of the process."""
    epoch: int = 0
    """The epoch of this boot in the audit trail. A later boot has a higher one."""
    address: str = ""
    """Where other hubs dial it (`peer.address`); "" without `peer`."""
    certificate: str = attrs.field(default="", repr=False)
    """The self-signed certificate (PEM) of its listener for links; "" without `peer`."""
    software: str
    """As in `hawse/0.1.0`."""
    links: int = LINKS
    """The version of the links' protocol that it speaks."""
    state: MemberState = MemberState.SERVING
    applied: int
    """The number of the directory's version by which it decides."""
    tunnels: int = 0
    calls: int = 0
    unreachable: tuple[str, ...] = ()
    """The ids of the hubs that it cannot link to."""
    started_at: float = 0.0
    """Epoch seconds of the database's clock."""
    age_s: float = 0.0
    """The time since its lease was renewed, by the database's clock, at the last reading."""
    stale_s: float
    """Its setting `database.stale_s`."""
    stale_streams_s: float
    """Its setting `database.stale_streams_s`."""

    @property
    def living(self) -> bool:
        """Whether others may dial it, and its tunnels count."""
        return self.state not in ENDED and self.age_s < self.stale_s + LIVING_MARGIN_S

    @property
    def ends_in_s(self) -> float:
        """When its lease ends at the latest: then it has no call any more, and the others close its calls."""
        return max(self.stale_streams_s + DEAD_MARGIN_S - self.age_s, 0.0)

    @property
    def name(self) -> str:
        """The hub and the process, for people."""
        return f"{self.hub} (boot {self.boot})"
