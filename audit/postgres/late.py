"""The events of a hub whose epoch another process has closed, since it took the hub for dead.

Such a hub was stopped, or cut off from the database, for longer than its lease. Its calls were closed as
`unknown`. If it goes on, its last events are written into the shared epoch: a call that has an end gets an
event of its own, and never a second end. An end that was committed before its epoch was closed, without an
answer, is not written again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs
from msgspec.structs import replace

from audit.errors import ContentRefused
from audit.ids import new_eid
from audit.postgres.batch import Row, whole_row
from audit.record import Event, Kind, Phase


@attrs.frozen
class LateBatch:
    """Events for the shared epoch."""

    rows: list[Row]
    _refused: Mapping[str, str]
    _late: Mapping[str, Row]

    @classmethod
    def of(cls, events: Sequence[Event], why: str, *, before: Sequence[Event] = ()) -> LateBatch:
        """Sort a batch whose epoch was closed before it was written, as `why` says.

        `before` is the batch before it, of unknown fate: its intents are refused already.
        """
        ends = [event for event in (*before, *events) if not event.phase.opens]
        return cls(
            [whole_row(event) for event in ends],
            {event.eid: why for event in events if event.phase.opens},
            {event.eid: whole_row(_late(event)) for event in ends},
        )

    def pick(self, row: Row, present: Collection[tuple[str, str]]) -> Row | None:
        """Return what to write for a row, by the ids and phases that the trail has."""
        if row[:2] in present:
            return None
        return self._late[row[0]] if (row[0], Phase.UNKNOWN.value) in present else row

    def check(self) -> None:
        """Raise ContentRefused if an event begins a call, which has to be refused."""
        if self._refused:
            raise ContentRefused(self._refused, {})


def _late(event: Event) -> Event:
    """Make the event for the end of a call that was closed: all of it, under an id of its own."""
    note = f"the end of {event.eid}, which was closed as unknown"
    return replace(
        event,
        eid=new_eid(),
        kind=Kind.AUDIT_LATE,
        phase=Phase.COMPLETE,
        note=f"{note}: {event.note}" if event.note else note,
    )
