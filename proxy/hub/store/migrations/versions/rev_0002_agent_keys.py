"""Keys that agents made themselves, and the codes by which they register them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "agent_keys",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("kid", sa.String(128), nullable=False),
        sa.Column("jwk", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("last_used_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_agent_keys"),
        sa.UniqueConstraint("kid", name="uq_agent_keys_kid"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_agent_keys_agent_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_agent_keys_agent_id", "agent_keys", ["agent_id"])
    op.create_table(
        "enrolment_codes",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_enrolment_codes"),
        sa.UniqueConstraint("hash", name="uq_enrolment_codes_hash"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_enrolment_codes_agent_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_enrolment_codes_agent_id", "enrolment_codes", ["agent_id"])
