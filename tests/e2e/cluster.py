"""The disposable cluster: whose it is, what it serves, and the chain that is put in front of it.

HAWSE_E2E_KUBECONFIG names its administrator's kubeconfig, and is what makes this folder be collected at all
(README.md). The sandbox serves for a cluster too, but for what is marked `real_cluster`:

    python -m sandbox --dir DIR
    HAWSE_E2E_KUBECONFIG=DIR/admin.kubeconfig PYTEST_ADDOPTS="-m 'not real_cluster'" make e2e
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml

from sandbox.demo.cluster import RELAY_NAMESPACE, RELAY_SERVICE_ACCOUNT, Administrator, prepared
from sandbox.demo.processes import Daemons, DemoError
from tests.system.world import GROUP, NAMESPACE, World, cluster_objects, connect, make_world, start_and_enrol

KUBECONFIG = os.environ.get("HAWSE_E2E_KUBECONFIG", "")
AUDIT_LOG = os.environ.get("HAWSE_E2E_AUDIT_LOG", "")

AUDIT = "the API server's audit log (HAWSE_E2E_AUDIT_LOG)"
# What the agent may do outside its namespace, for the few commands that go there.
CLUSTER_WIDE = "hawse-e2e"

Case = TypeVar("Case", bound=Callable[..., object])


def needs(*features: str) -> Callable[[Case], Case]:
    """Say what a case cannot do without: an API group, `v1/<resource>`, a path of the server, or AUDIT."""

    def mark(case: Case) -> Case:
        case.__dict__["needs"] = features
        return case

    return mark


def missing(case: object, served: frozenset[str]) -> list[str]:
    """What a case needs and the cluster has not."""
    needed: tuple[str, ...] = getattr(case, "needs", ())
    return [feature for feature in needed if feature not in served]


def served_by(administrator: Administrator) -> frozenset[str]:
    """Ask the cluster's discovery for what `needs` may name. Raises DemoError."""
    resources = json.loads(administrator.kubectl("get", "--raw", "/api/v1"))["resources"]
    groups = json.loads(administrator.kubectl("get", "--raw", "/apis"))["groups"]
    try:
        paths = json.loads(administrator.kubectl("get", "--raw", "/"))["paths"]
    except DemoError:
        paths = []  # a server without an index of its paths has none beside the API's
    return frozenset(
        [f"v1/{resource['name']}" for resource in resources]
        + [group["name"] for group in groups]
        + paths
        + ([AUDIT] if AUDIT_LOG else [])
    )


@contextlib.contextmanager
def running_chain_on(kubeconfig: Path, folder: Path) -> Iterator[World]:
    """Hub, both relays and an agent on the cluster, which is left as it was found. Raises DemoError."""
    administrator = Administrator(kubeconfig)
    administrator.check(NAMESPACE, RELAY_NAMESPACE)
    cluster = folder / "cluster"
    cluster.mkdir(mode=0o700)
    own = administrator.kubectl("config", "view", "--raw", "--minify", "--flatten")
    (cluster / "admin.kubeconfig").write_text(own)
    if AUDIT_LOG:
        (cluster / "audit.jsonl").symlink_to(Path(AUDIT_LOG).resolve())
    with Daemons(folder) as daemons:
        world = make_world(folder, daemons, cluster / "relay.kubeconfig")
        start_and_enrol(world)
        rbac = world.admin(
            *("cluster", "rbac", "tunnel", "--namespace", RELAY_NAMESPACE),
            *("--service-account", RELAY_SERVICE_ACCOUNT),
        ).decode()
        with prepared(
            administrator,
            namespace=NAMESPACE,
            rbac=f"{rbac}\n---\n{yaml.safe_dump_all(cluster_wide_rights())}",
            objects=yaml.safe_dump_all(cluster_objects()),
        ):
            world.relay_kubeconfig.touch(mode=0o600)
            world.relay_kubeconfig.write_text(administrator.relay_kubeconfig())
            connect(world)
            yield world


def cluster_wide_rights() -> list[dict[str, object]]:
    """The agent's rights outside its namespace."""
    rbac, certificates = "rbac.authorization.k8s.io", "certificates.k8s.io"
    rules = [
        {"nonResourceURLs": ["/metrics"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]},
        {"apiGroups": ["metrics.k8s.io"], "resources": ["*"], "verbs": ["get", "list"]},
        {
            "apiGroups": [certificates],
            "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"],
            "verbs": ["get", "list", "watch", "create", "update", "delete"],
        },
        {
            "apiGroups": [certificates],
            "resources": ["signers"],
            "resourceNames": ["kubernetes.io/kube-apiserver-client"],
            "verbs": ["approve"],
        },
    ]
    metadata = {"name": CLUSTER_WIDE, "labels": {"app.kubernetes.io/managed-by": "hawse"}}
    return [
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": dict(metadata),
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": CLUSTER_WIDE},
            "subjects": [{"apiGroup": rbac, "kind": "Group", "name": GROUP}],
        },
    ]
