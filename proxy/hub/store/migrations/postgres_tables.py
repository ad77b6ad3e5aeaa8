"""The tables that a database of PostgreSQL has beside the hub's others: what several hubs share.

A hub on SQLite has the rows of `seen` in a file of its own, and no other hub. The migrations make the same
schema; a test compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

from proxy.hub.store.migrations import CONSTRAINT_NAMES
from proxy.hub.store.migrations.tables import clusters

only_in_postgres = sa.MetaData(naming_convention=CONSTRAINT_NAMES)

# The used one-time tokens of all hubs (proxy/hub/identity/replay_postgres.py).
seen = sa.Table(
    "seen",
    only_in_postgres,
    # A SHA-256.
    sa.Column("token", sa.LargeBinary, primary_key=True),
    # Random, for each use.
    sa.Column("attempt", sa.LargeBinary, nullable=False),
    # Epoch seconds of the database's clock.
    sa.Column("kept_until", sa.BigInteger, nullable=False, index=True),
)

# The hub processes of this directory, each with its lease (proxy/hub/membership/lease.py). Ended ones are
# deleted after some minutes.
hubs = sa.Table(
    "hubs",
    only_in_postgres,
    sa.Column("boot", sa.String(36), primary_key=True),
    # The id of the data folder's hub, which stays over restarts. A replaced hub and its successor share it.
    sa.Column("hub", sa.String(8), nullable=False),
    # The epoch of this boot in the trail.
    sa.Column("epoch", sa.Integer, nullable=False),
    # Where other hubs dial it, and the certificate that they find there; "" without `peer`.
    sa.Column("address", sa.String(256), nullable=False),
    sa.Column("certificate", sa.Text, nullable=False),
    sa.Column("software", sa.String(64), nullable=False),
    # The newest revision of these tables that the software knows.
    sa.Column("revision", sa.String(32), nullable=False),
    # The version of the links' protocol.
    sa.Column("links", sa.Integer, nullable=False),
    # A digest of the machine and the data folder, by which a copy of the folder differs.
    sa.Column("place", sa.String(64), nullable=False),
    # The hub's own settings, which the other hubs judge it by.
    sa.Column("stale_s", sa.Float, nullable=False),
    sa.Column("stale_streams_s", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    # The version of the directory by which it decides.
    sa.Column("applied", sa.BigInteger, nullable=False),
    sa.Column("tunnels", sa.Integer, nullable=False),
    sa.Column("calls", sa.Integer, nullable=False),
    # The ids of the hubs that it cannot link to, separated by commas.
    sa.Column("unreachable", sa.Text, nullable=False),
    # Epoch seconds of the database's clock.
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("renewed_at", sa.Float, nullable=False),
    sa.CheckConstraint("state IN ('serving', 'leaving', 'gone', 'dead')", name="state"),
)

# The relays' tunnels at all hubs (proxy/hub/membership/tunnels.py).
tunnels = sa.Table(
    "tunnels",
    only_in_postgres,
    sa.Column("session", sa.String(256), primary_key=True),
    sa.Column("cluster_id", sa.ForeignKey(clusters.c.id, ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("instance", sa.String(256), nullable=False),
    # The relay's.
    sa.Column("boot", sa.String(256), nullable=False),
    sa.Column("version", sa.String(256), nullable=False),
    sa.Column("address", sa.String(256), nullable=False),
    # The id of the relay key that it authenticated with.
    sa.Column("kid", sa.String(128), nullable=False),
    sa.Column("hub_boot", sa.ForeignKey(hubs.c.boot, ondelete="CASCADE"), nullable=False, index=True),
    # Epoch seconds of the hub's clock.
    sa.Column("connected_at", sa.Float, nullable=False),
    # It takes no slot: the relay drains, or another one has taken its slot.
    sa.Column("leaving", sa.Boolean, nullable=False),
)
