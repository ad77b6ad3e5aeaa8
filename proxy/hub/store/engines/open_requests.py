"""Cancels requests for approval in a database that is not the one in which they were approved.

In a backup, in a database that has lost changes, and in a copy, a grant may be unused that was used since.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from proxy.hub.store.engines.clock import Now
from proxy.hub.store.migrations import tables as t

OPEN: Final = ("pending", "approved", "using")
IS_OPEN: Final = t.requests.c.state.in_([sa.literal_column(f"'{state}'") for state in OPEN])
"""The condition of the index of open requests. SQLite uses that index for the same literals alone."""
RESTORED: Final = "the hub's data was restored from a backup"
ROLLED_BACK: Final = "the database has lost changes"
MOVED: Final = "the hub was moved to another database"


def open_requests_of(agent_id: str) -> sa.ColumnElement[bool]:
    """Return the condition of an agent's open requests."""
    requests = t.requests.c
    # All plans are longer than "". By this, SQLite takes the index of open requests. Otherwise it reads all
    # rows that the agent has had in the 90 days for which they are kept: 0.1 s for 130,000 of them.
    return sa.and_(requests.agent_id == agent_id, requests.plan > "", IS_OPEN)


def cancel_open_requests(connection: sa.Connection, because: str) -> None:
    """Cancel all open requests, in the connection's transaction."""
    requests = t.requests
    connection.execute(
        sa.update(requests)
        .where(IS_OPEN)
        .values(
            state="cancelled",
            because=because,
            changes=requests.c.changes + 1,
            changed_at=Now(),
            ended_at=Now(),
        )
    )
