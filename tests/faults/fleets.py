"""Many relays of several hubs, in a few processes (benchmarks/relays.py)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import yaml

from benchmarks.fleet import RELAYS_A_PROCESS, Relays, enrol
from benchmarks.system import Upstream
from benchmarks.systems.hawse import kubeconfig
from benchmarks.watching import slices
from tests.system.hubs import HubsWorld, rows_of

# Of one cluster.
INSTANCES = 2
# Each listing of two thousand tunnels costs its hub 0.1 s.
POLL_S = 0.5
# Each waits for two commits, and for a reading of the directory.
ENROLLED_AT_ONCE = 8


@attrs.frozen
class Standing:
    """What relays have at some hubs."""

    relays: int
    """With a tunnel."""
    two: int
    """With two of them, or more."""


@attrs.define(eq=False)
class RelayFleet:
    """The relays' processes."""

    world: HubsWorld
    processes: list[Relays] = attrs.Factory(list)

    def start(self) -> None:
        """Have all of them dial."""
        for process in self.processes:
            process.start(process.size)

    def standing(self, hubs: Collection[str]) -> Standing:
        """What the relays have at the hubs with these ids, as one of the hubs lists it."""
        tunnels = Counter(
            (row["cluster"], row["instance"])
            for row in rows_of(self.world.one_running(), "relays")
            if row["connected"] and row["hub"] in hubs
        )
        return Standing(len(tunnels), sum(count >= 2 for count in tunnels.values()))

    def until(self, hubs: Collection[str], met: Callable[[Standing], bool], within_s: float) -> Standing:
        """Wait until the relays have that, or the time is over; returns what they have."""
        deadline = time.monotonic() + within_s
        while not met(found := self.standing(hubs)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found


@contextmanager
def open_relays(world: HubsWorld, upstream: Upstream, folder: Path, size: int) -> Iterator[RelayFleet]:
    """Enrol so many relays, two to a cluster; they do not dial yet."""
    clusters = [f"cluster-{number:04}" for number in range(size // INSTANCES)]
    ca = world.ca.read_text()
    client = world.administration
    with ThreadPoolExecutor(ENROLLED_AT_ONCE) as pool:
        parts = pool.map(lambda name: enrol(client, [name]), clusters)
        enrolled = [{**relay, "hub_ca_pem": ca} for part in parts for relay in part]
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
