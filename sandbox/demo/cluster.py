"""The demo's objects in the cluster, created as its administrator and removed at the end.

They are the same in the sandbox and in a real cluster: a working namespace with a pod, the agent's own RBAC,
the relay's service account with the ClusterRole that `hawse admin cluster rbac` prints, and a token for it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import yaml

from sandbox.demo.processes import DemoError, undisturbed

NAMESPACE = "hawse-demo"
RELAY_NAMESPACE = "hawse"
RELAY_SERVICE_ACCOUNT = "hawse-relay"
POD = "workbench"
# Has sh, tar and python3; in the sandbox an image is only a name.
IMAGE = "python:3.13-alpine"
# On a real cluster, most of this time is for pulling the image.
POD_READY_S = 180
# After this time, a kubelet has failed two or three pulls of a broken image. Other waiting pods may continue.
POD_PATIENCE_S = 20
POD_LOOK_S = 5
# Reasons for which a container normally waits.
_ON_ITS_WAY = frozenset({"", "ContainerCreating", "PodInitializing"})
# Pods have a second to end; finalizers and the namespace controller take the rest.
REMOVAL_TIMEOUT = "120s"
# An unreachable server must not block the demo.
REQUEST_TIMEOUT = "15s"


@attrs.frozen
class Administrator:
    """kubectl with the cluster administrator's kubeconfig, which bypasses Hawse."""

    kubeconfig: Path

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl and return its stdout; raises DemoError with kubectl's message."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *args], input=stdin, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise DemoError(f"kubectl {' '.join(args)} as the administrator: {last_line(done.stderr)}")
        return done.stdout

    def check(self, *namespaces: str) -> None:
        """Raise DemoError unless the kubeconfig works and none of the namespaces exists.

        An existing namespace has another owner, and would be removed at the end.
        """
        try:
            # One request; any other command would first try discovery five times.
            self.kubectl("get", "--raw", "/version", f"--request-timeout={REQUEST_TIMEOUT}")
            existing = self.kubectl("get", "namespaces", "-o", "name").split()
        except DemoError as error:
            raise DemoError(f"{self.kubeconfig} does not work: {error}") from None
        for namespace in namespaces:
            if f"namespace/{namespace}" in existing:
                raise DemoError(
                    f"the cluster already has a namespace {namespace}, which would be removed at the end. "
                    f"Use a disposable cluster, or first: kubectl delete namespace {namespace}"
                )

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
    """The demo's objects as YAML: the agent's permissions, and the pod that it works on."""
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
                "apiGroups": ["apps"],
                "resources": ["deployments", "replicasets"],
                "verbs": ["get", "list", "watch", "create", "delete"],
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
    # Prints a line at once and then serves its folder, so one pod is enough for every step.
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
def prepared(administrator: Administrator, *, namespace: str, rbac: str, objects: str) -> Iterator[None]:
    """Create `namespace` with `objects` and POD in it, and the relay's account with the roles of `rbac`.

    On leaving, for any reason, all of it is removed. Refuses a cluster that already has any of it.
    """
    administrator.check(namespace, RELAY_NAMESPACE)
    if found := administrator.kubectl("get", "--ignore-not-found", "-o", "name", "-f", "-", stdin=rbac):
        raise DemoError(f"the cluster already has {', '.join(found.split())}: is Hawse in use there?")
    try:
        for name in (namespace, RELAY_NAMESPACE):
            administrator.kubectl("create", "namespace", name)
        administrator.kubectl(
            "create", "serviceaccount", RELAY_SERVICE_ACCOUNT, f"--namespace={RELAY_NAMESPACE}"
        )
        administrator.kubectl("apply", "-f", "-", stdin=rbac)
        # A controller creates it a moment after the namespace, and no pod is admitted before.
        administrator.kubectl(
            *("wait", "--for=create", "serviceaccount/default", f"--namespace={namespace}", "--timeout=30s")
        )
        administrator.kubectl("apply", "-f", "-", stdin=objects)
        wait_until_ready(administrator, namespace, POD)
        yield
    finally:
        with undisturbed():
            remove(administrator, namespace, rbac)


def wait_until_ready(administrator: Administrator, namespace: str, pod: str) -> None:
    """Wait for a pod; raises DemoError with the pod's own reason if it cannot start, or takes too long."""
    began_s = time.monotonic()
    wait_s = POD_PATIENCE_S
    while True:
        try:
            administrator.kubectl(
                *("wait", "--for=condition=Ready", f"pod/{pod}", f"--namespace={namespace}"),
                f"--timeout={wait_s}s",
            )
            return
        except DemoError as error:
            if "timed out" not in str(error):
                raise
        status = json.loads(
            administrator.kubectl("get", "pod", pod, f"--namespace={namespace}", "-o", "json")
        )["status"]
        if stuck := why_stuck(status):
            raise DemoError(f"pod {pod} in namespace {namespace} does not start: {stuck}")
        if time.monotonic() - began_s >= POD_READY_S:
            waits = why_pending(status) or "its status has no reason"
            raise DemoError(f"pod {pod} in namespace {namespace} is not ready after {POD_READY_S} s: {waits}")
        wait_s = POD_LOOK_S


def why_stuck(status: dict[str, Any]) -> str:
    """Why a pod's container does not start, in the kubelet's words; empty while it may still start."""
    containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    for container in containers:
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        if reason in _ON_ITS_WAY:
            continue
        message = f"{reason}: {waiting.get('message', 'the kubelet gives no message')}"
        if "Image" in reason:
            message += "; load the image into the nodes, or let them reach its registry"
        return message
    return ""


def why_pending(status: dict[str, Any]) -> str:
    """The message of the pod's first unmet condition."""
    for condition in status.get("conditions", []):
        if condition.get("status") != "True":
            return f"{condition.get('type')}: {condition.get('message') or condition.get('reason')}"
    return ""


def remove(administrator: Administrator, namespace: str, rbac: str) -> None:
    """Remove the objects of `prepared`, as far as possible; raises DemoError with what must be removed by
    hand.
    """
    at_once = ("--ignore-not-found", "--wait=false", f"--request-timeout={REQUEST_TIMEOUT}")
    failures = []
    try:
        administrator.kubectl("delete", *at_once, "-f", "-", stdin=rbac)
    except DemoError as error:
        failures.append(str(error))
    try:
        administrator.kubectl("delete", "namespace", *at_once, namespace, RELAY_NAMESPACE)
        gone = [f"namespace/{name}" for name in (namespace, RELAY_NAMESPACE)]
        administrator.kubectl("wait", "--for=delete", *gone, f"--timeout={REMOVAL_TIMEOUT}")
    except DemoError as error:
        failures.append(str(error))
    if failures:
        raise DemoError(
            f"not everything was removed ({'; '.join(failures)}). By hand: kubectl delete namespace "
            f"{namespace} {RELAY_NAMESPACE}; kubectl delete clusterrole,clusterrolebinding "
            "-l app.kubernetes.io/managed-by=hawse"
        )


def last_line(text: str) -> str:
    """The last non-empty line: kubectl repeats itself above it."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
