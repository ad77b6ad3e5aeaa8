"""The rows of requests: what is written to one, and what is read from it."""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs
import msgspec
import sqlalchemy as sa

from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.view import View
from proxy.hub.store.migrations import tables as t

Row: TypeAlias = sa.Row[tuple[object, ...]]

# A reading for a list leaves out what may be large.
LIGHT: Final = [column for column in t.requests.c if column.name != "view"]
OTHER_DATABASE: Final = "the database was restored from a backup"

_view_of = msgspec.json.Decoder(View).decode


def new_row(request_id: str, new: NewRequest) -> dict[str, object]:
    """Return the columns of a new request, but its times and its database."""
    summary = attrs.evolve(new.view, changes=(), left_out=(), body="")
    return {
        "id": request_id,
        "agent_id": new.agent_id,
        "cluster_id": new.cluster_id,
        "plan": new.plan,
        "effect": new.effect,
        "shown": new.shown,
        "what": storable(new.what),
        "reason": storable(new.reason),
        "policy": new.policy,
        "rule": new.rule,
        "bundle": new.bundle,
        "approvers": list(new.approvers),
        "valid_for_s": new.valid_for_s,
        "interactive": new.interactive,
        "method": storable(new.method),
        "target": storable(new.target),
        "upgrade": new.upgrade,
        "summary": _encoded(summary),
        "view": _encoded(new.view),
        "too_large": new.view.too_large,
        "state": State.PENDING,
        "changes": 0,
        "uses_returned": 0,
        "decided_by": "",
        "answer": "",
        "because": "",
    }


def _encoded(view: View) -> str:
    return storable(msgspec.json.encode(view).decode())


def storable(text: str) -> str:
    """Return a text without zero bytes, which PostgreSQL does not store."""
    return text.replace("\0", "\\x00")


def request_of(row: Row, *, now: float, database: int) -> Request:
    """Return the request of a row, as it is now in this database.

    One that has expired since the last sweep is `expired` already. Without the column `view`, the view is
    that of a list.
    """
    state, because, ended_at = effective(row, now=now, database=database)
    return Request(
        id=row.id,
        new=NewRequest(
            agent_id=row.agent_id,
            cluster_id=row.cluster_id,
            plan=row.plan,
            effect=row.effect,
            what=row.what,
            reason=row.reason,
            policy=row.policy,
            rule=row.rule,
            bundle=row.bundle,
            approvers=tuple(row.approvers),
            valid_for_s=row.valid_for_s,
            interactive=row.interactive,
            method=row.method,
            target=row.target,
            upgrade=row.upgrade,
            view=_read_view(row),
        ),
        state=state,
        uses_returned=row.uses_returned,
        created_at=row.created_at,
        expires_at=row.expires_at,
        decided_by=row.decided_by,
        answer=row.answer,
        decided_at=row.decided_at,
        valid_until=row.valid_until,
        ended_at=ended_at,
        because=because,
        changes=row.changes,
    )


def effective(row: Row, *, now: float, database: int) -> tuple[State, str, float | None]:
    """Return the state of a row now, why it has ended, and when."""
    state = State(row.state)
    if state.open and row.database != database:
        return State.CANCELLED, OTHER_DATABASE, row.changed_at
    due = {State.PENDING: row.expires_at, State.APPROVED: row.valid_until}.get(state)
    if due is not None and due <= now:
        return State.EXPIRED, row.because, due
    return state, row.because, row.ended_at


def _read_view(row: Row) -> View:
    text = getattr(row, "view", row.summary)
    if not text:
        return View()
    try:
        return _view_of(text)
    except msgspec.DecodeError:
        return View(notes=("what was shown cannot be read",), too_large=True)
