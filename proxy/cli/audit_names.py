"""Distinguishes an unknown name from a known one without events.

A mistyped name finds no events, which must not look like an agent that does no harm. A known name is in the
trail or in the hub's store.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.cli.errors import CommandError
from proxy.process.suggestions import near_names

if TYPE_CHECKING:
    from audit.names import NameReader


def check_names(
    reader: NameReader, store_file: Path, agent: str | None, cluster: str | None, teams: Iterable[str]
) -> list[str]:
    """The sentences on names that the hub knows and the trail does not; raises for one that neither knows."""
    from audit.query import Wanted

    quiet: list[str] = []
    asked = [
        *(("agent", name) for name in [agent] if name and not reader.holds(Wanted(agent=name))),
        *(("cluster", name) for name in [cluster] if name and not reader.holds(Wanted(cluster=name))),
        *(("team", name) for name in teams),
    ]
    if not asked:
        return quiet
    enrolled = _enrolled(store_file)
    for what, name in asked:
        if enrolled is not None and name in enrolled[what]:
            if what != "team":
                quiet.append(f"{what} {name!a} is enrolled, and the trail has no event of it")
            continue
        seen = reader.teams() if what == "team" else reader.names(what)
        if name not in seen:
            raise CommandError(_unknown(what, name, seen, enrolled))
    return quiet


def _unknown(what: str, name: str, seen: set[str], enrolled: dict[str, set[str]] | None) -> str:
    known = seen | (enrolled[what] if enrolled is not None else set())
    # As the table has an agent: `agent:builder`.
    near = near_names(name.removeprefix(f"{what}:"), sorted(known))
    where = (
        "neither the trail nor the hub's store knows it"
        if enrolled is not None
        else "the trail does not know it, and the hub's store cannot be read"
    )
    hint = f"did you mean {' or '.join(near)}?" if near else f"`hawse admin {what} list` has their names"
    return f"no {what} is called {name!a}: {where}; {hint}"


def _enrolled(store_file: Path) -> dict[str, set[str]] | None:
    """The names in the hub's store, retired ones too; None where it cannot be read."""
    import sqlalchemy as sa

    from audit.errors import AuditUnavailable
    from audit.file import translated, url
    from proxy.hub.store import tables as t

    tables = {"agent": t.agents, "cluster": t.clusters, "team": t.teams}
    # Read as the trail is: nothing is made, and nothing brought to another form.
    engine = sa.create_engine(url(store_file, "ro"))
    try:
        with translated(store_file), engine.connect() as connection:
            return {what: {*connection.scalars(sa.select(table.c.name))} for what, table in tables.items()}
    except AuditUnavailable:
        return None
    finally:
        engine.dispose()
