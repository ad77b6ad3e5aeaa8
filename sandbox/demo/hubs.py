"""Several hubs of this machine behind a load balancer: their configuration, and their processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from sandbox.balancer.backends import Policy
from sandbox.balancer.control import BalancerControl
from sandbox.balancer.starting import start_balancer
from sandbox.certificates import issue
from sandbox.demo.processes import POLL_S, READY_DEADLINE_S, Daemon, Daemons, DemoError, free_port


@attrs.define(eq=False)
class HubProcess:
    """One hub of several: its folder, its ports, and the process that runs on them now."""

    name: str
    folder: Path
    """Its data folder; the hub's id is in it, and stays over restarts."""
    config: Path
    port: int
    admin_port: int
    peer_port: int
    console_port: int = 0
    """Its console listens there; 0 without one."""
    daemon: Daemon | None = None
    starts: int = 0

    def launch(
        self,
        daemons: Daemons,
        *options: str,
        argv: Sequence[str] = ("hawse",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the hub without waiting until it is ready; each start has a log of its own."""
        if self.daemon is not None:
            daemons.replaced(self.daemon)
        self.starts += 1
        command = [*argv, "hub", "--config", str(self.config), *options]
        self.daemon = daemons.start(f"{self.name}-{self.starts}", command, environment)

    @property
    def pid(self) -> int:
        """The process that runs, or has run last."""
        assert self.daemon is not None
        return self.daemon.process.pid

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.daemon is not None and self.daemon.process.poll() is None

    @property
    def log(self) -> str:
        """What the process that runs now, or has run last, has logged."""
        assert self.daemon is not None
        return self.daemon.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended gets none."""
        assert self.daemon is not None
        self.daemon.process.send_signal(number)

    def wait(self, within_s: float) -> int:
        """Wait for its end, and return the exit code; raises subprocess.TimeoutExpired."""
        assert self.daemon is not None
        return self.daemon.process.wait(within_s)

    def kill(self) -> None:
        """End it at once, also while it is stopped; does nothing if it has not been started."""
        if self.daemon is not None:
            with suppress(ProcessLookupError):
                self.daemon.process.kill()
            self.daemon.process.wait()


@attrs.frozen
class Hubs:
    """Several hubs behind one name."""

    all: list[HubProcess]
    daemons: Daemons
    balancer: BalancerControl
    ca: Path
    """The CA of the certificate that all of them show."""
    port: int
    """The balancer's."""
    console_url: str = ""
    """Where the consoles are, behind a balancer of their own; "" without them."""

    @property
    def url(self) -> str:
        """The hubs' `public_url`."""
        return f"https://127.0.0.1:{self.port}"

    def wait_ready(self, hub: HubProcess) -> None:
        """Wait until a hub has started, and gets connections; raises DemoError."""
        assert hub.daemon is not None
        hub.daemon.wait_for("hub is ready")
        deadline = time.monotonic() + READY_DEADLINE_S
        while not self.in_service(hub):
            if time.monotonic() > deadline:
                raise DemoError(f"{hub.name} is ready, and the balancer has not noticed")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End all hubs at once, since each takes some seconds to leave in order."""
        for hub in self.all:
            if hub.running:
                hub.signal(signal.SIGTERM)

    def in_service(self, hub: HubProcess) -> bool:
        """Whether the balancer gives the hub new connections."""
        return hub.port in self.balancer.in_service()


def own_address(hub: HubProcess) -> str:
    """Where the hub listens for the others."""
    return f"127.0.0.1:{hub.peer_port}"


def make_hubs(
    folder: Path,
    daemons: Daemons,
    database_of: Callable[[HubProcess], str],
    *,
    org: str,
    hubs: int,
    port: int = 0,
    policy: Policy = Policy.ROUND_ROBIN,
    check_s: float,
    address_of: Callable[[HubProcess], str] = own_address,
    settings: str = "",
    console: bool = False,
) -> Hubs:
    """Write the files of all hubs, and start the balancer in front of them; none of the hubs runs yet.

    They share the database, the key that seals the secrets in it, and a certificate. `database_of` returns
    the URL of the database for a hub, `address_of` where the others dial it. `settings` are more sections of
    their configuration. With `console`, each has one, and all of them have one address.
    """
    ca, certificate, key = issue("127.0.0.1", "hub").write(folder)
    port = free_port(port)
    console_at = f"127.0.0.1:{free_port()}" if console else ""
    made = []
    for number in range(1, hubs + 1):
        name = f"hub-{number}"
        hub = HubProcess(name, folder / name, folder / f"{name}.toml", free_port(), free_port(), free_port())
        hub.console_port = free_port() if console else 0
        hub.config.write_text(
            f'org = "{org}"\n'
            f'public_url = "https://127.0.0.1:{port}"\n'
            f'listen = "127.0.0.1:{hub.port}"\n'
            f'data_dir = "{hub.folder}"\n'
            f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
            f'[admin]\nlisten = "127.0.0.1:{hub.admin_port}"\n'
            f'[database]\nurl = "{database_of(hub)}"\nseal_file = "{folder / "seal.key"}"\n'
            f'[peer]\nlisten = "{own_address(hub)}"\naddress = "{address_of(hub)}"\n'
            + (f'[console]\nlisten = "127.0.0.1:{hub.console_port}"\n' if console else "")
            + (f'public_url = "http://{console_at}"\n' if console else "")
            + settings
        )
        made.append(hub)
    ports = [hub.port for hub in made]
    control, _ = start_balancer(daemons, port, ports, ca, policy=policy, check_s=check_s)
    if not console:
        return Hubs(made, daemons, control, ca, port)
    start_balancer(
        daemons,
        int(console_at.rpartition(":")[2]),
        [hub.console_port for hub in made],
        ca,
        # All connections of a browser are at one hub, as with most balancers for people.
        policy=Policy.SOURCE,
        check_s=check_s,
        checked=ports,
        name="console-balancer",
    )
    return Hubs(made, daemons, control, ca, port, f"http://{console_at}")
