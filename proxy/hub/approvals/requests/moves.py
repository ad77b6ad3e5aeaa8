"""The transitions of one transaction, for its caller, other hubs and webhooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

import attrs
import sqlalchemy as sa

from proxy.hub.approvals.request import Request, State
from proxy.hub.approvals.requests.outbox import OPENED, clock_and_database, database_id, send_later
from proxy.hub.approvals.requests.rows import OTHER_DATABASE, request_of
from proxy.hub.store.engines.clock import Now
from proxy.hub.store.engines.open_requests import IS_OPEN
from proxy.hub.store.migrations import tables as t

CHANNEL: Final = "approvals"
"""The channel on which PostgreSQL announces transitions."""
RETURNED: Final = "returned: the API server did nothing"
BATCH_MAX: Final = 500
"""Rows that a statement of the upkeep changes. More would hold up other writers."""

Values: TypeAlias = Mapping[str, object]
"""The columns that a transition sets besides the state."""

_REQUESTS: Final = t.requests.c
_REPORTED: Final = (
    OPENED,
    *(State.APPROVED, State.DENIED, State.USED, State.EXPIRED, State.CANCELLED, State.STALE, State.REVOKED),
)
"""The transitions that webhooks report. A call that takes a grant, or returns it, is not among them."""


@attrs.frozen
class Moved:
    """A transition that was committed."""

    request: Request
    by: str = ""
    """The person; "" for a hub."""
    note: str = ""
    serves: str = ""
    """The id of the call that has opened the request."""

    @property
    def decides(self) -> bool:
        """Whether a person has approved or denied it. A grant that is returned is `approved` again."""
        return self.request.state in (State.APPROVED, State.DENIED) and self.note != RETURNED


@attrs.define(eq=False)
class Moves:
    """The transitions of one transaction."""

    connection: sa.Connection
    webhooks: Sequence[str]
    made: list[Moved] = attrs.Factory(list)

    def one(
        self,
        request_id: str,
        state: State,
        where: Sequence[sa.ColumnElement[bool]],
        values: Values,
        *,
        by: str = "",
        note: str = "",
    ) -> Request | None:
        """Move a request that meets the conditions, and is of this database; else return None."""
        in_this = _REQUESTS.database == database_id(self.connection)
        found = self._move(sa.and_(_REQUESTS.id == request_id, in_this, *where), state, values, by, note)
        return found[0] if found else None

    def many(self, state: State, where: sa.ColumnElement[bool], values: Values, *, note: str = "") -> None:
        """Move requests that meet a condition, BATCH_MAX at most."""
        if ids := batch(self.connection, where, BATCH_MAX):
            self._move(_REQUESTS.id.in_(ids), state, values, "", note)

    def sweep(self, of: sa.ColumnElement[bool]) -> None:
        """End requests that have expired, or that are of another database."""
        other = sa.and_(of, IS_OPEN, _REQUESTS.database != database_id(self.connection))
        self.many(State.CANCELLED, other, {"ended_at": Now(), "because": OTHER_DATABASE})
        for state, due in ((State.PENDING, _REQUESTS.expires_at), (State.APPROVED, _REQUESTS.valid_until)):
            overdue = sa.and_(of, IS_OPEN, _REQUESTS.state == state, due <= Now())
            self.many(State.EXPIRED, overdue, {"ended_at": due})

    def _move(
        self, where: sa.ColumnElement[bool], state: State, values: Values, by: str, note: str
    ) -> list[Request]:
        common = {"state": state, "changes": _REQUESTS.changes + 1, "changed_at": Now()}
        moved = sa.update(t.requests).where(where).values({**common, **values})
        rows = self.connection.execute(moved.returning(*t.requests.c)).all()
        if not rows:
            return []
        now, database = clock_and_database(self.connection)
        requests = [request_of(row, now=now, database=database) for row in rows]
        self.note(state, [Moved(request, by, note) for request in requests])
        return requests

    def note(self, event: str, moved: Sequence[Moved]) -> None:
        """Note transitions, for the caller and for webhooks."""
        self.made += moved
        if event in _REPORTED:
            reported = [each.request.id for each in moved if each.note != RETURNED]
            send_later(self.connection, self.webhooks, event, reported)


def batch(connection: sa.Connection, where: sa.ColumnElement[bool], most: int) -> Sequence[str]:
    """Lock rows that meet a condition, so many at most, and return their ids."""
    # Rows that another hub changes now are left to it, so that no hub waits for another one. As a subquery of
    # the UPDATE, PostgreSQL may run this once for each row, and then locks all of them.
    query = sa.select(_REQUESTS.id).where(where).limit(most).with_for_update(skip_locked=True)
    return connection.scalars(query).all()


def change_in_batches(
    write: Callable[[], AbstractContextManager[sa.Connection]],
    change: sa.Update | sa.Delete,
    where: sa.ColumnElement[bool],
    most: int,
) -> None:
    """Change all rows that meet a condition, and no longer do then, in transactions of so many rows."""
    while True:
        with write() as connection:
            if ids := batch(connection, where, most):
                connection.execute(change.where(_REQUESTS.id.in_(ids)))
        if len(ids) < most:
            return


def announce(connection: sa.Connection) -> None:
    """Notify the other hubs on PostgreSQL, at the commit, that requests have changed."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))
