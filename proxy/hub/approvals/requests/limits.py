"""The limits on an agent's requests. All hubs share them, because they count rows."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from proxy.hub.approvals.request import LIFE_S, State
from proxy.hub.approvals.requests.errors import TooManyRequestsError
from proxy.hub.store.engines.open_requests import open_requests_of
from proxy.hub.store.migrations import tables as t

OPEN_MAX: Final = 20
"""Open requests of an agent."""
OPENED_MAX: Final = 60
"""New requests of an agent within OPENED_S."""
OPENED_S: Final = 3600.0
DENIALS_MAX: Final = 3
"""Denials of an agent's requests by one rule within DENIALS_S. After these, its asks by that rule are denied
for DENIALS_S."""
DENIALS_S: Final = 600.0


def check_limits(
    connection: sa.Connection, agent_id: str, policy: str, rule: str, *, now: float, database: int
) -> None:
    """Raise TooManyRequestsError if the agent may not open a request by this rule now.

    `now` and `database` are those of the connection. In the transaction that opens a request, the caller
    holds the lock of the agent's row, so that no other hub opens one meanwhile. Without that lock, the answer
    may be another one a moment later.
    """
    requests = t.requests.c
    of_agent = requests.agent_id == agent_id
    count = sa.select(sa.func.count()).select_from(t.requests)
    is_open = connection.scalar(count.where(_is_open(agent_id, now, database))) or 0
    if is_open >= OPEN_MAX:
        raise TooManyRequestsError(
            f"this agent has {is_open} open requests for approval, and may have {OPEN_MAX}: "
            "repeat the command after some of them were decided"
        )
    since = requests.created_at > now - OPENED_S
    opened = connection.scalars(
        sa.select(requests.created_at)
        .where(of_agent, since)
        .order_by(requests.created_at.desc())
        .limit(OPENED_MAX)
    ).all()
    if len(opened) >= OPENED_MAX:
        raise TooManyRequestsError(
            f"this agent has asked for {OPENED_MAX} approvals within an hour, which is the limit: "
            f"repeat the command in {_minutes(opened[-1] + OPENED_S - now)}"
        )
    denied = connection.scalars(
        sa.select(requests.decided_at)
        .where(
            of_agent,
            # Older denials than these no longer count. A request is decided within LIFE_S.
            requests.created_at > now - LIFE_S - 2 * DENIALS_S,
            requests.state == State.DENIED,
            requests.policy == policy,
            requests.rule == rule,
        )
        .order_by(requests.decided_at.desc())
        .limit(DENIALS_MAX)
    ).all()
    until = denied_until([float(at) for at in denied if at is not None])
    if until > now:
        raise TooManyRequestsError(
            f"{DENIALS_MAX} calls of this agent by {policy}/{rule} were denied within "
            f"{DENIALS_S / 60:.0f} minutes: for {_minutes(until - now)}, further ones are denied "
            "without asking"
        )


def _is_open(agent_id: str, now: float, database: int) -> sa.ColumnElement[bool]:
    """Return the condition of an agent's open requests. An expired one is none, also before its sweep."""
    requests = t.requests.c
    return sa.and_(
        open_requests_of(agent_id),
        requests.database == database,
        sa.or_(
            sa.and_(requests.state == State.PENDING, requests.expires_at > now),
            sa.and_(requests.state == State.APPROVED, requests.valid_until > now),
            requests.state == State.USING,
        ),
    )


def denied_until(denied: list[float]) -> float:
    """Return until when a rule denies without asking, by the times of the last denials, newest first."""
    if len(denied) < DENIALS_MAX or denied[0] - denied[DENIALS_MAX - 1] > DENIALS_S:
        return 0.0
    return denied[0] + DENIALS_S


def _minutes(seconds: float) -> str:
    minutes = max(-(-seconds // 60), 1)
    return "1 minute" if minutes == 1 else f"{minutes:.0f} minutes"
