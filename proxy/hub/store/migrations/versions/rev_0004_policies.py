"""The bundles of policies, the newest of which is in force."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; the store writes the first bundle when it is opened."""
    op.create_table(
        "policy_bundles",
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("documents", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_policy_bundles"),
    )
