"""The table of requests, and their transitions: each is one conditional UPDATE … RETURNING.

Synchronous, for one thread at a time. Several hubs may write at once: of two transitions from one state, the
second UPDATE finds the state that the first has made. All times are those of the database's clock.

A grant counts in the database alone in which it was given: a dump that is restored has its tables under other
OIDs, so no grant in it can be used. Where a database has lost commits, a row has made fewer transitions than
a hub knows of, and `use` refuses it.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import sqlalchemy as sa

from proxy.hub.approvals.request import LIFE_S, NewRequest, Request, State
from proxy.hub.approvals.requests.errors import refusal_of
from proxy.hub.approvals.requests.limits import check_limits
from proxy.hub.approvals.requests.moves import BATCH_MAX, RETURNED, Moved, Moves, announce, change_in_batches
from proxy.hub.approvals.requests.outbox import OPENED, Outbox, clock_and_database, drop_old
from proxy.hub.approvals.requests.rows import LIGHT, Row, effective, new_row, request_of, storable
from proxy.hub.store.engines.clock import Now
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import NotFoundError
from proxy.hub.store.engines.open_requests import (
    IS_OPEN,
    OPEN,
    ROLLED_BACK,
    cancel_open_requests,
    open_requests_of,
)
from proxy.hub.store.migrations import postgres_tables as p
from proxy.hub.store.migrations import tables as t

USES_RETURNED_MAX: Final = 10
"""How often a use can be given back. `kubectl drain` repeats an eviction every 5 s."""
DENIED_S: Final = 600.0
"""How long a repeated call is denied without asking."""
USED_S: Final = 10.0
"""How long other calls with the plan of a used grant open nothing."""
VIEW_KEPT_S: Final = 7 * 24 * 3600.0
"""How long a view is kept after its request's end, if a person has acted on the request."""
UNDECIDED_KEPT_S: Final = 24 * 3600.0
"""The same for a request that has expired or was cancelled undecided: an agent alone can open 20 of these an
hour, with 256 KiB each."""
VIEWS_MAX: Final = 50
"""Views that a statement deletes, of 256 KiB each. Other writers on SQLite wait meanwhile."""
ROW_KEPT_S: Final = 90 * 24 * 3600.0
"""How long the rest of the row is kept. The trail has its own retention."""
HUB_ENDED: Final = "the hub that used it has ended"

_REQUESTS: Final = t.requests.c
# A row that has expired counts as such, also before the sweep that writes it.
_PENDING: Final = sa.and_(_REQUESTS.state == State.PENDING, _REQUESTS.expires_at > Now())
_APPROVED: Final = sa.and_(_REQUESTS.state == State.APPROVED, _REQUESTS.valid_until > Now())


@attrs.frozen
class Seen:
    """What a hub keeps of a request in memory."""

    id: str
    state: State
    changes: int
    created_at: float
    overdue: bool
    """It has expired, or is of another database, and its row does not say so yet."""
    hub_boot: str | None


