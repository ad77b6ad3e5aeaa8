"""Which Kubernetes cluster a cluster's relays are in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; the next relay that connects fills it."""
    op.add_column("clusters", sa.Column("cluster_uid", sa.String(64)))
