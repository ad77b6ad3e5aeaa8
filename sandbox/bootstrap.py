"""The initial objects: namespaces, the node, the service `kubernetes`, and a new cluster's roles."""

from __future__ import annotations

import os
import platform

from sandbox import kinds
from sandbox.authn import AUTHENTICATED, MASTERS
from sandbox.discovery import SERVER_VERSION
from sandbox.kinds import Kind
from sandbox.kubelet import ADDRESS, NODE
from sandbox.objects import Json, Object, now, text
from sandbox.options import WriteOptions
from sandbox.status import StatusError
from sandbox.storage import Store
from sandbox.writing import Writer

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_READ = ["get", "list", "watch"]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]
_VIEWED: dict[str, list[str]] = {
    "": [
        "configmaps",
        "events",
        "namespaces",
        "pods",
        "pods/log",
        "pods/status",
        "serviceaccounts",
        "services",
    ],
    kinds.APPS: [
        "deployments",
        "deployments/scale",
        "deployments/status",
        "replicasets",
        "replicasets/status",
    ],
    kinds.BATCH: ["jobs", "jobs/status"],
    kinds.POLICY: ["poddisruptionbudgets"],
}
_EDITED: dict[str, list[str]] = {
    "": ["configmaps", "events", "pods", "secrets", "serviceaccounts", "services"],
    kinds.APPS: ["deployments", "deployments/scale", "replicasets", "replicasets/scale"],
    kinds.BATCH: ["jobs"],
    kinds.POLICY: ["poddisruptionbudgets"],
}


_AVAILABLE: Object = {"type": "Available", "status": "True", "reason": "Passed"}


def populate(store: Store, writer: Writer, ca_pem: bytes, address: str) -> None:
    """Fill an empty store."""
    for name in NAMESPACES:
        writer.create(kinds.NAMESPACES, "", {"metadata": {"name": name}})
        furnish(writer, name, ca_pem)
    writer.create(kinds.NODES, "", {"metadata": {"name": NODE, "labels": _node_labels()}})
    writer.update(
        kinds.NODES,
        "",
        NODE,
        lambda node: {**node, "status": _node_status()},
        WriteOptions(subresource="status"),
    )
    port = int(address.rpartition(":")[2])
    writer.create(kinds.SERVICES, "default", _api_service(port))
    for group in kinds.GROUPS:
        writer.create(kinds.API_SERVICES, "", _registration(group))
        writer.update(
            kinds.API_SERVICES,
            "",
            f"v1.{group}",
            lambda service: {**service, "status": {"conditions": [_AVAILABLE]}},
            WriteOptions(subresource="status"),
        )
    for kind, name, value in _roles():
        value["metadata"] = {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}
        writer.create(kind, "", value)


def furnish(writer: Writer, namespace: str, ca_pem: bytes) -> None:
    """Create the objects that every namespace has."""
    contents: tuple[tuple[Kind, Object], ...] = (
        (kinds.SERVICE_ACCOUNTS, _named("default")),
        (kinds.CONFIG_MAPS, {**_named("kube-root-ca.crt"), "data": {"ca.crt": ca_pem.decode()}}),
    )
    for kind, value in contents:
        try:
            writer.create(kind, namespace, value)
        except StatusError:
            continue  # exists already, or the namespace is being deleted


def _named(name: str) -> Object:
    return {"metadata": {"name": name}}


class Furnisher:
    """Furnishes new namespaces, and restores these objects when they are deleted."""

    def __init__(self, store: Store, writer: Writer, ca_pem: bytes) -> None:
        self._store = store
        self._writer = writer
        self._ca_pem = ca_pem

    async def run(self) -> None:
        """Work until cancelled."""
        watched = (kinds.NAMESPACES, kinds.SERVICE_ACCOUNTS, kinds.CONFIG_MAPS)
        collections = [self._store.collection(kind.group, kind.resource) for kind in watched]
        cursors = [collection.cursor(self._store.revision) for collection in collections]
        while True:
            changed = self._store.changed
            changes = [change for cursor in cursors for change in cursor.take()]
            for change in changes:
                namespace = text(change.item.value, "metadata", "namespace")
                if namespace and change.type == "DELETED":
                    furnish(self._writer, namespace, self._ca_pem)
                elif not namespace and change.type == "ADDED":
                    furnish(self._writer, text(change.item.value, "metadata", "name"), self._ca_pem)
            if not changes:
                await changed.wait()


