"""The agents, clusters and teams in a trail in PostgreSQL, as audit.names finds them in a file."""

from __future__ import annotations

import sqlalchemy as sa

from audit.names import teams_of
from audit.postgres.reader import PostgresReader, unindexed
from audit.postgres.schema import blocks, common_parts, events


class PostgresNameReader(PostgresReader):
    """Reads names from the trail. Among millions of events that takes a second."""

    def names(self, column: str) -> set[str]:
        """All values of the column `agent` or `cluster`."""
        with self._view() as connection:
            names = {*connection.scalars(sa.select(sa.func.unnest(blocks.c[column])).distinct())}
            for window in unindexed(connection):
                found = sa.select(events.c[column]).where(events.c.written.between(*window)).distinct()
                names.update(connection.scalars(found))
        return names - {""}

    def teams(self) -> set[str]:
        """All teams that an agent of some event was in."""
        found: set[str] = set()
        with self._view() as connection:
            for body in connection.scalars(sa.select(common_parts.c.body)):
                found.update(teams_of(body))
        return found