class RequestsTable(Outbox):
    """The table; all methods raise StoreUnavailableError."""

    def __init__(
        self,
        location: Location,
        *,
        org: str,
        boot: str,
        clock: Callable[[], float],
        webhooks: Sequence[str] = (),
    ) -> None:
        """Open a connection; `boot` is this hub process, `webhooks` are the names of those to be sent."""
        # The directory has migrated the tables.
        super().__init__(location, org=org, clock=clock, shared=isinstance(location, Path))
        self.boot = boot
        self._webhooks = tuple(webhooks)
        self.committed: deque[Moved] = deque()
        """Committed transitions that the caller has not taken yet."""

    # -- reading

    def find(self, agent_id: str, plan: str) -> Request | None:
        """Return the request that answers a call with this plan; see Requests.find."""
        with self._read() as connection:
            now, database = clock_and_database(connection)
            return _find(connection, agent_id, plan, now, database)

    def check_limits(self, agent_id: str, policy: str, rule: str) -> None:
        """Raise TooManyRequestsError if the agent has too many requests; see Requests.check_limits."""
        with self._read() as connection:
            now, database = clock_and_database(connection)
            check_limits(connection, agent_id, policy, rule, now=now, database=database)

    def get(self, request_id: str) -> Request:
        """Return a request; raises NotFoundError."""
        with self._read() as connection:
            return _get(connection, request_id)

    def find_all(
        self,
        *,
        states: Collection[State],
        agent_id: str | None,
        cluster_id: str | None,
        offset: int,
        limit: int,
    ) -> list[Request]:
        """Return requests with light views, the newest first."""
        query = sa.select(*LIGHT).order_by(_REQUESTS.created_at.desc(), _REQUESTS.id)
        if states:
            query = query.where(_REQUESTS.state.in_([*states]))
            if {*states} <= {*OPEN}:
                query = query.where(IS_OPEN)
        if agent_id is not None:
            query = query.where(_REQUESTS.agent_id == agent_id)
        if cluster_id is not None:
            query = query.where(_REQUESTS.cluster_id == cluster_id)
        with self._read() as connection:
            now, database = clock_and_database(connection)
            rows = connection.execute(query.offset(offset).limit(limit))
            return [request_of(row, now=now, database=database) for row in rows]

    def every_open(self) -> list[Request]:
        """Return all pending and approved requests, with light views."""
        query = sa.select(*LIGHT).where(IS_OPEN, _REQUESTS.state != State.USING)
        with self._read() as connection:
            now, database = clock_and_database(connection)
            found = [request_of(row, now=now, database=database) for row in connection.execute(query)]
        return [each for each in found if each.state.open]

    def look(self, window_s: float, read_at: float = math.inf) -> tuple[list[Seen], float]:
        """Return the open requests, and those that have changed since the last reading; and the time.

        `read_at` is the time that the last one returned. Both times are the database's, because a machine
        that was suspended does not know how long. Requests that have changed up to `window_s` before are
        returned too.
        """
        columns = ("id", "state", "changes", "created_at", "changed_at", "expires_at", "valid_until")
        query = sa.select(
            *(_REQUESTS[name] for name in (*columns, "ended_at", "because", "database", "hub_boot"))
        )
        with self._read() as connection:
            now, database = clock_and_database(connection)
            # Two queries with an index each. PostgreSQL uses none for an expression of `Now`.
            recent = query.where(_REQUESTS.changed_at > min(now, read_at) - window_s)
            rows = connection.execute(sa.union(query.where(IS_OPEN), recent))
            return [_seen(row, now, database) for row in rows], now

    # -- transitions

    def open(self, new: NewRequest, *, serves: str) -> Request:
        """Open a request or join one, for the call with the id `serves`; see Requests.open."""
        with self._moving() as moves:
            connection = moves.connection
            _lock(connection, new)
            # Another hub may have opened one until the lock was there.
            now, database = clock_and_database(connection)
            moves.sweep(open_requests_of(new.agent_id))
            if (found := _find(connection, new.agent_id, new.plan, now, database)) is not None:
                return found
            check_limits(connection, new.agent_id, new.policy, new.rule, now=now, database=database)
            request_id = secrets.token_hex(8)
            times = {"created_at": now, "changed_at": now, "expires_at": now + LIFE_S, "database": database}
            connection.execute(sa.insert(t.requests).values(**new_row(request_id, new), **times))
            request = _get(connection, request_id)
            moves.note(OPENED, [Moved(request, serves=serves)])
            return request

    def decide(self, request_id: str, *, approve: bool, by: str, answer: str, shown: str) -> Request:
        """Approve or deny a pending request; see Requests.decide."""
        where = [_PENDING]
        values: dict[str, object] = {"decided_by": by, "answer": storable(answer), "decided_at": Now()}
        if approve:
            where += [_REQUESTS.shown == shown, ~_REQUESTS.too_large]
            until = Now() + _REQUESTS.valid_for_s
            # An approval does not outlive the request.
            ends = _REQUESTS.expires_at
            values["valid_until"] = sa.case((until < ends, until), else_=ends)
        else:
            values["ended_at"] = Now()
        with self._moving() as moves:
            state = State.APPROVED if approve else State.DENIED
            found = moves.one(request_id, state, where, values, by=by)
            if found is None:
                raise refusal_of(_get(moves.connection, request_id), shown if approve else None)
            return found

    def use(self, request_id: str, known_changes: int) -> bool:
        """Take a grant; `known_changes` is how many transitions this hub knows that the row has made."""
        where = [_APPROVED, _REQUESTS.changes >= known_changes]
        with self._moving() as moves:
            taken = {"hub_boot": self.boot}
            return moves.one(request_id, State.USING, where, taken, note="taken for a call") is not None

    def give_back(self, request_id: str) -> bool:
        """Return a grant that this hub has used; False if it is spent instead."""
        few = _REQUESTS.uses_returned < USES_RETURNED_MAX
        returned = {"uses_returned": _REQUESTS.uses_returned + 1}
        with self._moving() as moves:
            mine = self._mine()
            if moves.one(request_id, State.APPROVED, [*mine, few], returned, note=RETURNED) is not None:
                return True
            note = f"spent: it was returned {USES_RETURNED_MAX} times"
            moves.one(request_id, State.USED, mine, {"ended_at": Now()}, note=note)
            return False

    def spend(self, request_id: str) -> None:
        """Note that a grant which this hub has used is used up."""
        with self._moving() as moves:
            moves.one(request_id, State.USED, self._mine(), {"ended_at": Now()})

    def end(self, request_id: str, state: State, why: str) -> bool:
        """End a request that is pending or approved, or in use at this hub."""
        live = sa.or_(_PENDING, _APPROVED, sa.and_(*self._mine()))
        with self._moving() as moves:
            return (
                moves.one(request_id, state, [live], {"ended_at": Now(), "because": storable(why)})
                is not None
            )

    def revoke(self, request_id: str, *, by: str) -> Request:
        """Revoke a request that is open or used; see Requests.revoke."""
        live = sa.or_(_PENDING, _APPROVED, _REQUESTS.state.in_([State.USING, State.USED]))
        values = {"ended_at": Now(), "because": f"revoked by {by}"}
        with self._moving() as moves:
            found = moves.one(request_id, State.REVOKED, [live], values, by=by)
            if found is None:
                raise refusal_of(_get(moves.connection, request_id), None)
            return found

    def _mine(self) -> list[sa.ColumnElement[bool]]:
        return [_REQUESTS.state == State.USING, _REQUESTS.hub_boot == self.boot]

    # -- upkeep

    def sweep(self) -> None:
        """Write which requests have expired, and cancel those of another database."""
        with self._moving() as moves:
            moves.sweep(sa.true())

    def spend_of(self, boots: Collection[str]) -> None:
        """Spend the grants in use at hubs that have ended; in PostgreSQL of all whose rows say so."""
        dead: sa.ColumnElement[bool] = _REQUESTS.hub_boot.in_(boots)
        with self._moving() as moves:
            if moves.connection.dialect.name == "postgresql":
                running = sa.select(p.hubs.c.boot).where(p.hubs.c.state.in_(["serving", "leaving"]))
                dead = ~sa.exists(running.where(p.hubs.c.boot == _REQUESTS.hub_boot))
            using = sa.and_(IS_OPEN, _REQUESTS.state == State.USING, dead)
            values = {"ended_at": Now(), "because": HUB_ENDED}
            moves.many(State.USED, using, values, note=f"spent: {HUB_ENDED}")

    def cancel_open(self) -> None:
        """Cancel all open requests: the database has lost changes."""
        with self._note() as connection:
            cancel_open_requests(connection, ROLLED_BACK)
            announce(connection)

    def tidy(self) -> None:
        """Delete what was shown long ago, old rows, and webhooks that could not be sent."""
        with self._read() as connection:
            now, _ = clock_and_database(connection)
        undecided = sa.and_(
            _REQUESTS.state.in_([State.EXPIRED, State.CANCELLED]), _REQUESTS.decided_at.is_(None)
        )
        old = sa.and_(
            _REQUESTS.ended_at < now - UNDECIDED_KEPT_S,
            sa.or_(undecided, _REQUESTS.ended_at < now - VIEW_KEPT_S),
            _REQUESTS.view != "",
        )
        # The effect of a collection is as large as a view. Ended requests compare none.
        clear = sa.update(t.requests).values(view="", summary="", target="", effect="")
        change_in_batches(self._note, clear, old, VIEWS_MAX)
        gone = _REQUESTS.ended_at < now - ROW_KEPT_S
        change_in_batches(self._note, sa.delete(t.requests), gone, BATCH_MAX)
        with self._note() as connection:
            drop_old(connection)

    @contextmanager
    def _moving(self) -> Iterator[Moves]:
        """Open a transaction; what it has moved is in `committed` afterwards."""
        with self._note() as connection:
            moves = Moves(connection, self._webhooks)
            yield moves
            if moves.made:
                announce(connection)
        self.committed.extend(moves.made)


