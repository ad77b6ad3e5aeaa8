"""The used one-time tokens, on PostgreSQL alone: with SQLite they are in a file of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table on PostgreSQL."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.create_table(
        "seen",
        sa.Column("token", sa.LargeBinary, nullable=False),
        sa.Column("attempt", sa.LargeBinary, nullable=False),
        sa.Column("kept_until", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_seen"),
    )
    op.create_index("ix_seen_kept_until", "seen", ["kept_until"])
