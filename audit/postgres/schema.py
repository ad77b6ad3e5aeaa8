"""The tables of a trail in PostgreSQL, and the rights on them.

An event is keyed by its epoch and its number in it. An epoch has one writer, so its numbers have no gaps: a
missing number is a deleted row. `written` is the writer's time when it made the batch, and never decreases
within an epoch; events are in the order of (written, epoch, n). Epoch 0 is shared: an operator's command, and
the process that closes a dead hub's epoch, append to it under an exclusive lock. A copied trail is there too.

Unlike a sequence of the database, these numbers are in the order of commits. So a follower needs one number
per epoch, and never misses an event that was committed late.

A hub's role needs to insert and select events and common parts, and no other right on them. UPDATE, DELETE
and TRUNCATE are for the owner, and `trail_prune` runs with the owner's rights. audit.postgres.rights has the
statements. If the hub's role is the owner, nothing protects the events.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, UUID

from audit.blocks import BLOCK_EVENTS
from audit.postgres.link import Call, Link, Statement
from audit.schema import SPAN_EVENTS

VERSION = 1

# The first of the two keys of all advisory locks of trails; the second one is the epoch ("hawse" in base 36).
LOCK_CLASS = 29_062_526
# The newest events cannot be pruned: an intruder with the hub's role must not hide its calls.
KEPT_HOURS_MIN = 24
# SQLSTATEs of the functions below; no class of PostgreSQL begins with H, except HV for foreign data.
EPOCH_CLOSED = "HW001"
NOT_PRUNABLE = "HW002"
EPOCH_LOST = "HW003"

_metadata = sa.MetaData()
_eid = UUID(as_uuid=False)

events = sa.Table(
    "trail_events",
    _metadata,
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("n", sa.BigInteger, primary_key=True),
    sa.Column("written", sa.BigInteger),
    sa.Column("eid", _eid),
    sa.Column("phase", sa.Text),
    sa.Column("kind", sa.Text),
    sa.Column("ts_us", sa.BigInteger),
    sa.Column("agent", sa.Text),
    sa.Column("cluster", sa.Text),
    sa.Column("common", sa.Integer),
    sa.Column("body", BYTEA),
)
common_parts = sa.Table(
    "trail_parts",
    _metadata,
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("n", sa.BigInteger),
    sa.Column("body", BYTEA),
)
blocks = sa.Table(
    "trail_blocks",
    _metadata,
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("last_n", sa.BigInteger),
    *(sa.Column(name, sa.BigInteger) for name in ("first_written", "last_written", "first_us", "last_us")),
    *(sa.Column(name, ARRAY(sa.Text)) for name in ("agent", "cluster", "kind")),
)
epochs = sa.Table(
    "trail_epochs",
    _metadata,
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("boot", sa.Text),
    sa.Column("closed", sa.Boolean),
)


def _places(name: str) -> sa.Table:
    """A table of calls, each with the place of one of its rows."""
    return sa.Table(
        name,
        _metadata,
        sa.Column("eid", _eid, primary_key=True),
        sa.Column("epoch", sa.Integer),
        sa.Column("n", sa.BigInteger),
    )


# The first rows of calls without an end, and last rows that are far behind the first ones.
open_intents, late_ends = _places("trail_open"), _places("trail_late_ends")

# All parts of these texts are constants of this program.
_TABLES = (
    "CREATE TABLE trail (id uuid PRIMARY KEY, version int NOT NULL)",
    """
CREATE TABLE trail_epochs (
    epoch int PRIMARY KEY,
    boot text NOT NULL UNIQUE,
    closed boolean NOT NULL DEFAULT false
)
""",
    "INSERT INTO trail_epochs (epoch, boot) VALUES (0, '')",
    """
CREATE TABLE trail_events (
    written bigint NOT NULL,
    n bigint NOT NULL,
    ts_us bigint NOT NULL,
    eid uuid NOT NULL,
    epoch int NOT NULL,
    common int,
    phase text NOT NULL,
    kind text NOT NULL,
    agent text NOT NULL,
    cluster text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (epoch, n)
)
""",
    # A batch has one time, so the index keeps it once for all of its rows.
    "CREATE INDEX trail_events_written ON trail_events (written)",
    """
CREATE TABLE trail_parts (
    epoch int NOT NULL,
    number int NOT NULL,
    n bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (epoch, number)
)
""",
    """
CREATE TABLE trail_blocks (
    epoch int NOT NULL,
    number bigint NOT NULL,
    last_n bigint NOT NULL,
    first_written bigint NOT NULL,
    last_written bigint NOT NULL,
    first_us bigint NOT NULL,
    last_us bigint NOT NULL,
    agent text[] NOT NULL,
    cluster text[] NOT NULL,
    kind text[] NOT NULL,
    PRIMARY KEY (epoch, number)
)
""",
    # Every write adds a row and deletes it. By default, a vacuum waits until a fifth of the table is dead.
    """
