"""Alembic's entry: runs the revisions on the connection that `migrate` hands over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from proxy.hub.store.migrations import CONSTRAINT_NAMES

connection = context.config.attributes["connection"]
assert isinstance(connection, sa.Connection)
# Batch mode, because SQLite alters a table only by copying it.
context.configure(
    connection=connection,
    target_metadata=sa.MetaData(naming_convention=CONSTRAINT_NAMES),
    render_as_batch=True,
)
# No begin_transaction of its own: `migrate` runs inside the store's, which BEGIN IMMEDIATE opened.
context.run_migrations()
