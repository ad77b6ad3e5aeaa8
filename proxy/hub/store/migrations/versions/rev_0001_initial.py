"""Teams, agents, clusters and their keys.

Written out instead of taken from `tables`, which will have moved on when this runs again. There is no
way back down: without its tables the hub has no agents, so an operator restores the older version's
backup instead.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "teams",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_teams"),
        sa.UniqueConstraint("name", name="uq_teams_name"),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("owner", sa.String(254), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("state_changed_at", sa.Float, nullable=False),
        sa.Column("last_used_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("name", name="uq_agents_name"),
        sa.CheckConstraint("state IN ('active', 'locked', 'retired')", name="ck_agents_state"),
    )
    op.create_table(
        "agent_teams",
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("team_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "team_id", name="pk_agent_teams"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_agent_teams_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_agent_teams_team_id"),
    )
    op.create_index("ix_agent_teams_team_id", "agent_teams", ["team_id"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("last_used_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("hash", name="uq_api_keys_hash"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_api_keys_agent_id", ondelete="CASCADE"),
    )
    op.create_index("ix_api_keys_agent_id", "api_keys", ["agent_id"])
    op.create_table(
        "clusters",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("relay_url", sa.String(2048)),
        sa.Column("relay_ca_pem", sa.Text),
        sa.Column("relay_address_private", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_clusters"),
        sa.UniqueConstraint("name", name="uq_clusters_name"),
        sa.CheckConstraint("mode IN ('tunnel', 'direct')", name="ck_clusters_mode"),
        sa.CheckConstraint("(mode = 'direct') = (relay_url IS NOT NULL)", name="ck_clusters_relay_url"),
        sa.CheckConstraint("relay_address_private IN (0, 1)", name="ck_clusters_private"),
    )
    op.create_table(
        "cluster_grants",
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("team_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "team_id", name="pk_cluster_grants"),
        sa.ForeignKeyConstraint(
            ["cluster_id"], ["clusters.id"], name="fk_cluster_grants_cluster_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["team_id"], ["teams.id"], name="fk_cluster_grants_team_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_cluster_grants_team_id", "cluster_grants", ["team_id"])
    op.create_table(
        "relay_keys",
        sa.Column("kid", sa.String(128), nullable=False),
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("jwk", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("kid", name="pk_relay_keys"),
        sa.ForeignKeyConstraint(
            ["cluster_id"], ["clusters.id"], name="fk_relay_keys_cluster_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_relay_keys_cluster_id", "relay_keys", ["cluster_id"])
    op.create_table(
        "relay_instances",
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("instance", sa.String(256), nullable=False),
        sa.Column("boot", sa.String(256), nullable=False),
        sa.Column("version", sa.String(256), nullable=False),
        sa.Column("address", sa.String(256), nullable=False),
        sa.Column("connected_at", sa.Float, nullable=False),
        sa.Column("last_seen_at", sa.Float, nullable=False),
        sa.Column("disconnected_at", sa.Float),
        sa.PrimaryKeyConstraint("cluster_id", "instance", name="pk_relay_instances"),
        sa.ForeignKeyConstraint(
            ["cluster_id"], ["clusters.id"], name="fk_relay_instances_cluster_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "admin_tokens",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("last_used_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_admin_tokens"),
        sa.UniqueConstraint("name", name="uq_admin_tokens_name"),
        sa.UniqueConstraint("hash", name="uq_admin_tokens_hash"),
    )
