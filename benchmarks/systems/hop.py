"""Two hubs on one PostgreSQL: the agent's calls come to the first one, and the relay's tunnel to the second.

Both have the second one's port as their public URL, which is where the relay dials. So every call takes one
hop. A load balancer would add its own time.
"""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import attrs

from benchmarks.nginx import issue_certificate
from benchmarks.processes import Daemon, Daemons, free_port, program
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.systems.hawse import AGENT, CLUSTER, DEADLINE_S, POLL_S, TEAM, HawseError, Installation
from benchmarks.systems.postgres import open_database
from benchmarks.upstream.apiserver import POD_PATH

NAME = "hawse-hop"
FIRST, SECOND = "hub", "hub-2"


@contextmanager
def open_hop(folder: Path, upstream: Upstream) -> Iterator[System]:
    """Run both hubs, the relay and their database; raises Missing."""
    hawse = program("hawse", NAME, "make setup")
    with open_database(folder) as database, Daemons(folder) as daemons:
        ca = issue_certificate(folder)
        public_port = free_port()

        def hub(name: str, port: int) -> Installation:
            (folder / name).mkdir()
            peer = f"127.0.0.1:{free_port()}"
            settings = (
                # Of the section before: the relay has one tunnel, to the second hub.
                "tunnels_per_relay = 1\n"
                f'[tls]\ncertificate = "{folder / "server.pem"}"\nkey = "{folder / "server.key"}"\n'
                f'[database]\nurl = "{database.url}"\nseal_file = "{folder / "seal.key"}"\n'
                f'[peer]\nlisten = "{peer}"\naddress = "{peer}"\n'
            )
            return Installation(folder / name, daemons, hawse, port, public_port, {}, settings, ca)

        first, second = hub(FIRST, free_port()), hub(SECOND, public_port)
        hubs = [first.start_hub(FIRST), second.start_hub(SECOND)]
        first.run("admin", "team", "add", TEAM)
        relay_folder = str(second.folder / "relay")
        first.run("admin", "cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", relay_folder)
        agent = first.run("admin", "agent", "add", AGENT, "--team", TEAM, "--owner", "bench", "--json")
        api_key: str = json.loads(agent)["api_key"]
        relay = attrs.evolve(second, environment={"HAWSE_RELAY_HUB_CA": str(ca)}).start_relay(upstream)
        second.wait_for_tunnel(relay)
        _wait_for_route(first, relay, api_key)
        yield System(
            name=NAME,
            endpoint=Endpoint("127.0.0.1", first.port, ca, prefix=f"/clusters/{CLUSTER}"),
            processes={
                FIRST: hubs[0].process.pid,
                SECOND: hubs[1].process.pid,
                "relay": relay.process.pid,
                "database": database.daemon.process.pid,
            },
            versions={"hawse": version("hawse")},
            authorize=lambda: (("Authorization", f"Bearer {first.token(api_key)}"),),
        )


def _wait_for_route(first: Installation, relay: Daemon, api_key: str) -> None:
    """Wait until a call at the first hub reaches the API server."""
    context = ssl.create_default_context(cafile=str(first.ca))
    url = f"https://127.0.0.1:{first.port}/clusters/{CLUSTER}{POD_PATH}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {first.token(api_key)}"})
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