def _lock(connection: sa.Connection, new: NewRequest) -> None:
    """Lock the agent's row, which orders the requests that hubs open for it; raises NotFoundError."""
    agents, clusters = t.agents.c, t.clusters.c
    agent = sa.select(agents.id).where(agents.id == new.agent_id).with_for_update(key_share=True)
    if connection.scalar(agent) is None:
        raise NotFoundError("the agent was removed")
    if connection.scalar(sa.select(clusters.id).where(clusters.id == new.cluster_id)) is None:
        raise NotFoundError("the cluster was removed")


def _find(connection: sa.Connection, agent_id: str, plan: str, now: float, database: int) -> Request | None:
    query = sa.select(t.requests).where(_REQUESTS.agent_id == agent_id, _REQUESTS.plan == plan)
    row = connection.execute(query.where(IS_OPEN)).first()
    if row is not None and (found := request_of(row, now=now, database=database)).state.open:
        return found
    ended = sa.or_(
        sa.and_(_REQUESTS.state == State.DENIED, _REQUESTS.ended_at > now - DENIED_S),
        sa.and_(_REQUESTS.state == State.USED, _REQUESTS.ended_at > now - USED_S),
    )
    # Of an agent's rows of three months, the index finds these. A request is decided within LIFE_S.
    recent = _REQUESTS.created_at > now - LIFE_S - DENIED_S
    row = connection.execute(query.where(recent, ended).order_by(_REQUESTS.changed_at.desc())).first()
    return None if row is None else request_of(row, now=now, database=database)


def _get(connection: sa.Connection, request_id: str) -> Request:
    row = None
    # PostgreSQL takes no text with a zero byte, not even to compare it.
    if "\0" not in request_id:
        row = connection.execute(sa.select(t.requests).where(_REQUESTS.id == request_id)).first()
    if row is None:
        raise NotFoundError(f"there is no request {request_id!a}: `hawse admin request list` lists them")
    now, database = clock_and_database(connection)
    return request_of(row, now=now, database=database)


def _seen(row: Row, now: float, database: int) -> Seen:
    state, _, _ = effective(row, now=now, database=database)
    return Seen(row.id, state, row.changes, row.created_at, state != row.state, row.hub_boot)
