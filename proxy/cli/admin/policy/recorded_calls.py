"""Reads recorded calls from the trail, for `hawse admin policy simulate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from proxy.cli.audit.local_events import record_read
from proxy.cli.errors import CommandError
from proxy.cli.progress import Progress

if TYPE_CHECKING:
    from audit.reader import StoredEvent, TrailReader
    from audit.record import Event
    from proxy.cli.admin.policy.tests import Recorded


@attrs.frozen
class RecordedCalls:
    """The agents' calls in a trail."""

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
        self, start: datetime, agent: str | None, cluster: str | None, show_progress: Progress
    ) -> Iterator[Recorded]:
        """Yield each call once, oldest first."""
        from audit.query import Query
        from proxy.cli.admin.policy.tests import Recorded

        first, last = self.reader.span(Query(since=start))
        for stored in self._stored(first, last, start, agent, cluster):
            # Positions in PostgreSQL do not count events.
            if stored.place is None:
                show_progress("events read", stored.seq - first + 1, last - first + 1)
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
        from audit.query import Query
        from audit.record import Kind

        kinds = (Kind.CALL, Kind.SESSION_KILLED)
        query = Query(agent=agent, cluster=cluster, kinds=kinds, since=start)
        return self.reader.events(first, last, query)


@contextmanager
def recorded_calls(folder: Path, filters: Mapping[str, str | None]) -> Iterator[RecordedCalls]:
    """Open a data folder's trail, and record this read in it. Raises CommandError, also during the block."""
    from audit.errors import AuditUnavailable
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.home.files.private_files import DataDirError
    from proxy.hub.home.trails import open_names, place_of

    try:
        place = place_of(DataDir(folder))
        reader = open_names(place)
        try:
            record_read(place, "", "policy simulate", dict(filters))
            yield RecordedCalls(reader)
        finally:
            reader.close()
    except AuditUnavailable as error:
        raise CommandError(
            f"{error}: run simulate on the hub's machine, as the user that runs the hub"
        ) from error
    except DataDirError as error:
        raise CommandError(str(error)) from error


def _event(stored: StoredEvent) -> Event | None:
    """Decode the event; None if it is from a newer version with unknown kinds of events."""
    import msgspec

    from audit.record import Event

    try:
        return msgspec.json.decode(stored.body, type=Event)
    except msgspec.ValidationError:
        return None
