"""Requests for approval, the outbox of the webhooks, and the persons of approvers' tokens.

It only adds, so that a hub of the revision before can run beside one of this.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

OPEN = "state IN ('pending', 'approved', 'using')"
STATES = (
    "state IN ('pending', 'approved', 'denied', 'using', 'used', 'expired', 'cancelled', 'stale', 'revoked')"
)


def upgrade() -> None:
    """Make the tables; no token that is there belongs to an approver."""
    op.add_column("admin_tokens", sa.Column("person", sa.String(254), nullable=False, server_default=""))
    op.create_table(
        "requests",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("plan", sa.String(64), nullable=False),
        sa.Column("shown", sa.String(64), nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("bundle", sa.Text, nullable=False),
        sa.Column("approvers", sa.JSON, nullable=False),
        sa.Column("valid_for_s", sa.Integer, nullable=False),
        sa.Column("interactive", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("upgrade", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("too_large", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("changes", sa.Integer, nullable=False),
        sa.Column("uses_returned", sa.Integer, nullable=False),
        sa.Column("hub_boot", sa.String(36)),
        sa.Column("database", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
        sa.Column("decided_by", sa.String(256), nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("decided_at", sa.Float),
        sa.Column("valid_until", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("because", sa.Text, nullable=False),
        # SQLite reads a row up to the last column that is asked for, and these two may be large.
        sa.Column("effect", sa.Text, nullable=False),
        sa.Column("view", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_requests_agent_id_agents", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["cluster_id"], ["clusters.id"], name="fk_requests_cluster_id_clusters", ondelete="CASCADE"
        ),
        sa.CheckConstraint(STATES, name="ck_requests_state"),
    )
    op.create_index(
        "uq_requests_open", "requests", ["agent_id", "plan"], unique=True,
        sqlite_where=sa.text(OPEN), postgresql_where=sa.text(OPEN),
    )  # fmt: skip
    op.create_index("ix_requests_agent_id", "requests", ["agent_id", "created_at"])
    for column in ("changed_at", "cluster_id", "created_at", "ended_at"):
        op.create_index(f"ix_requests_{column}", "requests", [column])
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("request_id", sa.String(36), nullable=False),
        sa.Column("webhook", sa.String(63), nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sa.ForeignKeyConstraint(
            ["request_id"], ["requests.id"], name="fk_outbox_request_id_requests", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_outbox_request_id", "outbox", ["request_id"])
    op.create_index("ix_outbox_webhook", "outbox", ["webhook", "due_at"])
