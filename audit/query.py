"""A query: which events to read from the trail."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import attrs
import sqlalchemy as sa

from audit.members import INDEXED, NO_MEMBERS, Members
from audit.record import Kind
from audit.schema import block_names, blocks, common_parts, events, microseconds


@attrs.frozen
class Query:
    """Selects the events that match all given fields."""

    agent: str | None = None
    cluster: str | None = None
    kinds: Collection[Kind] = ()
    """Any of these kinds; empty means all."""
    since: datetime | None = None
    until: datetime | None = None
    """Exclusive, so two adjacent time ranges have no event in common."""
    members: Members = NO_MEMBERS

    def only_time(self) -> Query:
        """The same query with only its time range."""
        return Query(since=self.since, until=self.until)

    def event_conditions(
        self, events: sa.Table = events, common_parts: sa.Table = common_parts
    ) -> list[sa.ColumnElement[bool]]:
        """The query as conditions on an event; by default of a trail in a file."""
        conditions = []
        if self.since is not None:
            conditions.append(events.c.ts_us >= microseconds(self.since))
        if self.until is not None:
            conditions.append(events.c.ts_us < microseconds(self.until))
        conditions += [events.c[column].in_(names) for column, names in self.names().items()]
        return conditions + self.members.conditions(events, common_parts)

    def block_conditions(self) -> list[sa.ColumnElement[bool]]:
        """The query as conditions on a block that may contain such an event."""
        conditions = []
        if self.since is not None:
            conditions.append(blocks.c.last_us >= microseconds(self.since))
        if self.until is not None:
            conditions.append(blocks.c.first_us < microseconds(self.until))
        conditions += [_in_block(column, names) for column, names in self.names().items()]
        # An empty name, which no search has, marks a block with the members of its events.
        unknown = sa.not_(_in_block(INDEXED, [""]))
        for columns in self.members.indexed():
            named = [_in_block(column, names) for column, names in columns.items()]
            conditions.append(sa.or_(unknown, *named))
        return conditions

    def names(self) -> dict[str, list[str]]:
        """The permitted values per column."""
        names = {
            "agent": [] if self.agent is None else [self.agent],
            "cluster": [] if self.cluster is None else [self.cluster],
            "kind": [kind.value for kind in self.kinds],
        }
        return {column: some for column, some in names.items() if some}


def _in_block(column: str, names: list[str]) -> sa.ColumnElement[bool]:
    here = (block_names.c.block == blocks.c.number, block_names.c.column == column)
    return sa.exists().where(*here, block_names.c.name.in_(names))


EVERYTHING = Query()
