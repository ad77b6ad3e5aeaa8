"""Copies the rows of a hub's directory from SQLite into PostgreSQL, and sums up both for a comparison."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from audit.store import TrailMark
from proxy.hub.home.files.private_files import is_there
from proxy.hub.identity.replay_postgres import CLOCKS_S
from proxy.hub.identity.replay_store import ATTEMPT_BYTES
from proxy.hub.store.engines.errors import InvalidError, StoreUnavailableError
from proxy.hub.store.engines.open_requests import MOVED, OPEN
from proxy.hub.store.engines.postgres import said
from proxy.hub.store.local_user import LOCAL_TOKEN_NAME
from proxy.hub.store.migrations import postgres_tables as p
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.versions.version import begin_change

# Rows of a statement.
PAGE_ROWS = 500
# A copy has a version, and a history of versions, of its own. Its trail has another mark. Beside SQLite, the
# secrets are files. People sign in again: the token of the machine is not copied, nor are its sessions.
OWN = (
    *(t.directory, t.versions, t.touched, t.audit_trail, t.signing_keys, t.succession, t.secrets),
    *(t.console_codes, t.console_sessions),
    # Of requests that are cancelled.
    t.outbox,
)
COPIED = [table for table in t.metadata.sorted_tables if table not in OWN]


@attrs.frozen
class TableSum:
    """The rows of a table, in any order."""

    rows: int
    digests: int
    """The sum of the SHA-256 of each row, modulo 2^256."""


DirectorySum: TypeAlias = Mapping[str, TableSum]


def is_empty(connection: sa.Connection) -> bool:
    """Whether a directory has nothing but what a migration of its tables has made."""
    for table in t.metadata.sorted_tables:
        # The first policies, of which there is one version.
        made = 1 if table is t.policy_bundles else 0
        if table not in (t.directory, t.versions, t.touched) and count_rows(connection, table) > made:
            return False
    return True


def copy_rows(source: sa.Connection, target: sa.Connection) -> None:
    """Copy a directory into an empty one, as one change of it."""
    begin_change(target)
    target.execute(sa.delete(t.policy_bundles))
    for table in COPIED:
        found = source.execute(_rows(table)).mappings()
        try:
            for page in found.partitions(PAGE_ROWS):
                target.execute(sa.insert(table), [dict(row) for row in page])
        except sa.exc.DataError as error:
            # SQLite stores longer texts, and zero bytes.
            raise InvalidError(f"PostgreSQL cannot hold a row of {table.name}: {said(error.orig)}") from error


def _rows(table: sa.Table) -> sa.Select[tuple[object, ...]]:
    found = sa.select(table)
    if table is t.admin_tokens:
        # The next start makes a token for `hawse admin` on that machine.
        found = found.where(table.c.name != LOCAL_TOKEN_NAME)
    if table is t.requests:
        # Neither database may serve a grant that the other one has used.
        found = sa.select(*map(_cancelled, table.c))
    return found


def _cancelled(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Return a column of a request, as it is once an open one is cancelled."""
    row = t.requests.c
    cancelled = {"state": sa.literal("cancelled"), "because": sa.literal(MOVED), "ended_at": row.changed_at}
    if column.name == "database":
        # Of the copy it is another number, which no comparison sees.
        return sa.literal(0).label(column.name)
    if column.name not in cancelled:
        return column
    return sa.case((row.state.in_(OPEN), cancelled[column.name]), else_=column).label(column.name)


def copy_used_tokens(file: Path, target: sa.Connection, now: float) -> None:
    """Copy the used one-time tokens that have not expired; raises StoreUnavailableError."""
    if not is_there(file):
        # No token has been used.
        return
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as source:
            found = source.execute("SELECT token, kept_until FROM seen WHERE kept_until > ?", (now,))
            while page := found.fetchmany(PAGE_ROWS):
                rows = [
                    {
                        "token": token,
                        "attempt": os.urandom(ATTEMPT_BYTES),
                        "kept_until": math.ceil(kept_until) + CLOCKS_S,
                    }
                    for token, kept_until in page
                ]
                # A migration that is completed has copied them already.
                target.execute(postgresql.insert(p.seen).on_conflict_do_nothing(), rows)
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"cannot read {file}: {error}: remove it, or restore it") from error


def write_mark(target: sa.Connection, trail: TrailMark) -> None:
    """Write which trail belongs to a directory."""
    target.execute(sa.delete(t.audit_trail))
    target.execute(sa.insert(t.audit_trail).values(attrs.asdict(trail)))


def sum_rows(connection: sa.Connection) -> DirectorySum:
    """Read all rows that are copied."""
    return {table.name: _sum(connection, table) for table in COPIED}


def _sum(connection: sa.Connection, table: sa.Table) -> TableSum:
    # Not in an order: the two databases sort texts differently.
    rows = digests = 0
    for row in connection.execute(_rows(table)):
        rows += 1
        digests += int.from_bytes(hashlib.sha256(json.dumps([*row]).encode()).digest(), "big")
    return TableSum(rows, digests % 2**256)


def count_rows(connection: sa.Connection, table: sa.Table) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
