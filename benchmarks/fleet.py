"""A hub with many clusters, and a relay for each: the hub as it is, the relays in a few processes.

A relay process by itself has the same tunnel and costs a process more; a thousand of them do not fit the
machine that is to measure the hub. The hub cannot tell the difference.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import yaml

from benchmarks.processes import Daemon, Daemons, free_port, program
from benchmarks.system import Upstream
from benchmarks.systems.hawse import AGENT, TEAM, Installation, kubeconfig
from benchmarks.talk import Talk
from benchmarks.watching import slices
from benchmarks.workload import RunFailed
from proxy.cli.admin.api.client import AdminClient, Reach

# Below what a hub lets one address have in its handshakes, also when all of them come at once.
RELAYS_A_PROCESS = 250
POLL_S = 0.1
# They dial again each second for 20 s after a loss, then 5 to 60 s after a dial that failed.
ALL_UP_S = 120.0
# It has ten seconds for what is under way.
STOP_S = 20.0


class Relays(Talk):
    """One process with many of them."""

    def __init__(self, file: Path, size: int, source: str, access: Path) -> None:
        super().__init__("benchmarks.relays", str(file), source, str(access))
        self.size = size

    def start(self, count: int) -> None:
        """Have so many more of them dial."""
        self.ask(f"start {count}")

    def live(self) -> int:
        return int(json.loads(self.ask("live")))

    def opened(self) -> list[float]:
        """When sessions came up since the last time, by the clock of time.monotonic."""
        return [float(at) for at in json.loads(self.ask("opened"))]


@attrs.define
class Fleet:
    """The hub, and the processes of its relays."""

    installation: Installation
    daemons: Daemons
    hub: Daemon
    clusters: tuple[str, ...]
    api_key: str
    processes: list[Relays] = attrs.Factory(list)

    @property
    def processes_by_name(self) -> dict[str, int]:
        return {f"relays-{number}": process.pid for number, process in enumerate(self.processes)}

    def start(self, counts: Sequence[int]) -> None:
        """Have more relays dial, so many by each process, and wait for them."""
        before = self.live()
        for process, count in zip(self.processes, counts, strict=True):
            process.start(count)
        self.wait_for(before + sum(counts))

    def live(self) -> int:
        return sum(process.live() for process in self.processes)

    def wait_for(self, count: int) -> None:
        """Wait until so many sessions are up. Raises RunFailed."""
        deadline = time.monotonic() + ALL_UP_S
        while (live := self.live()) < count:
            if time.monotonic() > deadline:
                raise RunFailed(f"{live} of {count} relays are connected after {ALL_UP_S:.0f} s")
            time.sleep(POLL_S)

    def opened(self) -> list[float]:
        """When sessions came up since the last time, by the clock of time.monotonic."""
        return sorted(at for process in self.processes for at in process.opened())

    def wait_for_opened(self, count: int) -> list[float]:
        """Wait until so many sessions have come up, and return when each did. Raises RunFailed."""
        deadline = time.monotonic() + ALL_UP_S
        opened = self.opened()
        while len(opened) < count:
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(opened)} of {count} relays are back after {ALL_UP_S:.0f} s")
            time.sleep(POLL_S)
            opened += self.opened()
        return opened

    def restart_hub(self, number: signal.Signals) -> float:
        """End the hub by a signal and start it again at once; returns when it was ready, as `opened` does."""
        self.hub.process.send_signal(number)
        self.hub.process.wait(STOP_S)
        self.hub = self.installation.start_hub()
        return time.monotonic()


@contextmanager
def open_fleet(folder: Path, upstream: Upstream, size: int, *, instances: int = 1) -> Iterator[Fleet]:
    """Run a hub with `size` relays, so many `instances` of them to a cluster, that do not dial yet."""
    hawse = program("hawse", "scale", "make setup")
    with ExitStack() as stack:
        daemons = stack.enter_context(Daemons(folder))
        port = free_port()
        limit = {"HAWSE_HUB_LIMITS_RELAYS_PER_CLUSTER": str(max(2, instances))}
        installation = Installation(folder, daemons, hawse, port, port, limit)
        hub = installation.start_hub()
        installation.run("admin", "team", "add", TEAM)
        agent = json.loads(
            installation.run("admin", "agent", "add", AGENT, "--team", TEAM, "--owner", "bench", "--json")
        )
        clusters = tuple(f"cluster-{number:04}" for number in range(math.ceil(size / instances)))
        enrolled = enrol(Reach(folder / "hub.toml", None).client(), clusters)
        relays = [{**relay, "instance": f"relay-{n}"} for relay in enrolled for n in range(instances)]
        access = folder / "kubeconfig"
        access.write_text(yaml.safe_dump(kubeconfig(upstream.endpoint)))
        fleet = Fleet(installation, daemons, hub, clusters, agent["api_key"])
        first = 0
        for number, count in enumerate(slices(size, RELAYS_A_PROCESS)):
            file = folder / f"relays-{number}.json"
            file.touch(mode=0o600)
            file.write_text(json.dumps(relays[first : first + count]))
            fleet.processes.append(stack.enter_context(Relays(file, count, f"127.0.1.{number + 1}", access)))
            first += count
        yield fleet


def enrol(client: AdminClient, clusters: Sequence[str]) -> list[Any]:
    """Add the clusters by the API that `hawse admin` uses; returns what each one's relay needs."""
    return [client.post("clusters", body={"name": name, "teams": [TEAM]})["relay"] for name in clusters]
