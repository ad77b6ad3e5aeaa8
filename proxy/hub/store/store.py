"""The hub's store: teams, agents, clusters and keys in SQLite or PostgreSQL, through SQLAlchemy Core.

Each public method that changes something is one transaction (proxy.hub.store.database). Names are checked
here, below all callers (API, command line, tests).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs
import sqlalchemy as sa

from audit.store import TrailMark
from proxy.hub.store.agents import Agents, Teams
from proxy.hub.store.clusters import Clusters, Relays, relay_instance
from proxy.hub.store.database import find, new_id, refuse_taken
from proxy.hub.store.engines.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    StoreUnavailableError,
)
from proxy.hub.store.entities import IDLE_S, SESSION_S, Snapshot
from proxy.hub.store.federation import Federation
from proxy.hub.store.local_user import LOCAL_TOKEN_NAME, is_local_token_name
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import check_name, check_person
from proxy.hub.store.policies import Policies
from proxy.hub.store.roles import Role
from proxy.hub.store.sealed import Sealed
from proxy.hub.store.snapshot import read_snapshot

# Of one token. Many people of a machine may share its token. The oldest one is ended for a new one.
SESSIONS_PER_TOKEN_MAX = 64
CODES_PER_TOKEN_MAX = 16
# What a browser calls itself takes some 150 characters.
USER_AGENT_CHARACTERS_MAX = 256


class Store(Teams, Agents, Clusters, Relays, Federation, Policies, Sealed):
    """The database of one hub. `clock` returns epoch seconds."""

    def snapshot(self, before: Snapshot | None = None) -> Snapshot:
        """Read everything that requests need, in one consistent state.

        With an earlier snapshot, only what has changed since is read.

        An invalid row is ignored and listed in the snapshot's `faults`: names are checked again, because
        other programs may have written the row. Only its own agent, team or key is affected. Otherwise one
        bad row would block every later change, even the locking of an agent. Raises StoreUnavailableError.
        """
        faults: list[str] = []
        try:
            with self._read() as connection:
                bundle = self._read_bundle(connection, faults)
                return read_snapshot(connection, self._org, bundle, faults, before)
        except (ValueError, TypeError, RecursionError) as error:
            # Invalid JSON, JSON of another shape, or too deeply nested.
            raise StoreUnavailableError(f"the store holds a row that cannot be read: {error}") from error

    # -- use

    def note_use(
        self,
        *,
        agents: Mapping[str, float],
        credentials: Mapping[str, float],
        admin_tokens: Mapping[str, float],
        relays: Mapping[tuple[str, str], float],
        trail: TrailMark | None = None,
    ) -> None:
        """Store the last-used times by id, for relays by cluster id and instance, where they are later.

        Also stores the trail's highest number. No snapshot has any of these, so they are no change.
        """
        for table, used in (
            (t.agents, agents),
            (t.api_keys, credentials),
            (t.agent_keys, credentials),
            (t.federation_rules, credentials),
            (t.admin_tokens, admin_tokens),
        ):
            columns = table.c
            earlier = sa.or_(columns.last_used_at.is_(None), columns.last_used_at < sa.bindparam("used_at"))
            later = (
                sa.update(table)
                .where(columns.id == sa.bindparam("row_id"), earlier)
                .values(last_used_at=sa.bindparam("used_at"))
            )
            self._note_each(later, [{"row_id": row_id, "used_at": at} for row_id, at in sorted(used.items())])
        instances = t.relay_instances.c
        seen = relay_instance(sa.bindparam("of_cluster"), sa.bindparam("of_instance"))
        self._note_each(
            seen.where(instances.last_seen_at < sa.bindparam("seen_at")).values(
                last_seen_at=sa.bindparam("seen_at")
            ),
            [
                {"of_cluster": cluster_id, "of_instance": instance, "seen_at": at}
                for (cluster_id, instance), at in sorted(relays.items())
            ],
        )
        if trail is not None:
            known = t.audit_trail.c
            # Skip a trail that was replaced meanwhile, and a number below the stored one.
            further = sa.update(t.audit_trail).where(known.id == trail.id, known.highest < trail.highest)
            with self._note() as connection:
                connection.execute(further.values(highest=trail.highest))

    def _note_each(self, statement: sa.Update, rows: Sequence[Mapping[str, object]]) -> None:
        """Run an update for each of the rows, whose order is the same at all hubs.

        A transaction of its own, so that no two hubs hold rows that the other one waits for.
        """
        if rows:
            with self._note() as connection:
                connection.execute(statement, rows)

    def last_used(self, ids: Collection[str] | None = None) -> dict[str, float]:
        """The times of last use, by id, of these agents, credentials and admin tokens, or of all."""
        found: dict[str, float] = {}
        with self._read() as connection:
            for table in (t.agents, t.api_keys, t.agent_keys, t.federation_rules, t.admin_tokens):
                query = sa.select(table.c.id, table.c.last_used_at).where(table.c.last_used_at.is_not(None))
                if ids is not None:
                    query = query.where(table.c.id.in_(ids))
                found.update((row.id, row.last_used_at) for row in connection.execute(query))
        return found

    # -- the audit trail

    def accept_trail(self, trail: TrailMark | None) -> None:
        """Accept this trail as the hub's from now on; with None, the next start accepts any trail."""
        with self._change() as connection:
            connection.execute(sa.delete(t.audit_trail))
            if trail is not None:
                connection.execute(sa.insert(t.audit_trail).values(attrs.asdict(trail)))

    # -- admin tokens

    def add_admin_token(
        self,
        name: str,
        token_hash: str,
        *,
        role: Role,
        expires_at: float | None = None,
        remote: bool = False,
        person: str = "",
    ) -> str:
        """Add a token of the admin API and return its id; raises InvalidError, ConflictError."""
        check_name("token name", name)
        check_person(person, needed=role is Role.APPROVER)
        if is_local_token_name(name):
            raise InvalidError(f"the name {name} is reserved for a hub's own token: choose another name")
        with self._change() as connection:
            step = f": `hawse admin token remove {name}` removes it, so that you can add a new one"
            refuse_taken(connection, t.admin_tokens, "token", name, next_step=step)
            return self._insert_admin_token(
                connection, name, token_hash, role, expires_at, remote=remote, person=person
            )

    def put_local_token(self, token_hash: str, name: str = LOCAL_TOKEN_NAME) -> str:
        """Replace the token of a hub's own machine, and return the new one's id."""
        with self._change() as connection:
            connection.execute(sa.delete(t.admin_tokens).where(t.admin_tokens.c.name == name))
            return self._insert_admin_token(connection, name, token_hash, Role.ADMIN, None)

    def _insert_admin_token(
        self,
        connection: sa.Connection,
        name: str,
        token_hash: str,
        role: Role,
        expires_at: float | None,
        *,
        remote: bool = False,
        person: str = "",
    ) -> str:
        token_id = new_id()
        connection.execute(
            sa.insert(t.admin_tokens).values(
                id=token_id,
                name=name,
                hash=token_hash,
                role=role,
                role_chosen=True,
                created_at=self._clock(),
                expires_at=expires_at,
                remote=remote,
                person=person,
            )
        )
        return token_id

    def remove_admin_token(self, name: str, *, at: float) -> str:
        """Revoke a token of the admin API and return its id.

        Raises NotFoundError, and ConflictError for the last token with the role admin that was valid `at` the
        time of the request. A removal that was kept in the reserve runs again later, and must not be refused
        then, even if the other admin token has expired meanwhile.
        """
        tokens = t.admin_tokens.c
        good = sa.and_(tokens.role == Role.ADMIN, sa.or_(tokens.expires_at.is_(None), tokens.expires_at > at))
        with self._change() as connection:
            token = find(connection, t.admin_tokens, "token", name)
            admins = connection.scalars(sa.select(tokens.id).where(good).limit(2)).all()
            if list(admins) == [token.id]:
                raise ConflictError(
                    f"token {name} is the last one with the role admin: add another first "
                    "(hawse admin token add NAME --role admin), or no one can administer"
                )
            connection.execute(sa.delete(t.admin_tokens).where(tokens.id == token.id))
            return str(token.id)

    # -- the console

    def add_console_code(self, code_hash: str, *, token_id: str, operator: str, expires_at: float) -> None:
        """Add a one-time code of a token; raises NotFoundError if the token was removed meanwhile."""
        codes, now = t.console_codes, self._clock()
        with self._change() as connection:
            token = sa.select(t.admin_tokens.c.id).where(t.admin_tokens.c.id == token_id)
            if connection.scalar(token) is None:
                raise NotFoundError("the admin token was removed")
            connection.execute(sa.delete(codes).where(codes.c.expires_at <= now))
            _drop_oldest(connection, codes, token_id, codes.c.created_at, CODES_PER_TOKEN_MAX)
            connection.execute(
                sa.insert(codes).values(
                    hash=code_hash,
                    token_id=token_id,
                    operator=operator,
                    created_at=now,
                    expires_at=expires_at,
                )
            )

    def redeem_console_code(
        self, code_hash: str, session_hash: str, *, session_id: str, ip: str, user_agent: str
    ) -> None:
        """Begin a session with a code, which is used up; raises NotFoundError if it was, or has expired."""
        codes, sessions, now = t.console_codes, t.console_sessions, self._clock()
        with self._change() as connection:
            code = connection.execute(sa.select(codes).where(codes.c.hash == code_hash)).first()
            if code is None or code.expires_at <= now:
                raise NotFoundError("the code was used, or has expired")
            connection.execute(sa.delete(codes).where(codes.c.hash == code_hash))
            # Hubs write uses with a delay, far below the time that an ended session is kept.
            ended = sa.or_(sessions.c.expires_at <= now, sessions.c.used_at <= now - 2 * IDLE_S)
            connection.execute(sa.delete(sessions).where(ended))
            _drop_oldest(connection, sessions, code.token_id, sessions.c.used_at, SESSIONS_PER_TOKEN_MAX)
            connection.execute(
                sa.insert(sessions).values(
                    hash=session_hash,
                    id=session_id,
                    token_id=code.token_id,
                    operator=code.operator,
                    created_at=now,
                    used_at=now,
                    expires_at=now + SESSION_S,
                    ip=ip,
                    user_agent=user_agent[:USER_AGENT_CHARACTERS_MAX],
                )
            )

    def end_console_session(self, session_id: str) -> str:
        """End a session, and return the operator's name; raises NotFoundError."""
        sessions = t.console_sessions
        with self._change() as connection:
            operator = connection.scalar(sa.select(sessions.c.operator).where(sessions.c.id == session_id))
            if operator is None:
                raise NotFoundError("there is no such session: it has ended, or it never began")
            connection.execute(sa.delete(sessions).where(sessions.c.id == session_id))
            return str(operator)

    def console_uses(self) -> dict[str, float]:
        """When each session was last used, by id, as far as hubs have written it."""
        sessions = t.console_sessions.c
        with self._read() as connection:
            rows = connection.execute(sa.select(sessions.id, sessions.used_at))
            return {row.id: row.used_at for row in rows}

    def note_console_uses(self, used: Mapping[str, float]) -> None:
        """Store when sessions were last used, by id; like `note_use` no change."""
        sessions = t.console_sessions
        later = (
            sa.update(sessions)
            .where(sessions.c.id == sa.bindparam("row_id"), sessions.c.used_at < sa.bindparam("at"))
            .values(used_at=sa.bindparam("at"))
        )
        self._note_each(later, [{"row_id": row_id, "at": at} for row_id, at in sorted(used.items())])


def _drop_oldest(
    connection: sa.Connection, table: sa.Table, token_id: str, age: sa.Column[float], rows_max: int
) -> None:
    """Delete the oldest rows of a token, so that one more is within the limit."""
    of_token = table.c.token_id == token_id
    kept = sa.select(table.c.hash).where(of_token).order_by(age.desc()).limit(rows_max - 1)
    hashes = connection.scalars(kept).all()
    connection.execute(sa.delete(table).where(of_token, table.c.hash.not_in(hashes)))
