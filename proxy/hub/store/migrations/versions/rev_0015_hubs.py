"""The hubs of one directory, on PostgreSQL alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table on PostgreSQL."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.create_table(
        "hubs",
        sa.Column("boot", sa.String(36), nullable=False),
        sa.Column("hub", sa.String(8), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("address", sa.String(256), nullable=False),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("software", sa.String(64), nullable=False),
        sa.Column("revision", sa.String(32), nullable=False),
        sa.Column("links", sa.Integer, nullable=False),
        sa.Column("place", sa.String(64), nullable=False),
        sa.Column("stale_s", sa.Float, nullable=False),
        sa.Column("stale_streams_s", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("applied", sa.BigInteger, nullable=False),
        sa.Column("tunnels", sa.Integer, nullable=False),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("unreachable", sa.Text, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("renewed_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("boot", name="pk_hubs"),
        sa.CheckConstraint("state IN ('serving', 'leaving', 'gone', 'dead')", name="ck_hubs_state"),
    )
    # An earlier hub takes every other one for a dead hub, and closes its calls in the trail.
    op.execute("UPDATE directory SET oldest = '0015'")
