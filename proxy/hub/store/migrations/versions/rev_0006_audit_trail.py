"""Which audit trail the hub writes, and how far that had come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; its row is written by the next hub that opens the trail."""
    op.create_table(
        "audit_trail",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("highest", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_trail"),
    )
