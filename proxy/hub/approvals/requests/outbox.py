"""The outbox: which webhooks are to be sent about which requests.

A row is inserted in the transaction of what it is about. A hub claims it by one conditional UPDATE, which
moves its due time on. A claim that its hub does not settle is due again: each is sent at least once.
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
"""A webhook that could not be sent for so long is dropped."""
OPENED: Final = "opened"


@attrs.frozen
class Delivery:
    """A webhook that this hub has claimed."""

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
    """The table of webhooks to be sent; all methods raise StoreUnavailableError."""

    def claim(self, webhook: str, lease_s: float) -> Delivery | None:
        """Claim what is due for a webhook, if anything is. Unsettled, it is due again after `lease_s`."""
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
        """Delete what was sent, unless its lease has ended and another hub has claimed it."""
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
    """Insert what webhooks are to say of these requests."""
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
    """Delete what could not be sent for KEPT_S."""
    connection.execute(sa.delete(t.outbox).where(t.outbox.c.created_at < Now() - KEPT_S))


def database_id(connection: sa.Connection) -> sa.ColumnElement[int]:
    """Return the expression of what names this database, as far as a restored dump differs from it."""
    if connection.dialect.name == "sqlite":
        return sa.literal(0)
    return sa.literal_column("'requests'::regclass::oid::bigint", sa.BigInteger)


def clock_and_database(connection: sa.Connection) -> tuple[float, int]:
    """Read the database's clock, and what names the database."""
    now, database = connection.execute(sa.select(Now(), database_id(connection))).one()
    return float(now), int(database)
