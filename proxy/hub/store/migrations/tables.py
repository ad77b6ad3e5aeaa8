"""The hub's tables on both engines. The migrations make the same schema; a test compares the two."""

from __future__ import annotations

import sqlalchemy as sa

from proxy.hub.store.migrations import CONSTRAINT_NAMES

metadata = sa.MetaData(naming_convention=CONSTRAINT_NAMES)

# One row. Every change updates it first, and so takes its lock (proxy/hub/store/versions/version.py).
directory = sa.Table(
    "directory",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("nonce", sa.String(32), nullable=False),
    # The oldest revision whose software may use these tables.
    sa.Column("oldest", sa.String(32), nullable=False),
    sa.CheckConstraint("id = 1", name="one_row"),
)

# The latest versions, so that a hub sees whether the one it has read is one of them.
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("nonce", sa.String(32), nullable=False),
)

# The version that last changed an agent or a cluster, with all that belongs to it. Triggers write it.
touched = sa.Table(
    "touched",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False, index=True),
)

teams = sa.Table(
    "teams",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
)

# RoleBindings outlive a team and grant rights to its name.
retired_teams = sa.Table(
    "retired_teams",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("retired_at", sa.Float, nullable=False),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    # Unique, retired agents included: a name in the audit trail must always mean the same agent.
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("owner", sa.String(254), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("state_changed_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    sa.CheckConstraint("state IN ('active', 'locked', 'retired')", name="state"),
)

agent_teams = sa.Table(
    "agent_teams",
    metadata,
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    # No cascade from the team: the removal of a team must not remove an agent's last team.
    sa.Column("team_id", sa.ForeignKey("teams.id"), primary_key=True, index=True),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("hint", sa.String(16), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)

agent_keys = sa.Table(
    "agent_keys",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    # Unique, revoked keys included: a revoked key can never be registered for another agent.
    sa.Column("kid", sa.String(128), nullable=False, unique=True),
    sa.Column("jwk", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)

enrolment_codes = sa.Table(
    "enrolment_codes",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

federation_issuers = sa.Table(
    "federation_issuers",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("url", sa.String(512), nullable=False, unique=True),
    sa.Column("jwks_url", sa.String(2048)),
    sa.Column("jwks", sa.Text),
    sa.Column("ca_pem", sa.Text),
    sa.Column("address_private", sa.Boolean(create_constraint=True, name="private"), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

federation_rules = sa.Table(
    "federation_rules",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column(
        "issuer_id", sa.ForeignKey("federation_issuers.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("audience", sa.String(256), nullable=False),
    sa.Column("claims", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
)

clusters = sa.Table(
    "clusters",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("relay_url", sa.String(2048)),
    sa.Column("relay_ca_pem", sa.Text),
    sa.Column("relay_address_private", sa.Boolean(create_constraint=True, name="private"), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    # The UID of its namespace kube-system, from the first relay that connected; NULL until then.
    sa.Column("cluster_uid", sa.String(64)),
    sa.CheckConstraint("mode IN ('tunnel', 'direct')", name="mode"),
    sa.CheckConstraint("(mode = 'direct') = (relay_url IS NOT NULL)", name="relay_url"),
)

cluster_grants = sa.Table(
    "cluster_grants",
    metadata,
    sa.Column("cluster_id", sa.ForeignKey("clusters.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("team_id", sa.ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True, index=True),
)

relay_keys = sa.Table(
    "relay_keys",
    metadata,
    sa.Column("kid", sa.String(128), primary_key=True),
    sa.Column("cluster_id", sa.ForeignKey("clusters.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("jwk", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

relay_instances = sa.Table(
    "relay_instances",
    metadata,
    sa.Column("cluster_id", sa.ForeignKey("clusters.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("instance", sa.String(256), primary_key=True),
    sa.Column("boot", sa.String(256), nullable=False),
    sa.Column("version", sa.String(256), nullable=False),
    sa.Column("address", sa.String(256), nullable=False),
    sa.Column("connected_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float, nullable=False),
    sa.Column("disconnected_at", sa.Float),
)

admin_tokens = sa.Table(
    "admin_tokens",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_used_at", sa.Float),
    # No default: an INSERT that forgets the role fails.
    sa.Column("role", sa.String(16), nullable=False),
    # False if a migration set the role.
    sa.Column("role_chosen", sa.Boolean, nullable=False),
    sa.Column("expires_at", sa.Float),
    # Whether it counts at the console's listener. A hub of revision 0016 may insert beside this one.
    sa.Column("remote", sa.Boolean, nullable=False, server_default=sa.false()),
    # Who approves with it; empty but for the role approver.
    sa.Column("person", sa.String(254), nullable=False, server_default=""),
)

# The console's one-time codes (proxy/hub/store/store.py).
console_codes = sa.Table(
    "console_codes",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("token_id", sa.ForeignKey("admin_tokens.id", ondelete="CASCADE"), nullable=False, index=True),
    # Who asked for it, as the trail names them.
    sa.Column("operator", sa.String(256), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

console_sessions = sa.Table(
    "console_sessions",
    metadata,
    # Of the cookie.
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("token_id", sa.ForeignKey("admin_tokens.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("operator", sa.String(256), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    # No part of a snapshot's version: hubs write it every 30 s.
    sa.Column("used_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("ip", sa.String(64), nullable=False),
    sa.Column("user_agent", sa.String(256), nullable=False),
)

# What agents ask approval for (proxy/hub/approvals/requests). No part of a snapshot, nor of the version.
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    sa.Column("cluster_id", sa.ForeignKey("clusters.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("plan", sa.String(64), nullable=False),
    sa.Column("shown", sa.String(64), nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("bundle", sa.Text, nullable=False),
    sa.Column("approvers", sa.JSON, nullable=False),
    sa.Column("valid_for_s", sa.Integer, nullable=False),
    sa.Column("interactive", sa.Boolean, nullable=False),
    # The call as policies decide about it. The target is empty once the view was deleted.
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("upgrade", sa.Boolean, nullable=False),
    # The masked preview as JSON, without what may be large. Empty once it was deleted, as `view`.
    sa.Column("summary", sa.Text, nullable=False),
    sa.Column("too_large", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    # How many transitions it has made. Each one adds 1.
    sa.Column("changes", sa.Integer, nullable=False),
    sa.Column("uses_returned", sa.Integer, nullable=False),
    # The hub process that has taken the grant last.
    sa.Column("hub_boot", sa.String(36)),
    # What a dump that is restored does not have: the table's OID in PostgreSQL; 0 in SQLite.
    sa.Column("database", sa.BigInteger, nullable=False),
    # Epoch seconds of the database's clock, as all times here.
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("changed_at", sa.Float, nullable=False),
    sa.Column("decided_by", sa.String(256), nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("decided_at", sa.Float),
    sa.Column("valid_until", sa.Float),
    sa.Column("ended_at", sa.Float, index=True),
    sa.Column("because", sa.Text, nullable=False),
    # SQLite reads a row up to the last column that is asked for. These two may be large: digests of the
    # effect, and the whole preview.
    sa.Column("effect", sa.Text, nullable=False),
    sa.Column("view", sa.Text, nullable=False),
    sa.CheckConstraint(
        "state IN ('pending', 'approved', 'denied', 'using', 'used', 'expired', 'cancelled', 'stale', "
        "'revoked')",
        name="state",
    ),
)
_OPEN = requests.c.state.in_(["pending", "approved", "using"])
sa.Index(
    "uq_requests_open", requests.c.agent_id, requests.c.plan, unique=True,
    sqlite_where=_OPEN, postgresql_where=_OPEN,
)  # fmt: skip
sa.Index("ix_requests_agent_id", requests.c.agent_id, requests.c.created_at)
sa.Index("ix_requests_changed_at", requests.c.changed_at)
sa.Index("ix_requests_created_at", requests.c.created_at)

# What webhooks are to be sent. A row stays until it was delivered.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("request_id", sa.ForeignKey("requests.id", ondelete="CASCADE"), nullable=False, index=True),
    # The webhook's name in the hub's configuration.
    sa.Column("webhook", sa.String(63), nullable=False),
    # The state that the request has come to, or `opened`.
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    # From then on a hub may claim it. A claim moves it on.
    sa.Column("due_at", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
)
# The messages of a webhook that is configured no more lie there for a day, the oldest of all.
sa.Index("ix_outbox_webhook", outbox.c.webhook, outbox.c.due_at)

policy_bundles = sa.Table(
    "policy_bundles",
    metadata,
    # Incremented by the store with each change: the trail names a decision's bundle by it.
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("documents", sa.JSON, nullable=False),
)

# One row: the identity and highest number of this hub's trail. The trail itself is not in a backup.
audit_trail = sa.Table(
    "audit_trail",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("highest", sa.BigInteger, nullable=False),
)

# The hub's signing keys, in PostgreSQL. The private halves are sealed (proxy/hub/store/secrets/sealing.py).
signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    # The public half, for operators: a hub computes it from the private one.
    sa.Column("jwk", sa.JSON, nullable=False),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.CheckConstraint("state IN ('published', 'active', 'retiring')", name="state"),
)

# The statements about new signing keys, oldest first (auth/key_rotation.py).
succession = sa.Table(
    "succession",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("statement", sa.Text, nullable=False),
)

# The pepper, sealed.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("sealed", sa.Text, nullable=False),
)
