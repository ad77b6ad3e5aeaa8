"""All tables of revision 0008, on PostgreSQL, where the database of a hub begins with this revision.

Written out, because `tables` has the changes of later revisions. Those run on both engines.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from proxy.hub.store.migrations import CONSTRAINT_NAMES

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

metadata = sa.MetaData(naming_convention=CONSTRAINT_NAMES)

sa.Table(
    "teams",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
)

sa.Table(
    "retired_teams",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("retired_at", sa.Float, nullable=False),
)

sa.Table(
    "agents",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("owner", sa.String(254), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("state_changed_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    sa.CheckConstraint("state IN ('active', 'locked', 'retired')", name="state"),
)

sa.Table(
    "agent_teams",
    metadata,
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("team_id", sa.ForeignKey("teams.id"), primary_key=True, index=True),
)

sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("hint", sa.String(16), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)

sa.Table(
    "agent_keys",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("kid", sa.String(128), nullable=False, unique=True),
    sa.Column("jwk", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)

sa.Table(
    "enrolment_codes",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

sa.Table(
    "federation_issuers",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("url", sa.String(512), nullable=False, unique=True),
    sa.Column("jwks_url", sa.String(2048)),
    sa.Column("jwks", sa.Text),
    sa.Column("ca_pem", sa.Text),
    sa.Column("address_private", sa.Boolean(create_constraint=True, name="private"), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

sa.Table(
    "federation_rules",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column(
        "issuer_id", sa.ForeignKey("federation_issuers.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("audience", sa.String(256), nullable=False),
    sa.Column("claims", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
)

sa.Table(
    "clusters",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("relay_url", sa.String(2048)),
    sa.Column("relay_ca_pem", sa.Text),
    sa.Column("relay_address_private", sa.Boolean(create_constraint=True, name="private"), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("cluster_uid", sa.String(64)),
    sa.CheckConstraint("mode IN ('tunnel', 'direct')", name="mode"),
    sa.CheckConstraint("(mode = 'direct') = (relay_url IS NOT NULL)", name="relay_url"),
)

sa.Table(
    "cluster_grants",
    metadata,
    sa.Column("cluster_id", sa.ForeignKey("clusters.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("team_id", sa.ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True, index=True),
)

sa.Table(
    "relay_keys",
    metadata,
    sa.Column("kid", sa.String(128), primary_key=True),
    sa.Column("cluster_id", sa.ForeignKey("clusters.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("jwk", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

sa.Table(
    "relay_instances",
    metadata,
    sa.Column("cluster_id", sa.ForeignKey("clusters.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("instance", sa.String(256), primary_key=True),
    sa.Column("boot", sa.String(256), nullable=False),
    sa.Column("version", sa.String(256), nullable=False),
    sa.Column("address", sa.String(256), nullable=False),
    sa.Column("connected_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float, nullable=False),
    sa.Column("disconnected_at", sa.Float),
)

sa.Table(
    "admin_tokens",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("role_chosen", sa.Boolean, nullable=False),
    sa.Column("expires_at", sa.Float),
)

sa.Table(
    "policy_bundles",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("documents", sa.JSON, nullable=False),
)

sa.Table(
    "audit_trail",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("highest", sa.BigInteger, nullable=False),
)


def upgrade() -> None:
    """Make the tables on PostgreSQL; SQLite has them already."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        metadata.create_all(connection)
