"""Which agents and clusters each version of the directory changed.

Triggers note it, so that no statement can forget to: a revocation that is not noted would not be seen. One
row for each agent and cluster is enough, also for a deleted one. The times of last use are not noted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Each table with the kind of its rows' owner, the column with the owner's id, and the columns whose UPDATE is
# noted (none: those of all columns).
TABLES = (
    ("agents", "agent", "id", "name, owner, state, created_at"),
    ("agent_teams", "agent", "agent_id", ""),
    ("api_keys", "agent", "agent_id", "agent_id, hint, hash, created_at, revoked_at"),
    ("agent_keys", "agent", "agent_id", "agent_id, kid, jwk, created_at, revoked_at"),
    ("enrolment_codes", "agent", "agent_id", ""),
    ("federation_rules", "agent", "agent_id", "issuer_id, agent_id, audience, claims, created_at"),
    ("clusters", "cluster", "id", ""),
    ("cluster_grants", "cluster", "cluster_id", ""),
    ("relay_keys", "cluster", "cluster_id", ""),
)
# A row of these belongs to many agents. The hub never updates one; if an operator does, everything is read.
SHARED = "teams", "federation_issuers"

TOUCH = """
CREATE FUNCTION hawse_touch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  changed jsonb;
BEGIN
  FOREACH changed IN ARRAY ARRAY[to_jsonb(OLD), to_jsonb(NEW)] LOOP
    IF changed IS NOT NULL THEN
      INSERT INTO touched (kind, id, version)
      SELECT TG_ARGV[0], coalesce(changed ->> TG_ARGV[1], ''), version FROM directory
      ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version;
    END IF;
  END LOOP;
  RETURN NULL;
END $$
"""
# A hub that has missed more changes than these reads everything.
KEEP_VERSION = """
CREATE FUNCTION hawse_keep_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO versions (version, nonce) VALUES (NEW.version, NEW.nonce)
  ON CONFLICT (version) DO UPDATE SET nonce = excluded.nonce;
  DELETE FROM versions WHERE version <= NEW.version - 10000;
  RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Make the tables and their triggers."""
    op.create_table(
        "touched",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name="pk_touched"),
    )
    op.create_index("ix_touched_version", "touched", ["version"])
    op.create_table(
        "versions",
        sa.Column("version", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("nonce", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_versions"),
    )
    connection = op.get_bind()
    connection.exec_driver_sql("INSERT INTO versions (version, nonce) SELECT version, nonce FROM directory")
    statements = _in_postgres() if connection.dialect.name == "postgresql" else _in_sqlite()
    for statement in statements:
        connection.exec_driver_sql(statement)


def _in_postgres() -> list[str]:
    made = [TOUCH, KEEP_VERSION]
    for table, kind, column, updated in TABLES:
        of = f" OF {updated}" if updated else ""
        made.append(
            f"CREATE TRIGGER touch AFTER INSERT OR DELETE OR UPDATE{of} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION hawse_touch('{kind}', '{column}')"
        )
    made += [
        f"CREATE TRIGGER touch AFTER UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION hawse_touch('all', '')"
        for table in SHARED
    ]
    made.append(
        "CREATE TRIGGER keep_version AFTER UPDATE ON directory "
        "FOR EACH ROW EXECUTE FUNCTION hawse_keep_version()"
    )
    return made


def _in_sqlite() -> list[str]:
    made = []
    for table, kind, column, updated in TABLES:
        of = f" OF {updated}" if updated else ""
        new, old = (_touch_in_sqlite(kind, f"{row}.{column}") for row in ("NEW", "OLD"))
        made += [
            f"CREATE TRIGGER touch_{table}_insert AFTER INSERT ON {table} BEGIN {new} END",
            f"CREATE TRIGGER touch_{table}_update AFTER UPDATE{of} ON {table} BEGIN {new} {old} END",
            f"CREATE TRIGGER touch_{table}_delete AFTER DELETE ON {table} BEGIN {old} END",
        ]
    everything = _touch_in_sqlite("all", "''")
    made += [
        f"CREATE TRIGGER touch_{table}_update AFTER UPDATE ON {table} BEGIN {everything} END"
        for table in SHARED
    ]
    made.append(
        "CREATE TRIGGER keep_version AFTER UPDATE ON directory BEGIN "
        "INSERT INTO versions (version, nonce) VALUES (NEW.version, NEW.nonce) "
        "ON CONFLICT (version) DO UPDATE SET nonce = excluded.nonce; "
        "DELETE FROM versions WHERE version <= NEW.version - 10000; END"
    )
    return made


def _touch_in_sqlite(kind: str, row_id: str) -> str:
    # Without WHERE, SQLite would read ON as that of a join.
    return (
        f"INSERT INTO touched (kind, id, version) SELECT '{kind}', {row_id}, version "  # noqa: S608 - of constants
        "FROM directory WHERE true ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version;"
    )
