"""Which events somebody asks for."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import attrs
import sqlalchemy as sa

from audit.members import NO_MEMBERS, Members
from audit.record import Kind
from audit.schema import block_names, blocks, events, microseconds


@attrs.frozen
class Wanted:
    """Those that match all that is given."""

    agent: str | None = None
    cluster: str | None = None
    kinds: Collection[Kind] = ()
    """Any of these; none given is any at all."""
    since: datetime | None = None
    until: datetime | None = None
    """Not what happened just then, so that two spans that meet have no event in common."""
    members: Members = NO_MEMBERS

    def only_time(self) -> Wanted:
        """All there is of that time."""
        return Wanted(since=self.since, until=self.until)

    def of_event(self) -> list[sa.ColumnElement[bool]]:
        """What is asked of an event."""
        asked = []
        if self.since is not None:
            asked.append(events.c.ts_us >= microseconds(self.since))
        if self.until is not None:
            asked.append(events.c.ts_us < microseconds(self.until))
        asked += [events.c[column].in_(names) for column, names in self._names().items()]
        return asked + self.members.conditions()

    def of_block(self) -> list[sa.ColumnElement[bool]]:
        """What is asked of a block that may hold such an event."""
        asked = []
        if self.since is not None:
            asked.append(blocks.c.last_us >= microseconds(self.since))
        if self.until is not None:
            asked.append(blocks.c.first_us < microseconds(self.until))
        for column, names in self._names().items():
            here = (block_names.c.block == blocks.c.number, block_names.c.column == column)
            asked.append(sa.exists().where(*here, block_names.c.name.in_(names)))
        return asked

    def _names(self) -> dict[str, list[str]]:
        """What may stand in which column."""
        names = {
            "agent": [] if self.agent is None else [self.agent],
            "cluster": [] if self.cluster is None else [self.cluster],
            "kind": [kind.value for kind in self.kinds],
        }
        return {column: some for column, some in names.items() if some}


EVERYTHING = Wanted()
