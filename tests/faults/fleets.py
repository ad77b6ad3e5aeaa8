"""Many relays of several hubs, in a few processes (benchmarks/relays.py)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import yaml

from benchmarks.fleet import RELAYS_A_PROCESS, Relays, enrol
from benchmarks.system import Upstream
from benchmarks.systems.hawse import kubeconfig
from benchmarks.watching import slices
from sandbox.demo.hubs import HubProcess
from tests.system.hubs import HubsWorld, relays_at

# Of one cluster.
INSTANCES = 2
STEADY_S = 3.0


@attrs.define(eq=False)
class RelayFleet:
    """The relays' processes."""

    world: HubsWorld
    processes: list[Relays] = attrs.Factory(list)

    def start(self) -> None:
        """Have all of them dial."""
        for process in self.processes:
            process.start(process.size)

    def live(self) -> int:
        """How many sessions are up, by what the relays know."""
        return sum(process.live() for process in self.processes)

    def at(self, member: HubProcess) -> int:
        """How many relays are connected at a hub."""
        return len(relays_at(member))

    def wait_steady(self) -> int:
        """Wait until no more sessions come up, and return how many there are."""
        while True:
            before = self.live()
            time.sleep(STEADY_S)
            if self.live() == before:
                return before


@contextmanager
def open_relays(world: HubsWorld, upstream: Upstream, folder: Path, size: int) -> Iterator[RelayFleet]:
    """Enrol so many relays, two to a cluster; they do not dial yet."""
    clusters = [f"cluster-{number:04}" for number in range(size // INSTANCES)]
    ca = world.ca.read_text()
    enrolled = [{**relay, "hub_ca_pem": ca} for relay in enrol(world.administration, clusters)]
    relays = [{**relay, "instance": f"relay-{number}"} for relay in enrolled for number in range(INSTANCES)]
    access = folder / "kubeconfig"
    access.write_text(yaml.safe_dump(kubeconfig(upstream.endpoint)))
    fleet, first = RelayFleet(world), 0
    with ExitStack() as stack:
        for number, count in enumerate(slices(size, RELAYS_A_PROCESS)):
            file = folder / f"relays-{number}.json"
            file.touch(mode=0o600)
            file.write_text(json.dumps(relays[first : first + count]))
            source = f"127.0.1.{number + 1}"
            fleet.processes.append(stack.enter_context(Relays(file, count, source, access)))
            first += count
        yield fleet
