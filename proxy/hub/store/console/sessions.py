"""The console's one-time codes and sessions: entities, and the statements on their rows.

Both belong to the admin token that asked for the code, and are deleted with it. Only hashes are stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import sqlalchemy as sa

from proxy.hub.store.engines.errors import NotFoundError
from proxy.hub.store.migrations import tables as t

# A session without a request ends after this time, and any session after the second one.
IDLE_S = 30 * 60.0
SESSION_S = 12 * 3600.0
# Of one token. Many people of a machine may share its token. The oldest one is ended for a new one.
SESSIONS_PER_TOKEN_MAX = 64
CODES_PER_TOKEN_MAX = 16
# What a browser calls itself takes some 150 characters.
USER_AGENT_CHARACTERS_MAX = 256


@attrs.frozen
class ConsoleCode:
    """A one-time code that signs a browser in; the code was shown once and is not stored."""

    token_id: str
    operator: str
    """Who asked for it, as the trail names them."""
    created_at: float
    expires_at: float


@attrs.frozen
class ConsoleSession:
    """A person's session in the console; its cookie is not stored."""

    id: str
    token_id: str
    operator: str
    """Who asked for its code, as the trail names them."""
    created_at: float
    used_at: float
    """As of the reading of the row. Hubs write uses with a delay."""
    expires_at: float
    ip: str
    user_agent: str

    def ended(self, now: float, used_at: float = 0.0) -> bool:
        """Return whether it has ended, if it was last used then or as the row says."""
        return now >= self.expires_at or now >= max(used_at, self.used_at) + IDLE_S


def insert_code(connection: sa.Connection, code_hash: str, code: ConsoleCode) -> None:
    """Add a code, and remove the ones that nobody can redeem any more."""
    codes = t.console_codes
    connection.execute(sa.delete(codes).where(codes.c.expires_at <= code.created_at))
    _make_way(connection, codes, code.token_id, codes.c.created_at, CODES_PER_TOKEN_MAX)
    connection.execute(sa.insert(codes).values(hash=code_hash, **attrs.asdict(code)))


def redeem_code(
    connection: sa.Connection,
    code_hash: str,
    session_hash: str,
    *,
    session_id: str,
    now: float,
    ip: str,
    user_agent: str,
) -> ConsoleSession:
    """Replace a code by a session; raises NotFoundError for a code that was used, or has expired."""
    codes, sessions = t.console_codes, t.console_sessions
    code = connection.execute(sa.select(codes).where(codes.c.hash == code_hash)).first()
    if code is None or code.expires_at <= now:
        raise NotFoundError("the code was used, or has expired")
    connection.execute(sa.delete(codes).where(codes.c.hash == code_hash))
    session = ConsoleSession(
        id=session_id,
        token_id=code.token_id,
        operator=code.operator,
        created_at=now,
        used_at=now,
        expires_at=now + SESSION_S,
        ip=ip,
        user_agent=user_agent[:USER_AGENT_CHARACTERS_MAX],
    )
    # Uses are written with a delay, which is far below the time that an ended session is kept here.
    ended = sa.or_(sessions.c.expires_at <= now, sessions.c.used_at <= now - 2 * IDLE_S)
    connection.execute(sa.delete(sessions).where(ended))
    _make_way(connection, sessions, code.token_id, sessions.c.used_at, SESSIONS_PER_TOKEN_MAX)
    connection.execute(sa.insert(sessions).values(hash=session_hash, **attrs.asdict(session)))
    return session


def _make_way(
    connection: sa.Connection, table: sa.Table, token_id: str, age: sa.Column[float], rows_max: int
) -> None:
    """Delete the oldest rows of a token, so that one more is within the limit."""
    kept = (
        sa.select(table.c.hash).where(table.c.token_id == token_id).order_by(age.desc()).limit(rows_max - 1)
    )
    hashes = connection.scalars(kept).all()
    connection.execute(sa.delete(table).where(table.c.token_id == token_id, table.c.hash.not_in(hashes)))


def delete_session(connection: sa.Connection, session_id: str) -> str:
    """End a session, and return the operator's name; raises NotFoundError."""
    sessions = t.console_sessions
    operator = connection.scalar(sa.select(sessions.c.operator).where(sessions.c.id == session_id))
    if operator is None:
        raise NotFoundError("there is no such session: it has ended, or it never began")
    connection.execute(sa.delete(sessions).where(sessions.c.id == session_id))
    return str(operator)


def read_codes(connection: sa.Connection) -> dict[str, ConsoleCode]:
    """The codes, by hash."""
    return {
        row.hash: ConsoleCode(row.token_id, row.operator, row.created_at, row.expires_at)
        for row in connection.execute(sa.select(t.console_codes))
    }


def read_sessions(connection: sa.Connection) -> dict[str, ConsoleSession]:
    """The sessions, by hash."""
    found = {}
    for row in connection.execute(sa.select(t.console_sessions)).mappings():
        fields = dict(row)
        key = fields.pop("hash")
        found[key] = ConsoleSession(**fields)
    return found


def read_uses(connection: sa.Connection) -> dict[str, float]:
    """When each session was last used, by id, as far as hubs have written it."""
    sessions = t.console_sessions.c
    rows = connection.execute(sa.select(sessions.id, sessions.used_at))
    return {row.id: row.used_at for row in rows}


def note_uses(used: Mapping[str, float]) -> tuple[sa.Update, list[dict[str, object]]]:
    """Return the statement that notes the uses of sessions, by id, and its parameters."""
    sessions = t.console_sessions
    later = (
        sa.update(sessions)
        .where(sessions.c.id == sa.bindparam("row_id"), sessions.c.used_at < sa.bindparam("used_at_now"))
        .values(used_at=sa.bindparam("used_at_now"))
    )
    return later, [{"row_id": row_id, "used_at_now": at} for row_id, at in sorted(used.items())]
