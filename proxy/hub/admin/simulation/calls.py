"""Reads recorded calls from the trail, for a simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import attrs
import msgspec

from audit.query import Query
from audit.reader import StoredEvent, TrailReader
from audit.record import Event, Kind
from auth.policy.simulation import Recorded


@attrs.frozen
class RecordedCalls:
    """The agents' calls in a trail. Its methods raise AuditUnavailable."""

    reader: TrailReader

    def begin(self) -> datetime | None:
        """Return the time of the trail's oldest event of any kind; None for an empty trail."""
        for stored in self.reader.query(limit=1):
            event = _event(stored)
            return event.ts if event is not None else None
        return None

    def any_of(self, *, agent: str | None = None, cluster: str | None = None) -> bool:
        """Whether the trail has any call of an agent, or on a cluster."""
        first, last = self.reader.span()
        return any(self._stored(first, last, None, agent, cluster))

    def since(
        self, start: datetime, agent: str | None, cluster: str | None, tell: Callable[[int, int], None]
    ) -> Iterator[Recorded]:
        """Yield each call once, oldest first. `tell` gets the events read, and all; 0 if that is unknown."""
        first, last = self.reader.span(Query(since=start))
        read = 0
        for stored in self._stored(first, last, start, agent, cluster):
            read += 1
            # Positions in PostgreSQL do not count events.
            if stored.place is None:
                tell(stored.seq - first + 1, last - first + 1)
            else:
                tell(read, 0)
            event = _event(stored)
            if event is None or event.phase.opens or event.req is None or not event.agent:
                continue
            yield Recorded(
                event.agent,
                event.cluster_name,
                event.req.method,
                event.req.raw_target,
                event.ts.timestamp(),
                upgrade=event.stream is not None and event.stream.upgraded,
            )

    def _stored(
        self, first: int, last: int, start: datetime | None, agent: str | None, cluster: str | None
    ) -> Iterator[StoredEvent]:
        kinds = (Kind.CALL, Kind.SESSION_KILLED)
        query = Query(agent=agent, cluster=cluster, kinds=kinds, since=start)
        return self.reader.events(first, last, query)


def _event(stored: StoredEvent) -> Event | None:
    """Decode the event; None if it is from a newer version with unknown kinds of events."""
    try:
        return msgspec.json.decode(stored.body, type=Event)
    except msgspec.ValidationError:
        return None
