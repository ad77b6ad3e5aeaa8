"""How old a hub's snapshot is, and what follows from that. Pure: the time is an argument.

The age counts from the moment at which the hub sent the last statement whose version it has applied. Applied
means that the snapshot is in place and the listeners are called, so open calls are judged by it. A statement
that is answered while the reading after it fails, raises or hangs confirms nothing.

Times are of a monotonic clock. A process that was stopped may read a buffered request before any of its
timers runs, so admission compares the time itself, at each call.
"""

from __future__ import annotations

import enum
import math

import attrs

# A failover takes 0.2 to 5 s where promotion is quick, and should refuse nothing.
STALE_S = 10
# The lifetime of a token: after that no agent could call anyway.
STALE_STREAMS_S = 60
# An operator should know of an outage that lasts longer.
LATE_S = 5.0


class Stage(enum.Enum):
    """What the hub does at an age."""

    CONFIRMED = enum.auto()
    LATE = enum.auto()
    """It logs."""
    STALE = enum.auto()
    """It refuses what is new."""
    EXPIRED = enum.auto()
    """It ends what runs."""


@attrs.define(eq=False)
class SnapshotAge:
    """The age of one snapshot, and other reasons why it must not decide. For one thread."""

    confirmed_s: float
    """When the last statement was sent whose version is applied."""
    stale_s: float = STALE_S
    stale_streams_s: float = STALE_STREAMS_S
    withheld: str = attrs.field(default="", init=False)
    """Another reason why the snapshot must not decide; set by `withhold`."""
    serves_until_s: float = attrs.field(init=False)
    """When admission has to begin to refuse: one comparison for each call."""

    def __attrs_post_init__(self) -> None:
        self._set_end()

    def confirm(self, sent_s: float) -> None:
        """Note that the version which a statement has read is applied; `sent_s` is when it was sent."""
        # Two statements may be applied in another order than they were sent.
        if sent_s > self.confirmed_s:
            self.confirmed_s = sent_s
            self._set_end()

    def withhold(self, reason: str) -> None:
        """Refuse what is new for this reason, at any age; "" ends that."""
        self.withheld = reason
        self._set_end()

    def age_s(self, now_s: float) -> float:
        """Return the age of the snapshot."""
        return now_s - self.confirmed_s

    def refusal(self, now_s: float) -> str:
        """Return why the snapshot must not decide about anything new; "" if it may."""
        if now_s < self.serves_until_s:
            return ""
        return self.withheld or (
            f"this hub cannot confirm its state with the database since {self.age_s(now_s):.0f} s "
            f"(database.stale_s is {self.stale_s:.0f})"
        )

    @property
    def late_s(self) -> float:
        """The age from which an operator should know."""
        return min(LATE_S, self.stale_s)

    def stage(self, now_s: float) -> Stage:
        """Return what the age demands."""
        age_s = self.age_s(now_s)
        if age_s >= self.stale_streams_s:
            return Stage.EXPIRED
        if age_s >= self.stale_s:
            return Stage.STALE
        return Stage.LATE if age_s >= self.late_s else Stage.CONFIRMED

    def _set_end(self) -> None:
        self.serves_until_s = -math.inf if self.withheld else self.confirmed_s + self.stale_s
