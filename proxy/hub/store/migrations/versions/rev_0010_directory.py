"""The version of the directory, and the first policies."""

from __future__ import annotations

import secrets
import time

import sqlalchemy as sa
from alembic import op

from auth.policy.bundled import first_sources
from auth.policy.conditions import CelConditions
from auth.policy.match import compile_bundle

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NONCE_BYTES = 16


def upgrade() -> None:
    """Make the table with its row, and the first bundle of policies where there is none."""
    directory = op.create_table(
        "directory",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("nonce", sa.String(32), nullable=False),
        sa.Column("oldest", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_directory"),
        sa.CheckConstraint("id = 1", name="ck_directory_one_row"),
    )
    row = {"id": 1, "version": 1, "nonce": secrets.token_hex(NONCE_BYTES), "oldest": revision}
    op.bulk_insert(directory, [row])
    _write_first_bundle(op.get_bind())


def _write_first_bundle(connection: sa.Connection) -> None:
    if connection.scalar(sa.text("SELECT count(*) FROM policy_bundles")):
        return
    sources = first_sources()
    bundle = compile_bundle(sources, CelConditions(time.thread_time), version=1)
    bundles = sa.table(
        "policy_bundles",
        sa.column("version", sa.Integer),
        sa.column("hash", sa.String),
        sa.column("created_at", sa.Float),
        sa.column("documents", sa.JSON),
    )
    connection.execute(
        sa.insert(bundles).values(
            version=bundle.version,
            hash=bundle.hash,
            created_at=time.time(),
            documents=[source.text for source in sources],
        )
    )
