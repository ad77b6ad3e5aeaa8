"""Issuers whose tokens say who a workload is, and the rules that say which agent that is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "federation_issuers",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("url", sa.String(512), nullable=False),
        sa.Column("jwks_url", sa.String(2048)),
        sa.Column("jwks", sa.Text),
        sa.Column("ca_pem", sa.Text),
        sa.Column("address_private", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_federation_issuers"),
        sa.UniqueConstraint("url", name="uq_federation_issuers_url"),
        sa.CheckConstraint("address_private IN (0, 1)", name="ck_federation_issuers_private"),
    )
    op.create_table(
        "federation_rules",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("issuer_id", sa.String(36), nullable=False),
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("audience", sa.String(256), nullable=False),
        sa.Column("claims", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("last_used_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_federation_rules"),
        sa.ForeignKeyConstraint(
            ["issuer_id"],
            ["federation_issuers.id"],
            name="fk_federation_rules_issuer_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_federation_rules_agent_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_federation_rules_issuer_id", "federation_rules", ["issuer_id"])
    op.create_index("ix_federation_rules_agent_id", "federation_rules", ["agent_id"])
