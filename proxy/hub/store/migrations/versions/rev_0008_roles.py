"""Roles of admin tokens, and when each ends."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give existing tokens the role admin, since they may do everything, and mark the role as not chosen.

    The token `local` is the hub's own and always an admin, so there is nothing to choose.
    """
    op.add_column("admin_tokens", sa.Column("role", sa.String(16)))
    op.add_column("admin_tokens", sa.Column("role_chosen", sa.Boolean(create_constraint=False)))
    op.add_column("admin_tokens", sa.Column("expires_at", sa.Float))
    op.execute("UPDATE admin_tokens SET role = 'admin', role_chosen = (name = 'local')")
    # A default would make an admin of a row whose INSERT forgets the role.
    with op.batch_alter_table("admin_tokens") as batch:
        batch.alter_column("role", existing_type=sa.String(16), nullable=False)
        batch.alter_column("role_chosen", existing_type=sa.Boolean(create_constraint=False), nullable=False)
