"""The version of the directory: one row, which every change updates first.

The row's lock orders the changes of several hubs on one PostgreSQL, as BEGIN IMMEDIATE does in SQLite. So the
checks of a change still hold when it writes, and versions are in the order of commits. A hub that has read a
version reads again only when the row differs, and then what was touched since (proxy/hub/store/snapshot.py).
"""

from __future__ import annotations

import secrets

import attrs
import sqlalchemy as sa

from proxy.hub.store.migrations import tables as t

CHANNEL = "hawse"
"""The channel on which PostgreSQL announces the number of a new version."""
NONCE_BYTES = 16


@attrs.frozen
class Version:
    """A state of the directory.

    The number alone does not name it: a failover or a restored backup can lose changes, and others then get
    their numbers.
    """

    number: int
    nonce: str


def read_version(connection: sa.Connection) -> Version:
    """Read the version in the connection's transaction."""
    number, nonce = connection.execute(sa.select(t.directory.c.version, t.directory.c.nonce)).one()
    return Version(number, nonce)


def begin_change(connection: sa.Connection) -> None:
    """Count a change, and wait for the ones of other hubs that are not committed."""
    row = t.directory.c
    counted = sa.update(t.directory).values(version=row.version + 1, nonce=secrets.token_hex(NONCE_BYTES))
    if connection.dialect.name == "postgresql":
        # Sent at the commit.
        counted = counted.returning(sa.func.pg_notify(CHANNEL, sa.cast(row.version, sa.Text)))
    connection.execute(counted)
