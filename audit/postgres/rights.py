"""The rights of a hub's role on the tables of a trail in PostgreSQL, and whether a role has more.

A hub adds events and reads them. Only the owner can change or delete one, apart from `trail_prune`, which
runs with the owner's rights (audit.postgres.schema).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

RIGHTS: Final[Mapping[str, str]] = {
    "trail": "SELECT",
    "trail_epochs": "SELECT, INSERT, UPDATE (closed)",
    "trail_events": "SELECT, INSERT",
    "trail_parts": "SELECT, INSERT",
    "trail_blocks": "SELECT, INSERT",
    "trail_late_ends": "SELECT, INSERT",
    "trail_open": "SELECT, INSERT, DELETE",
}

_WHY_DELETABLE = """
SELECT CASE
    WHEN rolsuper THEN 'is a superuser'
    WHEN pg_has_role(r.oid, relowner, 'MEMBER') THEN 'owns the tables'
    WHEN pg_has_role(r.oid, nspowner, 'MEMBER') THEN 'owns their schema'
    WHEN pg_has_role(r.oid, datdba, 'MEMBER') THEN 'owns the database'
    WHEN has_table_privilege(r.oid, c.oid, 'DELETE, TRUNCATE')
        OR has_any_column_privilege(r.oid, c.oid, 'UPDATE')
        THEN 'has more rights on them than it needs'
    END
FROM pg_roles r, pg_database, pg_namespace n LEFT JOIN pg_class c ON c.oid = to_regclass('trail_events')
WHERE rolname = :role AND datname = current_database() AND nspname = current_schema()
"""


# A right on a column is enough where that is granted. DELETE has no columns.
_MISSING_RIGHT = """
SELECT wanted.right_to || ' in table ' || wanted.name
FROM unnest(CAST(:tables AS text[]), CAST(:rights AS text[])) AS wanted (name, right_to)
WHERE NOT CASE right_to
    WHEN 'DELETE' THEN has_table_privilege(to_regclass(wanted.name), right_to)
    ELSE has_any_column_privilege(to_regclass(wanted.name), right_to)
    END
LIMIT 1
"""


def grants_to(role: str) -> list[str]:
    """Return the statements that give a role, named as SQL writes it, the rights of a hub and no others."""
    statements = []
    for table, rights in RIGHTS.items():
        statements += [f"REVOKE ALL ON {table} FROM {role}", f"GRANT {rights} ON {table} TO {role}"]
    return [*statements, f"GRANT EXECUTE ON FUNCTION trail_prune TO {role}"]


def missing_right(connection: sa.Connection) -> str | None:
    """Return a right that a hub needs and the connection's role lacks, as in `INSERT in table trail_events`.

    None if it has them all, or there are no tables yet.
    """
    wanted = [(table, right.split()[0]) for table, rights in RIGHTS.items() for right in rights.split(", ")]
    tables, rights = zip(*wanted, strict=True)
    missing: str | None = connection.scalar(
        sa.text(_MISSING_RIGHT), {"tables": list(tables), "rights": list(rights)}
    )
    return missing


def why_deletable(connection: sa.Connection, role: str) -> str | None:
    """Return why a role can change or delete events, as a predicate; None if it can't."""
    why: str | None = connection.scalar(sa.text(_WHY_DELETABLE), {"role": role})
    return why
