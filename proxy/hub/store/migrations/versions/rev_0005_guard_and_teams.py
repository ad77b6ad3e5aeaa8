"""New rules for the guard policy of an existing hub, and the names of removed teams."""

from __future__ import annotations

import json
import time

import sqlalchemy as sa
from alembic import op

from auth.policy.bundled import GUARD, with_rules
from auth.policy.conditions import CelConditions
from auth.policy.document import name_of
from auth.policy.match import compile_bundle
from auth.policy.text import PolicyError, Source
from proxy.hub.store.migrations import MigrationError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# As the guard pack of this revision has them. A later pack does not change them here.
RULES: list[dict[str, object]] = [
    {
        "id": "admission-policies",
        "enabled": True,
        "effect": "deny",
        "verbs": ["write"],
        "apiGroups": ["admissionregistration.k8s.io"],
        "resources": [
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicies/*",
            "mutatingadmissionpolicybindings",
            "validatingadmissionpolicies",
            "validatingadmissionpolicies/*",
            "validatingadmissionpolicybindings",
        ],
        "reason": "an admission policy changes or refuses the writes of all users",
    },
    {
        "id": "relay-roles",
        "enabled": True,
        "effect": "deny",
        "verbs": ["write"],
        "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["clusterroles", "clusterrolebindings", "roles", "rolebindings"],
        "resourceNames": ["hawse-relay*"],
        "reason": "these roles say whom the relay may impersonate",
        "instead": "hawse admin cluster rbac prints them for the owner of the cluster",
    },
    {
        "id": "pod-certificates",
        "enabled": True,
        "effect": "deny",
        "verbs": ["write"],
        "apiGroups": ["certificates.k8s.io"],
        "resources": ["podcertificaterequests", "podcertificaterequests/*"],
        "reason": "a pod certificate is an identity that Hawse neither names nor revokes; only kubelets "
        "ask for one",
    },
    {
        "id": "node-status",
        "enabled": True,
        "effect": "deny",
        "verbs": ["write"],
        "apiGroups": [""],
        "resources": ["nodes/status"],
        "reason": "the addresses in it decide where the API server sends exec, logs and port-forward of "
        "all users",
    },
    {
        "id": "node-creation",
        "enabled": True,
        "effect": "deny",
        "verbs": ["create"],
        "apiGroups": [""],
        "resources": ["nodes"],
        "reason": "a new node brings its own addresses, to which the API server sends exec and logs",
    },
    {
        "id": "flow-control",
        "enabled": True,
        "effect": "deny",
        "verbs": ["write"],
        "apiGroups": ["flowcontrol.apiserver.k8s.io"],
        "resources": [
            "flowschemas",
            "flowschemas/*",
            "prioritylevelconfigurations",
            "prioritylevelconfigurations/*",
        ],
        "reason": "a flow schema can starve all other clients of the API server, the relay too",
    },
    {
        "id": "cluster-authentication",
        "enabled": True,
        "effect": "deny",
        "verbs": ["write"],
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": ["extension-apiserver-authentication", "aws-auth"],
        "namespaces": ["kube-system"],
        "reason": "these ConfigMaps decide who is which user",
    },
    {
        "id": "custom-resource-definitions",
        "enabled": False,
        "effect": "deny",
        "verbs": ["write"],
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions", "customresourcedefinitions/*"],
        "reason": "a conversion webhook of a CRD sees and changes all objects of that kind",
    },
    {
        "id": "persistent-volumes",
        "enabled": False,
        "effect": "deny",
        "verbs": ["create", "update", "patch"],
        "apiGroups": [""],
        "resources": ["persistentvolumes"],
        "reason": "a volume of type hostPath opens a node's files to a pod, past Pod Security",
        "instead": "kubectl create a PersistentVolumeClaim; its StorageClass makes the volume",
    },
]


def upgrade() -> None:
    """Make the table, and a new bundle where the guard lacks a rule."""
    op.create_table(
        "retired_teams",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("retired_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_retired_teams"),
    )
    _extend_guard(op.get_bind())


def _extend_guard(connection: sa.Connection) -> None:
    """A guard that was removed stays removed, and policies that cannot be read stay as they are."""
    row = connection.execute(
        sa.text("SELECT version, documents FROM policy_bundles ORDER BY version DESC LIMIT 1")
    ).first()
    if row is None:
        return
    conditions = CelConditions(time.thread_time)
    try:
        sources = [Source(text) for text in json.loads(row.documents)]
        compile_bundle(sources, conditions)
    except (ValueError, TypeError, RecursionError, PolicyError):
        return
    guard = next((source for source in sources if name_of(source) == GUARD), None)
    if guard is None:
        return
    try:
        extended = with_rules(guard, RULES)
        changed = [extended if source is guard else source for source in sources]
        bundle = compile_bundle(changed, conditions, version=row.version + 1)
    except PolicyError as error:
        raise MigrationError(f"the new rules of the guard do not fit into its policies: {error}") from error
    if extended is guard:
        return
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
            documents=[source.text for source in changed],
        )
    )
