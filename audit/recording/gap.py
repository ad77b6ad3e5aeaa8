"""A period in which the store is down, and its event in the trail."""

from __future__ import annotations

import time

import attrs

from audit.events import new_event
from audit.ids import new_eid
from audit.record import Actor, ActorType, Event, Kind


@attrs.define(eq=False)
class Gap:
    """A period in which the store is down, and the number of events without a row."""

    reason: str
    began: float
    retry_at_s: float
    refused: int = 0
    lost: int = 0
    began_s: float = attrs.Factory(time.monotonic)
    """On the monotonic clock, to measure the duration."""

    @property
    def lasts_s(self) -> float:
        """How many seconds it has lasted so far."""
        return time.monotonic() - self.began_s

    def rest(self, recorded: Gap, now: float) -> Gap | None:
        """Return the gap that follows when this one ends, of which the trail has the `recorded` state.

        Events that were refused while its event was being committed belong to the next gap.
        """
        refused, lost = self.refused - recorded.refused, self.lost - recorded.lost
        return Gap(recorded.reason, now, 0.0, refused, lost) if refused or lost else None

    def event(self, org: str) -> Event:
        """Return its event, as of now."""
        return new_event(
            Kind.AUDIT_GAP,
            Actor(ActorType.HUB),
            org=org,
            at=self.began,
            eid=new_eid(),
            dur_ms=round(self.lasts_s * 1000, 3),
            count=max(1, self.refused + self.lost),
            note=f"writes refused: {self.refused}, events lost: {self.lost} ({self.reason})",
        )
