"""The outbox: messages about requests that webhooks have not got yet.

The transaction of a transition inserts the messages about it. A hub claims a message by one conditional
UPDATE, which moves its due time on. A claim that its hub does not settle becomes due again, so each message
is sent at least once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import attrs
import sqlalchemy as sa

from proxy.hub.approvals.request import Request
from proxy.hub.approvals.requests.rows import request_of
from proxy.hub.store.database import Database, new_id
from proxy.hub.store.engines.clock import Now
from proxy.hub.store.migrations import tables as t

KEPT_S: Final = 24 * 3600.0
"""An older message is dropped."""
OPENED: Final = "opened"


@attrs.frozen
class Delivery:
    """A message that this hub has claimed."""

    id: str
    webhook: str
    """Its name in the hub's configuration."""
    event: str
    """`opened`, or the state that the request has come to."""
    request: Request
    """As it is now."""
    attempts: int
    """With this one."""


class Outbox(Database):
    """The table of messages; all methods raise StoreUnavailableError."""

    def claim(self, webhook: str, lease_s: float) -> Delivery | None:
        """Claim a webhook's oldest due message, if any. Unsettled, it is due again after `lease_s`."""
        rows = t.outbox.c
        due = (
            sa.select(rows.id)
            .where(rows.webhook == webhook, rows.due_at <= Now())
            .order_by(rows.due_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        claimed = (
            sa.update(t.outbox)
            # PostgreSQL may run the subquery of IN once for each row, and then claims them all.
            .where(rows.id == due.scalar_subquery())
            .values(due_at=Now() + lease_s, attempts=rows.attempts + 1)
            .returning(rows.id, rows.request_id, rows.event, rows.attempts)
        )
        with self._note() as connection:
            row = connection.execute(claimed).first()
            if row is None:
                return None
            found = connection.execute(sa.select(t.requests).where(t.requests.c.id == row.request_id)).one()
            now, database = clock_and_database(connection)
            request = request_of(found, now=now, database=database)
            return Delivery(row.id, webhook, row.event, request, row.attempts)

    def delivered(self, delivery: Delivery) -> None:
        """Delete a sent message, unless its lease has ended and another hub has claimed it."""
        with self._note() as connection:
            connection.execute(sa.delete(t.outbox).where(*_claim_of(delivery)))

    def retry(self, delivery: Delivery, after_s: float) -> None:
        """Make a claim due again after this time."""
        with self._note() as connection:
            later = sa.update(t.outbox).where(*_claim_of(delivery)).values(due_at=Now() + after_s)
            connection.execute(later)


def _claim_of(delivery: Delivery) -> tuple[sa.ColumnElement[bool], ...]:
    return t.outbox.c.id == delivery.id, t.outbox.c.attempts == delivery.attempts


def send_later(
    connection: sa.Connection, webhooks: Collection[str], event: str, ids: Collection[str]
) -> None:
    """Insert a message about each request for each webhook."""
    rows = [
        {
            "id": new_id(),
            "request_id": request_id,
            "webhook": webhook,
            "event": event,
            "attempts": 0,
        }
        for request_id in ids
        for webhook in webhooks
    ]
    if rows:
        connection.execute(sa.insert(t.outbox).values(created_at=Now(), due_at=Now()), rows)


def drop_old(connection: sa.Connection) -> None:
    """Delete messages that are older than KEPT_S."""
    connection.execute(sa.delete(t.outbox).where(t.outbox.c.created_at < Now() - KEPT_S))


def database_id(connection: sa.Connection) -> sa.ColumnElement[int]:
    """Return an expression for this database's id; a restored dump has another one."""
    if connection.dialect.name == "sqlite":
        return sa.literal(0)
    return sa.literal_column("'requests'::regclass::oid::bigint", sa.BigInteger)


def clock_and_database(connection: sa.Connection) -> tuple[float, int]:
    """Read the database's clock and its id."""
    now, database = connection.execute(sa.select(Now(), database_id(connection))).one()
    return float(now), int(database)
