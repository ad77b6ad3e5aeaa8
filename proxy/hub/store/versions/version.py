"""The version of the directory: one row, which every change updates first.

The row's lock orders the changes of several hubs on one PostgreSQL, as BEGIN IMMEDIATE does in SQLite. So the
checks of a change still hold when it writes, and versions are in the order of commits. A hub that has read a
version reads again only when the row differs, and then what was touched since (proxy/hub/store/snapshot.py).

The table `versions` keeps the latest versions: the history. A failover to a standby that was behind, or a
restored backup, loses changes, and then the history lacks a version that a hub has applied. A lost change may
have been a revocation, so such a hub serves no call until an operator accepts the loss. The acceptance begins
a new history above all versions that were applied. A version from before a history is not missed in it.
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
    """Read the version in the connection's transaction; raises NoResultFound if there is none."""
    number, nonce = connection.execute(sa.select(t.directory.c.version, t.directory.c.nonce)).one()
    return Version(number, nonce)


def read_is_kept(connection: sa.Connection, applied: Version) -> bool:
    """Return whether the database still has what a hub has applied, in the connection's transaction."""
    kept = t.versions.c
    first = sa.select(sa.func.min(kept.version)).scalar_subquery()
    nonce = sa.select(kept.nonce).where(kept.version == applied.number).scalar_subquery()
    return is_kept(applied, *connection.execute(sa.select(first, nonce)).one())


def is_kept(applied: Version, first: int | None, nonce: str | None) -> bool:
    """Return whether a history has an applied version, or begins after it.

    `first` is the number with which the history begins, `nonce` that of the version with the applied number.
    """
    return nonce == applied.nonce or (first is not None and applied.number < first)


def begin_change(connection: sa.Connection) -> None:
    """Count a change, and wait for the ones of other hubs that are not committed.

    Raises NoResultFound if there is no version: nothing would order the change.
    """
    _count(connection, t.directory.c.version + 1)


def begin_history(connection: sa.Connection, above: int) -> None:
    """Count a change by which a history begins, with a number above this one and all earlier ones."""
    row = t.directory.c
    _count(connection, sa.case((row.version < above, above), else_=row.version) + 1)
    # A trigger has added the new version.
    newest = sa.select(row.version).scalar_subquery()
    connection.execute(sa.delete(t.versions).where(t.versions.c.version < newest))


def _count(connection: sa.Connection, number: sa.ColumnElement[int]) -> None:
    row = t.directory.c
    counted = sa.update(t.directory).values(version=number, nonce=secrets.token_hex(NONCE_BYTES))
    if connection.dialect.name == "postgresql":
        # Sent at the commit.
        counted = counted.returning(sa.func.pg_notify(CHANNEL, sa.cast(row.version, sa.Text)))
    if connection.execute(counted).rowcount != 1:
        raise sa.exc.NoResultFound("the directory has no version")
