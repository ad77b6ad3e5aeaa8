"""Distinguishes an unknown name from a known one without events.

A mistyped name finds no events, which must not look like a well-behaved agent. A known name is in the trail
or in the hub's store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from proxy.cli.errors import CommandError
from proxy.process.suggestions import near_names

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from audit.names import NameReader
    from audit.postgres.search import PostgresNameReader
    from proxy.hub.home.datadir import DataDir


def check_names(
    reader: NameReader | PostgresNameReader,
    data: DataDir,
    agent: str | None,
    cluster: str | None,
    teams: Iterable[str],
) -> list[str]:
    """Return notes on names known to the hub without events. Raises CommandError for an unknown name."""
    from audit.query import Query

    notes: list[str] = []
    to_check = [
        *(("agent", name) for name in [agent] if name and not reader.holds(Query(agent=name))),
        *(("cluster", name) for name in [cluster] if name and not reader.holds(Query(cluster=name))),
        *(("team", name) for name in teams),
    ]
    if not to_check:
        return notes
    enrolled = _enrolled(data)
    for kind, name in to_check:
        if enrolled is not None and name in enrolled[kind]:
            if kind != "team":
                notes.append(f"{kind} {name!a} is enrolled, but has no events in the trail")
            continue
        recorded = reader.teams() if kind == "team" else reader.names(kind)
        if name not in recorded:
            raise CommandError(_unknown(kind, name, recorded, enrolled))
    return notes


def _unknown(kind: str, name: str, recorded: set[str], enrolled: dict[str, set[str]] | None) -> str:
    known = recorded | (enrolled[kind] if enrolled is not None else set())
    # The table shows agents as `agent:builder`.
    near = near_names(name.removeprefix(f"{kind}:"), sorted(known))
    where = (
        "it is neither in the trail nor in the hub's store"
        if enrolled is not None
        else "it is not in the trail, and the hub's store can't be read"
    )
    hint = f"did you mean {' or '.join(near)}?" if near else f"`hawse admin {kind} list` lists the names"
    return f"unknown {kind} {name!a}: {where}; {hint}"


def _enrolled(data: DataDir) -> dict[str, set[str]] | None:
    """Return the names in the hub's store, with retired ones; None if the store can't be read."""
    import sqlalchemy as sa

    from audit.errors import AuditUnavailable
    from audit.file import translated, url
    from proxy.hub.home.databases import noted_address
    from proxy.hub.store.engines.errors import StoreUnavailableError

    address = noted_address(data)
    if address is not None:
        from proxy.hub.store.engines.postgres import look_at

        try:
            with look_at(address) as found:
                return None if found is None else _names_in(found)
        except StoreUnavailableError:
            return None
    # Opened like the trail: read-only, without creating or migrating it.
    engine = sa.create_engine(url(data.store_file, "ro"))
    try:
        with translated(data.store_file), engine.connect() as connection:
            return _names_in(connection)
    except AuditUnavailable:
        return None
    finally:
        engine.dispose()


def _names_in(connection: Connection) -> dict[str, set[str]]:
    import sqlalchemy as sa

    from proxy.hub.store.migrations import tables as t

    tables = {"agent": t.agents, "cluster": t.clusters, "team": t.teams}
    return {kind: {*connection.scalars(sa.select(table.c.name))} for kind, table in tables.items()}