CREATE TABLE trail_open (eid uuid PRIMARY KEY, epoch int NOT NULL, n bigint NOT NULL)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000)
""",
    "CREATE TABLE trail_late_ends (eid uuid PRIMARY KEY, epoch int NOT NULL, n bigint NOT NULL)",
    f"""
CREATE FUNCTION trail_enter(writer int) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE ended boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared({LOCK_CLASS}, writer);
    SELECT closed INTO ended FROM trail_epochs WHERE epoch = writer;
    IF ended IS NULL THEN
        RAISE EXCEPTION 'the database has lost epoch % of the audit trail', writer
            USING ERRCODE = '{EPOCH_LOST}';
    END IF;
    IF ended THEN
        RAISE EXCEPTION 'epoch % of the audit trail is closed: another process took this hub for dead', writer
            USING ERRCODE = '{EPOCH_CLOSED}';
    END IF;
END $$
""",  # noqa: S608
    # Indexes the blocks of an epoch that end between two numbers.
    f"""
CREATE FUNCTION trail_index(writer int, before bigint, newest bigint) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO trail_blocks
    SELECT epoch, n / {BLOCK_EVENTS}, max(n), min(written), max(written), min(ts_us), max(ts_us),
        array_agg(DISTINCT agent), array_agg(DISTINCT cluster), array_agg(DISTINCT kind)
    FROM trail_events
    WHERE epoch = writer
        AND n >= before / {BLOCK_EVENTS} * {BLOCK_EVENTS} AND n < newest / {BLOCK_EVENTS} * {BLOCK_EVENTS}
    GROUP BY epoch, n / {BLOCK_EVENTS}
    ON CONFLICT DO NOTHING
$$
""",  # noqa: S608
    # Removes all events up to a position, and what only they needed; returns how many events there were.
    f"""
CREATE FUNCTION trail_prune(last_written bigint, last_epoch int, last_n bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE removed bigint;
BEGIN
    IF last_written >
        (extract(epoch FROM clock_timestamp() - interval '{KEPT_HOURS_MIN} hours') * 1000000)::bigint
    THEN
        RAISE EXCEPTION 'a trail in PostgreSQL keeps the events of the last {KEPT_HOURS_MIN} hours'
            USING ERRCODE = '{NOT_PRUNABLE}';
    END IF;
    IF EXISTS (
        SELECT FROM trail_open o JOIN trail_events e USING (epoch, n)
        WHERE (e.written, e.epoch, e.n) <= (last_written, last_epoch, last_n)
    ) THEN
        RAISE EXCEPTION 'a call that began before this event has not ended' USING ERRCODE = '{NOT_PRUNABLE}';
    END IF;
    WITH gone AS (
        DELETE FROM trail_events e
        WHERE e.written <= last_written AND (e.written, e.epoch, e.n) <= (last_written, last_epoch, last_n)
        RETURNING e.epoch, e.n
    ), cut AS (
        SELECT epoch, max(n) AS n, count(*) AS events FROM gone GROUP BY epoch
    ), parts AS (
        DELETE FROM trail_parts p USING cut WHERE p.epoch = cut.epoch AND p.n <= cut.n - {SPAN_EVENTS}
    ), indexed AS (
        DELETE FROM trail_blocks b USING cut WHERE b.epoch = cut.epoch AND b.last_n <= cut.n
    ), ends AS (
        DELETE FROM trail_late_ends l USING cut WHERE l.epoch = cut.epoch AND l.n <= cut.n
    )
    SELECT coalesce(sum(events), 0) INTO removed FROM cut;
    RETURN removed;
END $$
""",  # noqa: S608
    "REVOKE EXECUTE ON FUNCTION trail_prune FROM PUBLIC",
    f"INSERT INTO trail (id, version) VALUES (gen_random_uuid(), {VERSION})",  # noqa: S608
)


def prepare(link: Link, until_s: float) -> None:
    """Create the tables if there are none; raises Refused if this role may not."""
    if link.run([_EXISTS], until_s)[0] == [[b"t"]]:
        return
    # Another process may be creating them.
    link.run([_once("BEGIN"), _once(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, 0)")], until_s)
    tables = () if link.run([_EXISTS], until_s)[0] == [[b"t"]] else _TABLES
    link.run([_once(_OWN_SCHEMA), *map(_once, tables), _once("COMMIT")], until_s)


def create(connection: sa.Connection) -> None:
    """Create the tables in the connection's transaction if there are none."""
    connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, 0)"))
    if connection.scalar(sa.text(_THERE)):
        return
    for statement in (_OWN_SCHEMA, *_TABLES):
        connection.execute(sa.text(statement))


def _once(sql: str) -> Call:
    return Statement(b"", sql.encode()), ()


_THERE = "SELECT to_regclass('trail') IS NOT NULL"
_EXISTS = _once(_THERE)
# For the functions, which keep the search path that they are created with: they must not find a temporary
# table of their caller.
_OWN_SCHEMA = "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)"
