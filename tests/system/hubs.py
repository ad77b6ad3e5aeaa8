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
from contextlib import suppress
from pathlib import Path

import attrs

from proxy.cli.admin.api.client import AdminClient, Reach
from sandbox.balancer.backends import Policy
from sandbox.balancer.control import BalancerControl
from sandbox.balancer.starting import start_balancer
from sandbox.certificates import issue
from sandbox.connections import client_ports
from sandbox.demo.processes import Daemon, Daemons, free_port
from tests.system.world import AGENT, DEADLINE_S, ORG, TEAM, World, login, prepare_cluster

CLUSTER = "tunnel"
RELAYS = ("relay-0", "relay-1")
# Every test waits for the balancer to notice something.
CHECK_S = 0.2
POLL_S = 0.05


@attrs.define(eq=False)
class HubProcess:
    """One hub of several: its folder, its ports, and the process that runs on them now."""

    name: str
    folder: Path
    """Its data folder, whose id is the hub's over restarts."""
    port: int
    admin_port: int
    peer_port: int
    config: Path
    daemon: Daemon | None = None
    starts: int = 0

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.process.pid

    @property
    def running(self) -> bool:
        return self.daemon is not None and self.daemon.process.poll() is None

    @property
    def administration(self) -> AdminClient:
        return Reach(None, self.folder).client()

    @property
    def log(self) -> str:
        """What the process that runs now, or has run last, has logged."""
        assert self.daemon is not None
        return self.daemon.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        assert self.daemon is not None
        self.daemon.process.send_signal(number)

    def wait(self, within_s: float = DEADLINE_S) -> int:
        """Wait for its end, and return the exit code."""
        assert self.daemon is not None
        return self.daemon.process.wait(within_s)


@attrs.define(eq=False, kw_only=True)
class HubsWorld(World):
    """A World with several hubs; the agent, `kubectl` and RawClient reach them by the balancer."""

    members: list[HubProcess]
    balancer: BalancerControl

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def operator(self) -> dict[str, str]:
        return {"HAWSE_HUB_CONFIG": str(self.one_running().config)}

    @property
    def administration(self) -> AdminClient:
        return self.one_running().administration

    def one_running(self) -> HubProcess:
        """The first hub that runs: where an operator would be."""
        return next(member for member in self.members if member.running)

    # --- hubs ---

    def launch(self, member: HubProcess, *, argv: tuple[str, ...] = ("hawse",)) -> None:
        """Start a hub without waiting until it is ready; each start has a log of its own."""
        member.starts += 1
        command = [*argv, "hub", "--config", str(member.config), *self.flags]
        member.daemon = self.daemons.start(f"{member.name}-{member.starts}", command)

    def start(self, member: HubProcess) -> None:
        self.launch(member)
        self.wait_ready(member)

    def wait_ready(self, member: HubProcess) -> None:
        assert member.daemon is not None
        member.daemon.wait_for("hub is ready")
        self.until(lambda: member.port in self.balancer.in_service(), f"{member.name} is in service")

    def kill(self, member: HubProcess) -> None:
        member.signal(signal.SIGKILL)
        member.wait()

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
                rows = member.administration.get("relays")["relays"]
                assert isinstance(rows, list)
                found[member.name] = [str(row["instance"]) for row in rows if row["connected"]]
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
    database_url: str,
    *,
    hubs: int = 3,
    relays: tuple[str, ...] = RELAYS,
    policy: Policy = Policy.ROUND_ROBIN,
    settings: str = "",
    peering: bool = True,
    relay_kubeconfig: Path | None = None,
    relay_environment: Mapping[str, str] | None = None,
    flags: tuple[str, ...] = (),
) -> Iterator[HubsWorld]:
    """Bring hubs, balancer, relays and the sandbox up, and take them down again.

    `settings` are more sections of each hub's configuration. With `relay_kubeconfig` another API server
    takes the place of the sandbox. The hubs are killed at the end, since an orderly stop takes its time.
    """
    with Daemons(folder) as daemons, contextlib.ExitStack() as stack:
        sandbox = None
        if relay_kubeconfig is None:
            argv = [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
            sandbox = daemons.start("sandbox", argv)
        world = make_hubs(folder, daemons, database_url, hubs, policy, settings, peering=peering)
        world.relay_kubeconfig = relay_kubeconfig or folder / "cluster" / "relay.kubeconfig"
        world.relay_environment = {"HAWSE_RELAY_HUB_CA": str(world.ca), **(relay_environment or {})}
        world.flags, world.sandbox = flags, sandbox
        stack.callback(kill_hubs, world)
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


def make_hubs(
    folder: Path,
    daemons: Daemons,
    database_url: str,
    hubs: int,
    policy: Policy = Policy.ROUND_ROBIN,
    settings: str = "",
    *,
    peering: bool = True,
) -> HubsWorld:
    """Write the files of all hubs, and start the balancer in front of them; none of them runs yet."""
    (folder / "agent").mkdir()
    ca, certificate, key = issue("127.0.0.1", "hub").write(folder)
    port = free_port()
    members = []
    for number in range(1, hubs + 1):
        ports = (free_port(), free_port(), free_port())
        name = f"hub-{number}"
        member = HubProcess(name, folder / name, *ports, folder / f"{name}.toml")
        peer = f'[peer]\nlisten = "127.0.0.1:{ports[2]}"\naddress = "127.0.0.1:{ports[2]}"\n'
        member.config.write_text(
            f'org = "{ORG}"\npublic_url = "https://127.0.0.1:{port}"\nlisten = "127.0.0.1:{ports[0]}"\n'
            f'data_dir = "{member.folder}"\n'
            f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
            f'[admin]\nlisten = "127.0.0.1:{ports[1]}"\n'
            f'[database]\nurl = "{database_url}"\nseal_file = "{folder / "seal.key"}"\n'
            f"{peer if peering else ''}{settings}"
        )
        members.append(member)
    control, _ = start_balancer(
        daemons, port, [member.port for member in members], ca, policy=policy, check_s=CHECK_S
    )
    return HubsWorld(folder, daemons, port, 0, 0, folder, members=members, balancer=control)


def enrol(world: HubsWorld) -> None:
    """Make a team, the cluster and an agent."""
    world.admin("team", "add", TEAM)
    world.admin("cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(world.folder / "relay-tunnel"))
    agent = json.loads(world.admin("agent", "add", AGENT, "--team", TEAM, "--owner", "tests", "--json"))
    world.api_key = agent["api_key"]


def kill_hubs(world: HubsWorld) -> None:
    for member in world.members:
        if member.daemon is not None:
            with suppress(ProcessLookupError):
                # One that is stopped ends too.
                member.daemon.process.kill()
