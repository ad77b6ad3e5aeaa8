"""A world whose policy asks a person about some calls, and that person."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from proxy.cli.admin.api.client import AdminClient
from tests.system.waiting import wait_until
from tests.system.world import GROUP, NAMESPACE, USER, Result, World, run

ROOT = Path(__file__).parents[3]
PERSON = "ann@example.com"
DEADLINE_S = 30.0
# Objects named `held-…` are asked about while the call waits, and those named `later-…` when it has ended.
HELD, LATER = "held", "later"
POLICY = """
kind: Policy
metadata: {name: approvals}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: widgets, effect: ask, verbs: [patch], resources: [widgets], reason: changes are looked at,
       ask: {approvers: ["ann@example.com"], wait: 0s, dryRun: ["stable.example.com"]}}
    - {id: held, effect: ask, verbs: [update, patch, delete], resourceNames: ["held-*"],
       reason: changes are looked at, ask: {approvers: ["ann@example.com"], wait: 45s}}
    - {id: later, effect: ask, verbs: [update, patch, delete], resourceNames: ["later-*"],
       reason: changes are looked at, ask: {approvers: ["ann@example.com"], wait: 1s}}
    - {id: collections, effect: ask, verbs: [deletecollection], resources: [configmaps],
       reason: deletions are looked at, ask: {approvers: ["ann@example.com"], wait: 0s}}
    - {id: evictions, effect: ask, verbs: [create], resources: [pods/eviction],
       reason: evictions are looked at, ask: {approvers: ["ann@example.com"], wait: 45s}}
"""

# What the agent may do in the cluster, beside its namespace.
ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "approvals"},
    "rules": [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
        {"apiGroups": ["aggregated.example.com", "stable.example.com"], "resources": ["*"], "verbs": ["*"]},
    ],
}
BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "approvals"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "approvals"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP}],
}

Row = Mapping[str, Any]


@attrs.define(eq=False)
class Scene:
    """The world, and the approver."""

    world: World
    approver: AdminClient
    numbers: int = 0

    @classmethod
    def of(cls, world: World) -> Scene:
        """Apply the policy, permit the agent what the tests need, and make the approver's token."""
        file = world.folder / "approvals.yaml"
        file.write_text(POLICY)
        world.admin("policy", "apply", str(file))
        scene = cls(world, world.administration)
        scene.create(ROLE, BINDING)
        options = ("--role", "approver", "--person", PERSON, "--json")
        made = json.loads(world.admin("token", "add", "ann", *options))
        scene.approver = attrs.evolve(world.administration, token=made["token"])
        return scene

    def close(self) -> None:
        """Take back what `of` has done."""
        self.world.admin("policy", "remove", "approvals")
        self.world.admin("token", "remove", "ann")
        for kind in ("clusterrolebinding", "clusterrole"):
            self.world.administrator("delete", kind, "approvals")

    def create(self, *documents: Mapping[str, object]) -> None:
        """Create objects as the cluster's administrator."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        self.world.administrator("create", "--filename=-", stdin=text.encode())

    def value(self, kind: str, name: str, path: str) -> str:
        """Return the value at a JSONPath of an object in the namespace."""
        where = (kind, name, f"--namespace={NAMESPACE}", "-o", f"jsonpath={path}")
        return self.world.administrator("get", *where).decode()

    def kubectl(self, *args: str, document: Mapping[str, object] | None = None) -> Result:
        """Run the agent's kubectl."""
        stdin = json.dumps(document).encode() if document is not None else None
        return self.world.kubectl("tunnel", *args, stdin=stdin)

    @cached_property
    def plain_environment(self) -> Mapping[str, str]:
        """Return the agent's environment, with a kubeconfig whose only context leads through Hawse."""
        file = self.world.folder / "kubeconfig"
        # For client-node, which does not tell a plugin what cluster its token is for.
        command = ("kubeconfig", "tunnel", "--user-per-cluster", "--output", str(file))
        self.world.hawse(*command, environment=self.world.agent)
        return {**self.world.agent, "KUBECONFIG": str(file), "PYTHONPATH": str(ROOT)}

    def named(self, kind: str) -> str:
        """Return a new name that the rule HELD or LATER asks about."""
        self.numbers += 1
        return f"{kind}-{self.numbers}"

    def make(self, name: str) -> None:
        """Make a config map."""
        self.world.administrator("create", "configmap", name, f"--namespace={NAMESPACE}")

    def program(self, *argv: str) -> Program:
        """Return a program of the agent."""
        return Program(argv, self.plain_environment, self.make)

    def is_there(self, name: str, kind: str = "configmap") -> bool:
        got = self.world.administrator(
            "get", kind, name, f"--namespace={NAMESPACE}", "--ignore-not-found", "-o", "name"
        )
        return bool(got)

    def requests(self, part: str, **chosen: str) -> list[Row]:
        """Return the requests about calls whose line holds `part`, the newest first."""
        rows = self.approver.get("requests", **chosen)["requests"]
        assert isinstance(rows, list)
        return [row for row in rows if isinstance(row, dict) and part in str(row["what"])]

    def waiting(self, part: str) -> Row:
        """Wait for the request about such a call."""
        wait_until(lambda: bool(self.requests(part, state="pending")), DEADLINE_S)
        [row] = self.requests(part, state="pending")
        return row

    def approve(self, row: Row) -> None:
        self.approver.post("requests", str(row["id"]), "approve", body={"shown": row["shown"]})

    def shown(self, row: Row) -> Row:
        """Return all that the approver sees of a request."""
        return self.approver.get("requests", str(row["id"]))

    def ended(self, row: Row) -> str:
        """Return the state of a request that is no longer open."""
        wait_until(lambda: self.shown(row)["state"] not in _OPEN, DEADLINE_S)
        return str(self.shown(row)["state"])

    def age(self, row: Row) -> None:
        """Make the use of a request this old that the same call asks again."""
        self.ended(row)
        with closing(sqlite3.connect(self.world.folder / "hub" / "hub.db")) as store, store:
            store.execute("UPDATE requests SET ended_at = ended_at - 11 WHERE id = ?", [row["id"]])

    def writes(self, part: str) -> list[int]:
        """Return the statuses of the agent's writes to a target that holds `part`, without dry runs."""
        return [
            int(event["responseStatus"]["code"])
            for event in self.world.cluster_audit()
            if event["verb"] not in ("get", "list", "watch")
            and part in str(event["requestURI"])
            and "dryRun" not in str(event["requestURI"])
            and USER in str(event.get("impersonatedUser"))
            and event["stage"] == "ResponseComplete"
        ]


_OPEN = ("pending", "approved", "using")


@attrs.frozen
class Program:
    """A client: its command line, and its environment."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    make: Callable[[str], None]
    """Makes the config map that the client is to delete."""

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.argv, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.environment},
        )

    def run(self, *args: str) -> Result:
        return run([*self.argv, *args], self.environment, deadline_s=DEADLINE_S)
