"""A batch of events with the numbers that they have in their epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

import attrs

from audit.events import new_event
from audit.ids import new_eid
from audit.lateends import NEAR_EVENTS
from audit.postgres.link import bytes_of, integer_of, text_of
from audit.record import Actor, ActorType, Event, Kind, Phase, encode
from audit.schema import microseconds, moment
from audit.shared import CommonParts, own_part, whole
from audit.shares import Agent, shares
from audit.store import as_unknown

# Id, phase, kind, time, agent, cluster, number of the common part (0: the body is the whole event), and body.
Row: TypeAlias = tuple[str, str, str, int, str, str, int, bytes]
# Where an open call has its first row: epoch and number.
Place: TypeAlias = tuple[int, int]

# A row's header and its line pointer, and its entries in two indexes.
_INDEXED_BYTES = 28 + 28 + 12
# The ends of a dead hub's calls per statement, whose time is limited: as a batch of audit.recording.recorder.
_SLICE_BYTES_MAX = 2 * 1024 * 1024
_OPENING = frozenset(phase.value for phase in Phase if phase.opens)


@attrs.define(eq=False)
class Batch:
    """The rows of one transaction. They never change after the first attempt to write them, except a row that
    PostgreSQL refuses for its content.
    """

    epoch: int
    before: int
    """The number of the last event before the batch."""
    written: int
    rows: list[Row]
    parts: list[tuple[int, int, bytes]] = attrs.Factory(list)
    """New common parts: number, last event before, and JSON."""
    opened: dict[str, int] = attrs.Factory(dict)
    """The calls that begin in this batch and are open after it, each with the number of its first row."""
    ended: set[str] = attrs.Factory(set)
    """The calls that are open before this batch, and not after it."""
    late: dict[str, int] = attrs.Factory(dict)
    """Ends that are far behind the first rows of their calls (audit.lateends)."""
    shares: dict[Agent, int] = attrs.Factory(dict)
    refused: dict[str, str] = attrs.Factory(dict)
    """The ids of events that PostgreSQL has refused for their content, and why."""
    events: Sequence[Event] = ()
    """What the rows were made from, for a batch that may be written into another epoch."""

    @property
    def newest(self) -> int:
        """The number of the last event."""
        return self.before + len(self.rows)

    def find_ends(self, known: Mapping[str, Place]) -> None:
        """Find which calls begin and end in this batch. `known` are the open calls before it."""
        for n, row in enumerate(self.rows, self.before + 1):
            eid = row[0]
            if row[1] in _OPENING:
                self.opened[eid] = n
            elif eid in self.opened:
                # Begun and ended in one batch: it is never in the list of open calls.
                del self.opened[eid]
            elif eid in known:
                epoch, first = known[eid]
                self.ended.add(eid)
                if epoch != self.epoch or n - first > NEAR_EVENTS:
                    self.late[eid] = n

    def part(self, start: int, end: int) -> Batch:
        """The rows of a part, with their numbers."""
        return attrs.evolve(
            self, before=self.before + start, rows=self.rows[start:end], opened={}, ended=set(), late={}
        )

    def refuse(self, index: int, reason: str) -> None:
        """Replace a row that PostgreSQL refuses with an event that records the refusal.

        Without it, the missing number would look like a deleted event.
        """
        eid, ts_us = self.rows[index][0], self.rows[index][3]
        gap = new_event(
            Kind.AUDIT_GAP,
            Actor(ActorType.HUB),
            org="",
            at=ts_us / 1e6,
            eid=new_eid(),
            note=f"PostgreSQL refused the event {eid}: {reason}",
        )
        self.rows[index] = whole_row(gap)
        self.opened.pop(eid, None)
        self.refused[eid] = reason


def make_batch(
    events: Sequence[Event], common: CommonParts, *, epoch: int, before: int, last_part: int, written: int
) -> Batch:
    """Number the events of a batch, which are masked already."""
    own = [own_part(event) for event in events]
    common.begin(before, last_part, epoch, len(events))
    rows: list[Row] = [
        (
            event.eid,
            # The same as .value, which is a slower lookup in Python.
            event.phase._value_,
            event.kind._value_,
            microseconds(event.ts),
            event.agent,
            event.cluster_name,
            common.number(event),
            body,
        )
        for event, body in zip(events, own, strict=True)
    ]
    batch = Batch(epoch, before, written, rows, common.unwritten, events=events)
    batch.shares = shares(events, own, [row[6] for row in rows], batch.parts, stored_bytes)
    return batch


def whole_row(event: Event) -> Row:
    """A row that holds the whole event."""
    phase, kind, ts_us = event.phase.value, event.kind.value, microseconds(event.ts)
    return event.eid, phase, kind, ts_us, event.agent, event.cluster_name, 0, encode(event)


def unknown_row(opened: Sequence[bytes | None], now: datetime) -> Row:
    """A row that ends a call as `unknown`, from the first row that `statements.left` selects."""
    eid, kind, agent, cluster, phase, ts_us, body, common, common_body = opened
    event = bytes_of(body)
    if common is not None:
        event = whole(
            event,
            bytes_of(common_body),
            eid=text_of(eid),
            kind=text_of(kind),
            phase=text_of(phase),
            ts=moment(integer_of(ts_us)),
        )
    names = text_of(agent), text_of(cluster)
    unknown = Phase.UNKNOWN.value, text_of(kind), microseconds(now)
    return text_of(eid), *unknown, *names, 0, as_unknown(event, now)


def slices(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Split rows into parts for one statement each."""
    part: list[Row] = []
    size = 0
    for row in rows:
        body_bytes = len(row[7])
        if part and size + body_bytes > _SLICE_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(row)
        size += body_bytes
    if part:
        yield part


def stored_bytes(row_bytes: int) -> int:
    """Bytes of the database that a row uses, with its entries in the indexes.

    At most a quarter of a page stays empty, since PostgreSQL moves longer values to another table.
    """
    return (row_bytes + _INDEXED_BYTES) * 4 // 3
