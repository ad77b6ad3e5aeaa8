"""Several hubs on one PostgreSQL behind a TCP load balancer, two relays of one cluster, and an agent.

    agent ──▶ balancer ──▶ hub-1, hub-2, hub-3 ◀── balancer ◀── relay-0, relay-1 ──▶ API server
                               └── links ──┘

All hubs show one certificate, for the balancer's name. The cluster is `tunnel`; there is none in direct mode.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from proxy.cli.admin.api.client import AdminClient, Reach
from sandbox.balancer.backends import Policy
from sandbox.balancer.control import BalancerControl
from sandbox.connections import client_ports
from sandbox.demo.hubs import HubProcess, Hubs, make_hubs, own_address
from sandbox.demo.processes import Daemons
from tests.system.world import AGENT, DEADLINE_S, ORG, TEAM, World, login, prepare_cluster

CLUSTER = "tunnel"
RELAYS = ("relay-0", "relay-1")
# Every test waits for the balancer to notice something.
CHECK_S = 0.2
POLL_S = 0.05


def administration_of(member: HubProcess) -> AdminClient:
    """The admin API of this hub."""
    return Reach(None, member.folder).client()


def rows_of(member: HubProcess, what: str, **chosen: str) -> list[dict[str, Any]]:
    """What this hub would list: `hubs`, `relays` or `sessions`."""
    rows = administration_of(member).get(what, **chosen)[what]
    assert isinstance(rows, list)
    return rows  # type: ignore[return-value]


def hub_id(member: HubProcess) -> str:
    """The id by which other hubs know this one."""
    [row] = [row for row in rows_of(member, "hubs") if row["this"]]
    return str(row["hub"])


def relays_at(member: HubProcess) -> list[str]:
    """The relay instances that have a tunnel to this hub; those at other hubs are listed too."""
    here, rows = hub_id(member), rows_of(member, "relays")
    return [str(row["instance"]) for row in rows if row["connected"] and row["hub"] == here]


@attrs.define(eq=False, kw_only=True)
class HubsWorld(World):
    """A World with several hubs; the agent, `kubectl` and RawClient reach them by the balancer."""

    behind: Hubs

    @property
    def members(self) -> list[HubProcess]:
        return self.behind.all

    @property
    def balancer(self) -> BalancerControl:
        return self.behind.balancer

    @property
    def ca(self) -> Path:
        return self.behind.ca

    @property
    def operator(self) -> dict[str, str]:
        return {"HAWSE_HUB_CONFIG": str(self.one_running().config)}

    @property
    def administration(self) -> AdminClient:
        return administration_of(self.one_running())

    def one_running(self) -> HubProcess:
        """The first hub that runs: where an operator would be."""
        return next(member for member in self.members if member.running)

    # --- hubs ---

    def launch(self, member: HubProcess) -> None:
        """Start a hub without waiting until it is ready."""
        member.launch(self.daemons, *self.flags)

    def start(self, member: HubProcess) -> None:
        self.launch(member)
        self.wait_ready(member)

    def wait_ready(self, member: HubProcess) -> None:
        self.behind.wait_ready(member)

    def restart(self, member: HubProcess, within_s: float = 150.0) -> float:
        """Restart a hub as a supervisor does, and wait until it is in service; how long its end took."""
        began = time.monotonic()
        member.signal(signal.SIGTERM)
        assert member.wait(within_s) == 0, member.log[-2000:]
        ended_s = time.monotonic() - began
        self.start(member)
        return ended_s

    # --- relays ---

    def cut_relays(self, *instances: str) -> int:
        """Reset the TCP connections of relays at the balancer; how many there were."""
        cut = 0
        for name in instances or RELAYS:
            pid = self.relays[f"{CLUSTER}-{name}"].process.pid
            cut += sum(self.balancer.cut(port) for port in client_ports(pid, self.hub_port))
        return cut

    def tunnels(self) -> dict[str, list[str]]:
        """The connected relay instances of each running hub."""
        found = {}
        for member in self.members:
            if member.running:
                found[member.name] = relays_at(member)
        return found

    def wait_for_tunnels(self, count: int, deadline_s: float = DEADLINE_S) -> None:
        """Wait until the hubs together have so many tunnels, or more."""
        self.until(
            lambda: sum(len(names) for names in self.tunnels().values()) >= count,
            f"{count} tunnels",
            deadline_s,
        )

    def until(self, met: Callable[[], bool], what: str, within_s: float = DEADLINE_S) -> float:
        """Wait for something, and return how long that took."""
        began = time.monotonic()
        while not met():
            assert time.monotonic() - began < within_s, f"not within {within_s:.0f} s: {what}"
            time.sleep(POLL_S)
        return time.monotonic() - began


@contextlib.contextmanager
def running_hubs(
    folder: Path,
    database: str | Callable[[HubProcess], str],
    *,
    hubs: int = 3,
    relays: tuple[str, ...] = RELAYS,
    policy: Policy = Policy.ROUND_ROBIN,
    settings: str = "",
    console: bool = False,
    address_of: Callable[[HubProcess], str] = own_address,
    relay_kubeconfig: Path | None = None,
    relay_environment: Mapping[str, str] | None = None,
    flags: tuple[str, ...] = (),
) -> Iterator[HubsWorld]:
    """Bring hubs, balancer, relays and the sandbox up, and take them down again.

    `database` is the URL of the database, or returns that of each hub; `address_of` is where others dial a
    hub. `settings` are more sections of each hub's configuration. With `console`, each has one of its own.
    With `relay_kubeconfig`, another API server takes the place of the sandbox. The hubs are killed at the
    end, since an orderly stop takes its time.
    """
    with Daemons(folder) as daemons, contextlib.ExitStack() as stack:
        sandbox = None
        if relay_kubeconfig is None:
            argv = [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
            sandbox = daemons.start("sandbox", argv)
        (folder / "agent").mkdir()
        behind = make_hubs(
            folder,
            daemons,
            (lambda _: database) if isinstance(database, str) else database,
            org=ORG,
            hubs=hubs,
            policy=policy,
            check_s=CHECK_S,
            address_of=address_of,
            settings=settings,
            console=console,
        )
        for member in behind.all:
            stack.callback(member.kill)
        world = HubsWorld(
            folder=folder,
            daemons=daemons,
            hub_port=behind.port,
            admin_port=0,
            direct_port=0,
            relay_kubeconfig=relay_kubeconfig or folder / "cluster" / "relay.kubeconfig",
            flags=flags,
            relay_environment={"HAWSE_RELAY_HUB_CA": str(behind.ca), **(relay_environment or {})},
            sandbox=sandbox,
            behind=behind,
        )
        # The first one makes the tables.
        for number, member in enumerate(world.members):
            world.launch(member)
            if number == 0:
                world.wait_ready(member)
        enrol(world)
        if sandbox is not None:
            sandbox.wait_for("ready ")
            prepare_cluster(world)
        for member in world.members:
            world.wait_ready(member)
        for instance in relays:
            world.start_relay(CLUSTER, instance)
        login(world)
        world.wait_for_tunnels(len(relays))
        yield world


def enrol(world: HubsWorld) -> None:
    """Make a team, the cluster and an agent."""
    world.admin("team", "add", TEAM)
    world.admin("cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(world.folder / "relay-tunnel"))
    agent = json.loads(world.admin("agent", "add", AGENT, "--team", TEAM, "--owner", "tests", "--json"))
    world.api_key = agent["api_key"]
