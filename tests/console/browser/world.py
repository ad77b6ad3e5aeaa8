"""A hub with its console, a relay and a cluster, as processes; and people who sign in to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import attrs

from sandbox.demo.processes import free_port
from tests.system.raw import RawClient
from tests.system.world import World, running_world

# One agent makes a thousand calls a second here, as a hundred might.
SETTINGS = """
[limits]
requests_per_second = 0
[console]
listen = "127.0.0.1:{port}"
"""
# The policy `quiet` denies this to every agent.
DENIED_PATH = "/api/v1/namespaces/{namespace}/secrets"
POLICY = """\
apiVersion: hawse.dev/v1
kind: Policy
metadata: {name: quiet, contact: "#platform"}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: secrets, effect: deny, verbs: [read], resources: [secrets], reason: secrets stay in the vault}
"""


@attrs.frozen
class ConsoleWorld:
    """The processes, and where the console is."""

    world: World
    origin: str

    @property
    def client(self) -> RawClient:
        """The agent's connection to the hub, in bytes of one's own."""
        return RawClient(self.world, "tunnel")


@contextlib.contextmanager
def running_console(folder: Path) -> Iterator[ConsoleWorld]:
    """Bring a world with a console up in `folder`, and take it down again."""
    port = free_port()
    with running_world(folder, hub_settings=SETTINGS.format(port=port)) as world:
        (folder / "quiet.yaml").write_text(POLICY)
        world.admin("policy", "apply", str(folder / "quiet.yaml"))
        yield ConsoleWorld(world, f"http://127.0.0.1:{port}")
