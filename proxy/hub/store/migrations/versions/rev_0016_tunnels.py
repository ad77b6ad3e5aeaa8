"""The relays' tunnels at all hubs, on PostgreSQL alone: a hub on SQLite has them in memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table on PostgreSQL."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.create_table(
        "tunnels",
        sa.Column("session", sa.String(256), nullable=False),
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("instance", sa.String(256), nullable=False),
        sa.Column("boot", sa.String(256), nullable=False),
        sa.Column("version", sa.String(256), nullable=False),
        sa.Column("address", sa.String(256), nullable=False),
        sa.Column("kid", sa.String(128), nullable=False),
        sa.Column("hub_boot", sa.String(36), nullable=False),
        sa.Column("connected_at", sa.Float, nullable=False),
        sa.Column("leaving", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("session", name="pk_tunnels"),
        sa.ForeignKeyConstraint(
            ["cluster_id"], ["clusters.id"], name="fk_tunnels_cluster_id_clusters", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["hub_boot"], ["hubs.boot"], name="fk_tunnels_hub_boot_hubs", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_tunnels_cluster_id", "tunnels", ["cluster_id"])
    op.create_index("ix_tunnels_hub_boot", "tunnels", ["hub_boot"])
