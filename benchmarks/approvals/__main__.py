"""How long an asked call takes until its request is open: `python -m benchmarks.approvals [--agents 8]`.

Agents make calls that a rule asks about and that do not wait (`wait: 0s`). Each is another plan, so each has
a preview and opens a request. The time is from the call to its 403, which says that the request is pending.
It has the body, the plan, the preview's requests to the cluster, and the request's row. The API server is
the sandbox.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import Daemons, free_port, prepare_process, program
from benchmarks.systems.hawse import CLUSTER, TEAM, Installation

# An agent has 20 open requests at most.
ROUNDS_PER_AGENT = 5
NAMESPACE = "shop"
DEADLINE_S = 60.0
POLICY = """
kind: Policy
metadata: {name: approvals}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: all, effect: ask, verbs: [patch, delete], reason: looked at, ask: {approvers: [any], wait: 0s}}
    - {id: exec, effect: ask, verbs: [create], resources: [pods/exec], reason: looked at,
       ask: {approvers: [any], wait: 0s}}
"""
_WITHIN = f"/clusters/{CLUSTER}/api/v1/namespaces/{NAMESPACE}"
_WEB = f"/clusters/{CLUSTER}/apis/apps/v1/namespaces/{NAMESPACE}/deployments/web"
# By what they are: the method, the target and the body. `%d` is another one each time.
CALLS = {
    "patch of a ConfigMap": ("PATCH", f"{_WITHIN}/configmaps/notes?fieldManager=m%d", {"data": {"a": "b"}}),
    "scale of a Deployment": ("PATCH", f"{_WEB}?fieldManager=m%d", {"spec": {"replicas": 0}}),
    "delete of a Deployment": ("DELETE", f"{_WEB}?number=%d", None),
    "exec": ("POST", f"{_WITHIN}/pods/workbench/exec?command=true&number=%d", None),
}


def objects() -> list[dict[str, object]]:
    """What the agents' calls are about, and their rights."""
    where = {"namespace": NAMESPACE}
    pod = {"containers": [{"name": "main", "image": "busybox", "command": ["sleep", "3600"]}]}
    labels = {"app": "web"}
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hawse"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "relay", "namespace": "hawse"},
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "agents", **where},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": rbac, "kind": "Group", "name": f"acme/{TEAM}"}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes", **where}, "data": {"a": "a"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "workbench", **where}, "spec": pod},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", **where},
            "spec": {
                "replicas": 6,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
    ]


@contextmanager
def running(folder: Path, agents: int) -> Iterator[tuple[Installation, list[str]]]:
    """Run a sandbox, a hub with the policy, and a relay; with the API keys of so many agents."""
    hawse, kubectl = (program(name, "approvals", "make setup") for name in ("hawse", "kubectl"))
    cluster = folder / "cluster"
    with Daemons(folder) as daemons:
        sandbox = daemons.start("sandbox", [sys.executable, "-m", "sandbox", "--dir", str(cluster)], {})
        port = free_port()
        installation = Installation(folder, daemons, hawse, port, port, {})
        installation.start_hub()
        installation.run("admin", "team", "add", TEAM)
        relay = folder / "relay"
        installation.run("admin", "cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(relay))
        names = [f"agent-{number}" for number in range(agents)]
        options = ("--team", TEAM, "--owner", "bench", "--json")
        added = [installation.run("admin", "agent", "add", name, *options) for name in names]
        # It names the agents.
        rbac = installation.run(
            *("admin", "cluster", "rbac", CLUSTER, "--namespace", "hawse", "--service-account", "relay")
        )
        (folder / "policy.yaml").write_text(POLICY)
        installation.run("admin", "policy", "apply", str(folder / "policy.yaml"))
        sandbox.wait_for("ready ")
        administrator = [kubectl, f"--kubeconfig={cluster / 'admin.kubeconfig'}"]
        text = "\n---\n".join([*map(json.dumps, objects()), rbac])
        subprocess.run(
            [*administrator, "create", "-f", "-"], input=text.encode(), check=True, stdout=subprocess.DEVNULL
        )
        ready = ("--for=condition=Available", "deployment/web", f"--namespace={NAMESPACE}", "--timeout=60s")
        subprocess.run([*administrator, "wait", *ready], check=True, stdout=subprocess.DEVNULL)
        started = daemons.start(
            "relay",
            [hawse, "relay", "--config", str(relay / "relay.toml")],
            {"HAWSE_RELAY_KUBECONFIG": str(cluster / "relay.kubeconfig")},
        )
        installation.wait_for_tunnel(started)
        yield installation, [json.loads(agent)["api_key"] for agent in added]


def measure(installation: Installation, api_key: str) -> dict[str, list[float]]:
    """Return the milliseconds of one agent's calls, by what they are."""
    token = installation.token(api_key)
    context = ssl.create_default_context(cafile=str(installation.ca))
    connection = http.client.HTTPSConnection(
        "127.0.0.1", installation.port, timeout=DEADLINE_S, context=context
    )
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}
    found: dict[str, list[float]] = {what: [] for what in CALLS}
    for number in range(ROUNDS_PER_AGENT):
        for what, (method, target, body) in CALLS.items():
            data = None if body is None else json.dumps(body)
            began = time.perf_counter()
            connection.request(method, target % number, data, headers)
            answer = connection.getresponse()
            said = answer.read()
            found[what].append((time.perf_counter() - began) * 1000)
            assert answer.status == 403, said
            assert b"pending" in said, said
    connection.close()
    return found


def main() -> int:
    """Measure, and print a row for each kind of call; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=8)
    options = parser.parse_args()
    prepare_process()
    found: dict[str, list[float]] = {what: [] for what in CALLS}
    with (
        tempfile.TemporaryDirectory() as name,
        running(Path(name), options.agents) as (installation, api_keys),
    ):
        for api_key in api_keys:
            for what, times in measure(installation, api_key).items():
                found[what] += times
    found["all"] = [each for times in found.values() for each in times]
    print("| call | n | p50 | p95 | max |")
    print("|---|---:|---:|---:|---:|")
    for what, times in found.items():
        p95 = statistics.quantiles(times, n=20)[-1]
        middle = statistics.median(times)
        print(f"| {what} | {len(times)} | {middle:.0f} ms | {p95:.0f} ms | {max(times):.0f} ms |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
