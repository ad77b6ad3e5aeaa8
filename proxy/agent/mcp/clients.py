"""The MCP servers for Kubernetes that Hawse is tested with, and the clients that start them.

A client reads a JSON file with an object of servers. The entry of a server names the program that speaks MCP
on its standard input and output. That program is `hawse connect`, which runs the server, so the server needs
no change and gets no credential that outlives it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import attrs

SERVERS: Mapping[str, str] = {
    "kubernetes-mcp-server": "0.0.67",
    "mcp-server-kubernetes": "4.1.7",
}
"""The names in npm's registry, and the versions that the tests run."""


@attrs.frozen
class Client:
    """A program that starts MCP servers."""

    name: str
    title: str
    section: str
    """The key of the object with the servers."""
    folder: Sequence[str]
    """The folder of the file, below `base`."""
    file: str
    project: bool
    """The file is in the working folder, and people share it there; otherwise it is in the home folder."""
    typed: bool = True
    """An entry names its transport."""

    def path(self, environment: Mapping[str, str], working_folder: str) -> str:
        """Return the path of its file."""
        base = working_folder if self.project else _home(environment)
        return os.path.join(base, *self.folder, self.file)


def _home(environment: Mapping[str, str]) -> str:
    return environment.get("HOME") or os.path.expanduser("~")


_APPLICATIONS = ["Library", "Application Support"] if sys.platform == "darwin" else [".config"]

CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        Client("claude-code", "Claude Code", "mcpServers", [], ".mcp.json", project=True),
        Client(
            "claude-desktop",
            "Claude Desktop",
            "mcpServers",
            [*_APPLICATIONS, "Claude"],
            "claude_desktop_config.json",
            project=False,
            typed=False,
        ),
        Client("cursor", "Cursor", "mcpServers", [".cursor"], "mcp.json", project=False),
        Client("vscode", "VS Code", "servers", [".vscode"], "mcp.json", project=True),
    )
}


def entry(
    client: Client, server: str, *, command: str, clusters: Sequence[str] = (), reason: str = ""
) -> dict[str, object]:
    """Return the entry of a server of SERVERS. `command` is the program `hawse`."""
    arguments = ["connect", *clusters, "--", "npx", "-y", f"{server}@{SERVERS[server]}"]
    return {
        **({"type": "stdio"} if client.typed else {}),
        "command": command,
        "args": arguments,
        **({"env": {"HAWSE_REASON": reason}} if reason else {}),
    }
