"""The agents, clusters and teams in a trail, to distinguish a mistyped name from one without events."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from audit.blocks import known_blocks_end
from audit.reader import AuditReader
from audit.schema import block_names, common_parts, events


class _Actor(msgspec.Struct):
    teams: tuple[str, ...] = ()


class _Common(msgspec.Struct):
    actor: _Actor


_common = msgspec.json.Decoder(_Common).decode


class NameReader(AuditReader):
    """Reads names from the trail. Among millions of events that takes a second."""

    def names(self, column: str) -> set[str]:
        """All values of the column `agent` or `cluster`."""
        with self._view() as connection:
            if not self._last(connection):
                return set()
            end = known_blocks_end(connection)
            found = sa.select(events.c[column]).where(events.c.seq >= end).distinct()
            names = {*connection.scalars(found)}
            if end:
                noted = sa.select(block_names.c.name).where(block_names.c.column == column).distinct()
                names.update(connection.scalars(noted))
            return names - {""}

    def teams(self) -> set[str]:
        """All teams that an agent of some event was in."""
        found: set[str] = set()
        with self._view() as connection:
            if self._last(connection):
                for body in connection.scalars(sa.select(common_parts.c.body)):
                    found.update(teams_of(body))
        return found


def teams_of(common: bytes) -> tuple[str, ...]:
    """The teams in a common part."""
    return _common(common).actor.teams
