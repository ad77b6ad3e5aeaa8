"""Hubs on one PostgreSQL, one relay, and one agent that may call by any of them."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import attrs

from benchmarks.nginx import issue_certificate
from benchmarks.processes import Daemon, Daemons, free_port, program
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.systems.hawse import AGENT, CLUSTER, DEADLINE_S, POLL_S, TEAM, HawseError, Installation
from benchmarks.systems.postgres import open_database
from benchmarks.upstream.apiserver import POD_PATH
from proxy.cli.admin.api.client import AdminClient, Reach
from sandbox.balancer.starting import start_balancer

# The processes of the hubs, in their order.
NAMES: Final = ("hub", "hub-2")


@attrs.frozen
class Hubs:
    """The running hubs, and what stands around them."""

    installations: Sequence[Installation]
    clients: Sequence[AdminClient]
    system: System
    """Its endpoint is the first hub."""

    def endpoints(self) -> list[Endpoint]:
        """Those of all hubs, with credentials for the next run."""
        fresh = self.system.fresh_endpoint()
        return [attrs.evolve(fresh, port=each.port) for each in self.installations]


@contextmanager
def open_hubs(
    folder: Path, upstream: Upstream, name: str, count: int, dialled: Sequence[int], *, balanced: bool
) -> Iterator[Hubs]:
    """Run so many hubs; the relay has a tunnel to each of `dialled`. Raises Missing.

    The relay dials a load balancer, or the one hub that it has a tunnel to. The agent needs none.
    """
    hawse = program("hawse", name, "make setup")
    assert balanced or len(dialled) == 1, "without a load balancer, a relay dials one hub"
    with open_database(folder) as database, Daemons(folder) as daemons:
        ca = issue_certificate(folder)
        ports = [free_port() for _ in range(count)]
        public_port = free_port() if balanced else ports[dialled[0]]
        hubs, processes = [], {}
        for hub, port in zip(NAMES, ports, strict=False):
            (folder / hub).mkdir()
            peer = f"127.0.0.1:{free_port()}"
            settings = (
                # Of the section before.
                f"tunnels_per_relay = {len(dialled)}\n"
                f'[tls]\ncertificate = "{folder / "server.pem"}"\nkey = "{folder / "server.key"}"\n'
                f'[database]\nurl = "{database.url}"\nseal_file = "{folder / "seal.key"}"\n'
            )
            if count > 1:
                settings += f'[peer]\nlisten = "{peer}"\naddress = "{peer}"\n'
            hubs.append(Installation(folder / hub, daemons, hawse, port, public_port, {}, settings, ca))
            processes[hub] = hubs[-1].start_hub(hub).process.pid
        if balanced:
            _, balancer = start_balancer(daemons, public_port, [ports[number] for number in dialled], ca)
            balancer.wait_for("ready")
            processes["balancer"] = balancer.process.pid
        first = hubs[0]
        first.run("admin", "team", "add", TEAM)
        first.run("admin", "cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(folder / "relay"))
        agent = first.run("admin", "agent", "add", AGENT, "--team", TEAM, "--owner", "bench", "--json")
        api_key: str = json.loads(agent)["api_key"]
        dialling = attrs.evolve(first, folder=folder, environment={"HAWSE_RELAY_HUB_CA": str(ca)})
        relay = dialling.start_relay(upstream)
        for number in dialled:
            _wait_for_tunnel(hubs[number], relay)
        for each in hubs:
            _wait_for_route(each, relay, api_key)
        system = System(
            name=name,
            endpoint=Endpoint("127.0.0.1", first.port, ca, prefix=f"/clusters/{CLUSTER}"),
            processes={**processes, "relay": relay.process.pid, "database": database.daemon.process.pid},
            versions={"hawse": version("hawse")},
            authorize=lambda: (("Authorization", f"Bearer {first.token(api_key)}"),),
        )
        yield Hubs(hubs, [Reach(each.folder / "hub.toml", None).client() for each in hubs], system)


def _wait_for_tunnel(hub: Installation, relay: Daemon) -> None:
    """Wait until the relay has a tunnel to this very hub."""
    deadline = time.monotonic() + DEADLINE_S
    # A hub lists the tunnels of all hubs, and only of its own it knows the streams.
    while not any(
        each["connected"] and each["streams"] is not None
        for each in json.loads(hub.run("admin", "relay", "list", "--json"))
    ):
        relay.check()
        if time.monotonic() > deadline:
            raise HawseError(f"the relay did not reach a hub: see {relay.log}")
        time.sleep(POLL_S)


def _wait_for_route(hub: Installation, relay: Daemon, api_key: str) -> None:
    """Wait until a call at the hub reaches the API server."""
    context = ssl.create_default_context(cafile=str(hub.ca))
    url = f"https://127.0.0.1:{hub.port}/clusters/{CLUSTER}{POD_PATH}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {hub.token(api_key)}"})
    deadline = time.monotonic() + DEADLINE_S
    while True:
        relay.check()
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S, context=context):
                return
        except urllib.error.HTTPError as error:
            if time.monotonic() > deadline:
                raise HawseError(f"the hubs forward no call: {error.read()!r}") from error
        time.sleep(POLL_S)
