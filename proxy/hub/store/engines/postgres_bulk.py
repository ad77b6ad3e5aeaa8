"""One long transaction, in which a whole database is copied into PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from audit.postgres.bounded import BoundedConnection
from proxy.hub.store.engines.postgres import migrate_alone, new_engine, unusable
from proxy.hub.store.engines.postgres_address import PostgresAddress

# A checkpoint or a standby may hold the writer up, and the index of 65,536 events takes a second.
ANSWER_S = 120.0
# Timeouts of the server that would end such a transaction, if an administrator has set them.
_TIMEOUTS = "statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"


class BulkConnection(BoundedConnection):
    """A connection whose statements may take longer than a hub's."""

    answer_s = ANSWER_S


@contextmanager
def open_bulk(address: PostgresAddress) -> Iterator[sa.Connection]:
    """Open a transaction, make or migrate the tables in it, and commit it at the end of the block.

    Raises StoreUnavailableError. During the transaction no hub can start on an empty database. `look_at`
    checks the rights on tables that exist.
    """
    engine = new_engine(address, BulkConnection)
    try:
        with unusable(), engine.begin() as connection:
            settings = sa.text(
                "SELECT set_config(name, '0', true) FROM pg_settings WHERE name = ANY (:names)"
            )
            connection.execute(settings, {"names": list(_TIMEOUTS)})
            migrate_alone(connection)
            yield connection
    finally:
        engine.dispose()
