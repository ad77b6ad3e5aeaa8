"""Rows and readings of the table of hubs, for its tests."""

from __future__ import annotations

import attrs

from proxy.hub.membership.member import Member
from proxy.hub.membership.table import Reading, Row
from proxy.hub.store.versions.version import Version


def member(boot: str, **changes: object) -> Member:
    """A hub with the default settings; its id is its boot's first eight characters."""
    hub = f"{boot:0<8}"[:8]
    made = Member(hub=hub, boot=boot, software="hawse/1", applied=1, stale_s=10.0, stale_streams_s=60.0)
    return attrs.evolve(made, **changes)  # type: ignore[arg-type]


def row(boot: str, renewed_at: float, **changes: object) -> Row:
    """Its row, as its last renewal left it."""
    return Row(member(boot, **changes), "place", str(renewed_at), "open")


def reading(sent_s: float, *rows: Row, connection: int = 1) -> Reading:
    """A reading of rows."""
    return Reading(sent_s, connection, Version(1, "a"), rows)