def _node_labels() -> Object:
    return {
        "kubernetes.io/hostname": NODE,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": _architecture(),
        "node-role.kubernetes.io/control-plane": "",
    }


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _node_status() -> Object:
    amounts: Object = {"cpu": str(os.cpu_count() or 1), "memory": "8Gi", "pods": "110"}
    version = text(SERVER_VERSION, "gitVersion")
    return {
        "capacity": amounts,
        "allocatable": {**amounts},
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "lastHeartbeatTime": now(),
                "lastTransitionTime": now(),
                "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
            }
        ],
        "addresses": [{"type": "InternalIP", "address": ADDRESS}, {"type": "Hostname", "address": NODE}],
        "nodeInfo": {
            "machineID": "sandbox",
            "systemUUID": "sandbox",
            "bootID": "sandbox",
            "kernelVersion": platform.release(),
            "osImage": "this machine",
            "containerRuntimeVersion": "sandbox://1",
            "kubeletVersion": version,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": _architecture(),
        },
    }


def _api_service(port: int) -> Object:
    return {
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": "10.96.0.1",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    }


def _registration(group: str) -> Object:
    """Return the APIService of a group; only an aggregated one names a service."""
    spec: Object = {"group": group, "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15}
    if group in kinds.AGGREGATED:
        spec["service"] = {"namespace": "kube-system", "name": group.partition(".")[0], "port": 443}
    return {"metadata": {"name": f"v1.{group}"}, "spec": spec}


def _rules(resources: dict[str, list[str]], verbs: list[str]) -> list[Json]:
    return [
        {"apiGroups": [group], "resources": [*names], "verbs": [*verbs]} for group, names in resources.items()
    ]


def _rule(verbs: list[str], group: str, *resources: str) -> Json:
    return {"apiGroups": [group], "resources": [*resources], "verbs": [*verbs]}


def _paths(*paths: str) -> Json:
    return {"nonResourceURLs": [*paths], "verbs": ["get"]}


def _roles() -> list[tuple[Kind, str, Object]]:
    """Return the relevant ones of the roles and bindings that a real server creates at its first start."""
    view = _rules(_VIEWED, _READ)
    secrets = _rule(_READ, "", "secrets", "pods/attach", "pods/exec", "pods/portforward")
    streams = _rule(
        ["create", "delete", "deletecollection", "patch", "update"], "", "pods/attach", "pods/exec"
    )
    edit = [
        *view,
        secrets,
        streams,
        _rule(["create"], "", "pods/portforward", "pods/eviction", "serviceaccounts/token"),
        *_rules(_EDITED, _WRITE),
    ]
    admin = [*edit, _rule([*_READ, *_WRITE], kinds.RBAC, "roles", "rolebindings")]
    everything: list[Json] = [_rule(["*"], "*", "*"), {"nonResourceURLs": ["*"], "verbs": ["*"]}]
    discovery = _paths(
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    )
    roles: dict[str, list[Json]] = {
        "cluster-admin": everything,
        "admin": admin,
        "edit": edit,
        "view": view,
        "system:basic-user": [
            _rule(["create"], kinds.AUTHORIZATION, "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
            _rule(["create"], kinds.AUTHENTICATION, "selfsubjectreviews"),
        ],
        "system:discovery": [discovery],
        "system:public-info-viewer": [_paths("/healthz", "/livez", "/readyz", "/version", "/version/")],
    }
    bound = {
        "cluster-admin": [MASTERS],
        "system:basic-user": [AUTHENTICATED],
        "system:discovery": [AUTHENTICATED],
        "system:public-info-viewer": [AUTHENTICATED],
    }
    made: list[tuple[Kind, str, Object]] = [
        (kinds.CLUSTER_ROLES, name, {"rules": rules}) for name, rules in roles.items()
    ]
    made += [(kinds.CLUSTER_ROLE_BINDINGS, name, _binding(name, groups)) for name, groups in bound.items()]
    return made


def _binding(role: str, groups: list[str]) -> Object:
    return {
        "roleRef": {"apiGroup": kinds.RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "Group", "name": group} for group in groups],
    }
