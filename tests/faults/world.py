"""Hub, relays, agent and cluster as separate processes, with the fault proxy on every leg between them.

    agent ──agents──▶ hub ◀──tunnel── relay ──api──▶ API server

Each of the three is a link of one fault proxy. The hub's public URL is the tunnel's link, so that relays dial
it knowing nothing of it; the agent logs in at the other link. Hub and relays run as a user runs them, but
with a window through which a test can count what lives in them (see inside.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs

from sandbox.demo.processes import Daemon, Daemons, free_port
from tests.faults.control import TOP, FaultProxy, Link, open_proxy
from tests.faults.namespace import Site
from tests.system.load import resident_kib
from tests.system.raw import RawClient
from tests.system.world import AGENT, ORG, TEAM, World, login, prepare_cluster

CLUSTER = "tunnel"
# A cluster without an API server, for relays by hand.
BY_HAND = "by-hand"
DEADLINE_S = 30.0
POLL_S = 0.02
# Of a fault that stands in a log: the log is gone when somebody looks at the failure.
SHOWN_BYTES = 4000
# Any signed token of ours, whoever made it for whom.
JWT = re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}")

# One of each for a token, or the agent that it names.
_OF_TOKENS = (
    "auth.keys.PublicKey",
    "auth.tokens.AccessClaims",
    "proxy.hub.store.entities.Agent",
    "proxy.hub.store.entities.Cluster",
    "proxy.hub.authorize.events._Party",
)
# One is in the token's claims, and one is its agent's.
_PRINCIPAL = "auth.principal.Principal"

T = TypeVar("T")


@attrs.frozen
class Living:
    """What lives in a process at one moment."""

    tasks: int
    files: int
    resident_kib: int
    held_bytes: int
    """Counted memory of all tunnel sessions."""
    objects: Counter[str]
    """By class."""

    def grown(self, before: Living, slack: int = 0, *, tokens: int = 100) -> dict[str, int]:
        """What there is more of, by name, by more than `slack`, where so many tokens were shown meanwhile."""
        now, then = self.flat(), before.flat()
        # trio keeps scopes that ended before their deadline until it has a thousand of them.
        kept = dict.fromkeys(("trio.CancelScope", "trio._core._run.CancelReason"), 1000 + slack)
        # Who a token speaks for is remembered, and by what that was decided, of so many tokens that it takes
        # longer to forget the first.
        kept |= dict.fromkeys(_OF_TOKENS, tokens + slack)
        kept[_PRINCIPAL] = 2 * tokens + slack
        more = {name: now[name] - then[name] for name in now}
        return {name: count for name, count in more.items() if count > kept.get(name, slack)}

    def flat(self) -> Counter[str]:
        return self.objects + Counter(tasks=self.tasks, files=self.files)


@attrs.define(eq=False, kw_only=True)
class FaultWorld(World):
    """A World whose every leg is a link."""

    proxy: FaultProxy
    tunnel: Link
    """Relays → hub."""
    agents: Link
    """Agents → hub."""
    api: Link
    """Relays → API server."""
    hub_listen: int
    """The hub's own port, which nobody else connects to."""
    settings: str = ""
    """More of the hub's configuration."""
    site: Site | None = None
    """Where the relays are, if not on this machine: they know the hub by its address there."""
    _starts: Counter[str] = attrs.Factory(Counter)

    # --- starting ---

    def inside(
        self,
        name: str,
        argv: list[str],
        environment: Mapping[str, str],
        clock_s: float = 0.0,
        prefix: tuple[str, ...] = (),
    ) -> Daemon:
        """Start hawse with a window into it; each start has a log of its own."""
        self._starts[name] += 1
        unique = f"{name}-{self._starts[name]}"
        window = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH")])),
            "HAWSE_FAULTS_COUNTS": str(self.folder / f"{unique}.counts"),
            "HAWSE_FAULTS_CLOCK": str(self.folder / f"{unique}.clock"),
        }
        (self.folder / f"{unique}.clock").write_text(str(clock_s))
        return self.daemons.start(
            unique,
            [*prefix, sys.executable, "-m", "tests.faults.inside", *argv],
            {**window, **environment},
        )

    def start_hub(self) -> None:
        self.hub = self.inside("hub", ["hub", "--config", str(self.folder / "hub.toml"), *self.flags], {})
        self.hub.wait_for("hub is ready")

    def start_relay(
        self,
        way: str = CLUSTER,
        *,
        instance: str = "relay-0",
        clock_s: float = 0.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a relay instance of the cluster `way`, which is where its files are; it dials by itself."""
        relay = self.folder / f"relay-{way}"
        values = {
            "HAWSE_RELAY_KUBECONFIG": str(self.relay_kubeconfig),
            "HAWSE_RELAY_INSTANCE": instance,
            **self.relay_environment,
            **(environment or {}),
        }
        argv = ["relay", "--config", str(relay / "relay.toml"), *self.flags]
        prefix = self.site.prefix if self.site is not None else ()
        self.relays[instance] = self.inside(instance, argv, values, clock_s, prefix)

    def connect_relay(self, instance: str = "relay-0", **how: object) -> None:
        """Start a relay and wait until the hub has it."""
        self.start_relay(instance=instance, **how)  # type: ignore[arg-type]
        self.until(lambda: instance in self.connected(), "the relay is with the hub")

    def fresh_relay(self, instance: str = "relay-0") -> None:
        """End the relay, however it is, and have a new one: quicker than waiting for the next dial."""
        old = self.relays.pop(instance, None)
        if old is not None and old.process.poll() is None:
            old.process.kill()
            old.process.wait()
            # Or the new one were taken for it.
            self.until(lambda: instance not in self.connected(), "the hub has seen it go")
        self.connect_relay(instance)

    def heal(self) -> None:
        """Make all links ordinary again, and have the cluster connected."""
        for link in (self.tunnel, self.agents, self.api):
            link.heal()
        alive = {name for name, relay in self.relays.items() if relay.process.poll() is None}
        if "relay-0" not in alive or "relay-0" not in self.connected():
            self.fresh_relay()

    def set_clock(self, daemon: Daemon | None, ahead_s: float) -> None:
        """Set the wall clock of a hub or relay that runs."""
        assert daemon is not None
        clock = daemon.log.with_suffix(".clock")
        clock.with_suffix(".new").write_text(str(ahead_s))
        clock.with_suffix(".new").rename(clock)
        daemon.process.send_signal(signal.SIGUSR2)
        self.until(lambda: not clock.exists(), f"{daemon.name} has another clock", every_s=POLL_S)

    def shape_tunnel(self, *, delay_s: float, mbit: float | None = None, buffer_s: float = 0.0) -> None:
        """Give the tunnel a link of this shape (see Link.shape), and a new connection that knows no other."""
        self.heal()
        opened = self.tunnel.counts().opened
        self.tunnel.shape(delay_s=delay_s, mbit=mbit, buffer_s=buffer_s)
        self.tunnel.cut()
        self.until(lambda: self.tunnel.counts().opened > opened, "the relay has dialled", every_s=POLL_S)
        self.until(lambda: self.connected() == ["relay-0"], "the relay is back")
        assert self.run("get", "pods").startswith(b"NAME")

    # --- looking ---

    def connected(self) -> list[str]:
        """The relay instances that the hub believes to be there."""
        return [str(row["instance"]) for row in self.relay_rows() if row["connected"]]

    def streams(self) -> int:
        """The hub's open streams to relays."""
        return sum(int(str(row["streams"] or 0)) for row in self.relay_rows() if row["connected"])

    def client(self, cluster: str = CLUSTER) -> RawClient:
        """Speaks to the hub in its own bytes, by the agents' link."""
        return RawClient(self, cluster)

    def run(
        self, *args: str, stdin: bytes | None = None, spdy: bool = False, deadline_s: float = 40
    ) -> bytes:
        """The agent's kubectl, which must succeed; its output."""
        done = self.kubectl(CLUSTER, *args, stdin=stdin, spdy=spdy, deadline_s=deadline_s)
        assert done.code == 0, f"kubectl {' '.join(args)}: {done.err.decode()}"
        return done.out

    def living(self, daemon: Daemon | None) -> Living:
        """Count what lives in a hub or relay."""
        assert daemon is not None
        counts = daemon.log.with_suffix(".counts")
        counts.unlink(missing_ok=True)
        daemon.process.send_signal(signal.SIGUSR1)
        self.until(counts.exists, f"{daemon.name} has counted", every_s=POLL_S)
        told = json.loads(counts.read_text())
        return Living(
            told["tasks"],
            told["files"],
            resident_kib(daemon.process.pid),
            told["held_bytes"],
            Counter(told["objects"]),
        )

    def relay_says(self, text: str, instance: str = "relay-0") -> list[str]:
        """The relay's log lines with the text in them."""
        return [line for line in self.relays[instance].log.read_text().splitlines() if text in line]

    def until(
        self, condition: Callable[[], T], what: str, within_s: float = DEADLINE_S, *, every_s: float = 0.1
    ) -> T:
        """Wait for something that nobody tells of; returns what `condition` did."""
        deadline = time.monotonic() + within_s
        while not (result := condition()):
            assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
            time.sleep(every_s)
        return result

    def check(self) -> None:
        """What holds whatever was done: no fault of ours, and no secret, stands in any log."""
        secrets = [self.api_key, (self.folder / "hub" / "admin-token").read_text().strip()]
        for path in sorted(self.folder.glob("*.log")):
            text = path.read_text(errors="replace")
            found = text.find("Traceback")
            assert found < 0, f"{path.name}: {text[found : found + SHOWN_BYTES]}"
            assert " by a fault of " not in text, path.name
            assert JWT.search(text) is None, path.name
            assert not any(secret in text for secret in secrets), path.name


@contextmanager
def running_faults(
    folder: Path,
    *,
    api_port: int | None = None,
    relay_kubeconfig: Path | None = None,
    settings: str = "",
    slow: bool = False,
    public_host: str = "127.0.0.1",
    relay_environment: Mapping[str, str] | None = None,
    site: Site | None = None,
) -> Iterator[FaultWorld]:
    """Bring a world up in `folder`: with the sandbox, or in front of the API server of a kubeconfig.

    `settings` is more of the hub's TOML. `slow`: with small buffers in the links to the hub, which may be
    given a rate. `public_host` is what relays call the hub, and `relay_environment` what else they are told.
    The relays of a `site` reach hub and API server by its cables, and not by the links.
    """
    with Daemons(folder) as daemons, open_proxy(folder) as proxy:
        sandbox: Daemon | None = None
        if api_port is None:
            argv = [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
            argv += ["--host", site.api] if site is not None else []
            sandbox = daemons.start("sandbox", argv)
            ready = sandbox.wait_for("ready ")
            api_port = int(ready.rpartition(":")[2])
            relay_kubeconfig = folder / "cluster" / "relay.kubeconfig"
        assert relay_kubeconfig is not None
        hub_listen = free_port()
        api = proxy.link(api_port)
        world = FaultWorld(
            folder,
            daemons,
            0,
            free_port(),
            0,
            redirected(relay_kubeconfig, folder / "relay-by-link.kubeconfig", api.port),
            sandbox=sandbox,
            proxy=proxy,
            tunnel=proxy.link(hub_listen, slow=slow),
            agents=proxy.link(hub_listen, slow=slow),
            api=api,
            hub_listen=hub_listen,
            settings=settings,
            site=site,
        )
        world.hub_port = world.agents.port
        world.relay_environment = relay_environment or {}
        (folder / "agent").mkdir()
        if site is not None:
            world.relay_kubeconfig = relay_kubeconfig
            write_hub_configuration(world, f"https://{site.hub}:{hub_listen}", listen="0.0.0.0")
        else:
            write_hub_configuration(world, f"https://{public_host}:{world.tunnel.port}")
        world.start_hub()
        enrol(world)
        if sandbox is not None:
            prepare_cluster(world)
        login(world)
        world.connect_relay()
        yield world
        world.check()


def redirected(kubeconfig: Path, to: Path, port: int) -> Path:
    """The same kubeconfig with another port of the same host; files it names stand beside the first."""
    text = re.sub(r"(server: https://[^:/\s]+):\d+", rf"\1:{port}", kubeconfig.read_text())
    text = re.sub(r"(certificate-authority|tokenFile): (?!/)", rf"\1: {kubeconfig.parent}/", text)
    to.write_text(text)
    to.chmod(0o600)
    return to


def write_hub_configuration(world: FaultWorld, public_url: str, listen: str = "127.0.0.1") -> None:
    (world.folder / "hub.toml").write_text(
        f'org = "{ORG}"\npublic_url = "{public_url}"\nlisten = "{listen}:{world.hub_listen}"\n'
        f'data_dir = "{world.folder / "hub"}"\n[admin]\nlisten = "127.0.0.1:{world.admin_port}"\n'
        f"{world.settings}\n"
    )


def enrol(world: FaultWorld) -> None:
    """Tell the hub of a team, the clusters and an agent."""
    world.admin("team", "add", TEAM)
    for name in (CLUSTER, BY_HAND):
        folder = str(world.folder / f"relay-{name}")
        world.admin("cluster", "add", name, "--team", TEAM, "--output-dir", folder)
    agent = json.loads(world.admin("agent", "add", AGENT, "--team", TEAM, "--owner", "tests", "--json"))
    world.api_key = agent["api_key"]
