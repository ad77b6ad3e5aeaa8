"""The console's one-time codes and sessions, and the admin tokens that count at its listener.

It only adds, so that a hub of the revision before can run beside one of this.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; no token that is there counts at the console's listener."""
    op.add_column(
        "admin_tokens",
        sa.Column("remote", sa.Boolean(create_constraint=False), nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "console_codes",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(36), nullable=False),
        sa.Column("operator", sa.String(256), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_console_codes"),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["admin_tokens.id"],
            name="fk_console_codes_token_id_admin_tokens",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_console_codes_token_id", "console_codes", ["token_id"])
    op.create_table(
        "console_sessions",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("token_id", sa.String(36), nullable=False),
        sa.Column("operator", sa.String(256), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("used_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("ip", sa.String(64), nullable=False),
        sa.Column("user_agent", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_console_sessions"),
        sa.UniqueConstraint("id", name="uq_console_sessions_id"),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["admin_tokens.id"],
            name="fk_console_sessions_token_id_admin_tokens",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_console_sessions_token_id", "console_sessions", ["token_id"])
