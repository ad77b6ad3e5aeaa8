"""What the demo makes in the cluster, as its administrator, and takes away again.

The same for the sandbox and for a real cluster: a namespace to work in with a pod, the agent's own RBAC,
the relay's service account with the ClusterRole that `hawse admin cluster rbac` prints, and a token for it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import yaml

from sandbox.demo.processes import DemoError

NAMESPACE = "hawse-demo"
RELAY_NAMESPACE = "hawse"
RELAY_SERVICE_ACCOUNT = "hawse-relay"
POD = "workbench"
# Has sh, tar and python3; in the sandbox an image is only a name.
IMAGE = "python:3.13-alpine"
# A pull of the image on a real cluster is what takes the time.
POD_READY_DEADLINE = "180s"


@attrs.frozen
class Administrator:
    """kubectl with the cluster administrator's kubeconfig: no part of Hawse is in its way."""

    kubeconfig: Path

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl and return its stdout; raises DemoError with kubectl's own words."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *args], input=stdin, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise DemoError(f"kubectl {' '.join(args)} as the administrator: {done.stderr.strip()}")
        return done.stdout

    def relay_kubeconfig(self) -> str:
        """A kubeconfig for the relay: this cluster's address and CA, and a fresh service-account token."""
        view = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        token = self.kubectl(
            "create", "token", RELAY_SERVICE_ACCOUNT, f"--namespace={RELAY_NAMESPACE}", "--duration=12h"
        ).strip()
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "cluster", "cluster": view["clusters"][0]["cluster"]}],
                "users": [{"name": "relay", "user": {"token": token}}],
                "contexts": [{"name": "relay", "context": {"cluster": "cluster", "user": "relay"}}],
                "current-context": "relay",
            },
            sort_keys=False,
        )


def manifests(agent_user: str, agent_group: str, pod_port: int) -> str:
    """The demo's objects as YAML: what the agent may do, and the pod it works on."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "demo-agent", "namespace": NAMESPACE},
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["pods", "pods/log", "configmaps", "services"],
                "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
            },
            {
                "apiGroups": [""],
                "resources": ["pods/exec", "pods/attach", "pods/portforward"],
                "verbs": ["get", "create"],
            },
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "demo-agent", "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "demo-agent"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": agent_user},
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": agent_group},
        ],
    }
    # Says a line at once and then serves its folder, so that one pod is enough for every step.
    command = f"echo workbench is up; exec python3 -m http.server {pod_port} --bind 127.0.0.1"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": NAMESPACE, "labels": {"app": POD}},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": IMAGE,
                    "workingDir": "/srv",
                    "command": ["sh", "-c", command],
                    "ports": [{"containerPort": pod_port}],
                }
            ],
            "terminationGracePeriodSeconds": 1,
        },
    }
    return yaml.safe_dump_all([role, binding, pod], sort_keys=False)


@contextlib.contextmanager
def prepared(
    administrator: Administrator, *, agent_user: str, agent_group: str, rbac: str, pod_port: int
) -> Iterator[None]:
    """Make everything, wait for the pod; on leaving, remove it again.

    Refuses a cluster where one of the two namespaces stands already: it is somebody's.
    """
    existing = administrator.kubectl("get", "namespaces", "-o", "name").split()
    for namespace in (NAMESPACE, RELAY_NAMESPACE):
        if f"namespace/{namespace}" in existing:
            raise DemoError(
                f"the cluster already has a namespace {namespace}: the demo would remove it at its end. "
                f"Use a disposable cluster, or delete it first: kubectl delete namespace {namespace}"
            )
    try:
        administrator.kubectl("create", "namespace", NAMESPACE)
        administrator.kubectl("create", "namespace", RELAY_NAMESPACE)
        administrator.kubectl(
            "create", "serviceaccount", RELAY_SERVICE_ACCOUNT, f"--namespace={RELAY_NAMESPACE}"
        )
        administrator.kubectl("apply", "-f", "-", stdin=rbac)
        administrator.kubectl("apply", "-f", "-", stdin=manifests(agent_user, agent_group, pod_port))
        administrator.kubectl(
            "wait",
            "--for=condition=Ready",
            f"pod/{POD}",
            f"--namespace={NAMESPACE}",
            f"--timeout={POD_READY_DEADLINE}",
        )
        yield
    finally:
        administrator.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=rbac)
        administrator.kubectl(
            "delete", "namespace", NAMESPACE, RELAY_NAMESPACE, "--ignore-not-found", "--wait=false"
        )
