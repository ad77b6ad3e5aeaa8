"""How long a search of the trail takes: `python benchmarks/audit_search.py [EVENTS] [FOLDER]`.

Makes a trail of EVENTS events (10 million), 100 a second, by 200 agents on 20 clusters: in a thousand one
watch that lasts for up to six hours, 300 writes with two rows, else reads. It takes 4 GB and some minutes.
In a FOLDER that is named it stays and is used again.

Prints, for each search, its CPU time, the median and the longest of its runs, in milliseconds, and what it
found.
benchmarks/README.md has the figures.
"""

from __future__ import annotations

import heapq
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from audit.calls import CallReader
from audit.errors import NoSuchCall
from audit.ids import uuid7
from audit.members import Members
from audit.query import Query
from audit.record import (
    Actor,
    ActorType,
    Client,
    Cluster,
    Decision,
    Event,
    Impersonated,
    Kind,
    Phase,
    Request,
    Response,
    Stream,
    utc,
)
from audit.store import AuditStore
from audit.textsearch import TEXT_EVENTS_MAX, Text

EVENTS = 10_000_000
BEGAN_S = 1_790_000_000.0
PER_SECOND = 100
AGENTS, CLUSTERS = 200, 20
BATCH = 5000
RUNS = 15
TOKEN_S = 60


class Fleet:
    """Agents that work: the events they bring about, in the order in which a hub would write them."""

    def __init__(self, agents: int = AGENTS, per_second: float = PER_SECOND) -> None:
        self.random = random.Random(1)
        self.now_s = BEGAN_S
        self._agents, self._per_second = agents, per_second
        self._open: list[tuple[float, str, Event]] = []
        self._sections: dict[int, tuple[float, Event]] = {}
        self.watches: list[str] = []
        self.writes: list[str] = []
        self.reads: list[str] = []

    def events(self) -> Iterator[Event]:
        while True:
            self.now_s += 1 / self._per_second
            while self._open and self._open[0][0] <= self.now_s:
                ends_s, _, event = heapq.heappop(self._open)
                yield event.completed(utc(ends_s), resp=Response(200, "", 5000, 12.5, "yes"))
            yield self._next()

    def _next(self) -> Event:
        chance = self.random.random()
        event = self._base(self.random.randrange(self._agents))
        namespace = f"app-{self.random.randrange(50)}"
        pods = f"/api/v1/namespaces/{namespace}/pods"
        if chance < 0.001:
            req = Request("GET", f"{pods}?watch=1", "watch", "", "v1", "pods", "", namespace)
            event = replace(event, phase=Phase.START, req=req, stream=Stream("http"))
            self._later(event, self.random.uniform(10, 6 * 3600), self.watches)
        elif chance < 0.3:
            name = f"web-{self.random.randrange(1000)}"
            req = Request("PATCH", f"{pods}/{name}", "patch", "", "v1", "pods", "", namespace, name)
            event = replace(event, phase=Phase.INTENT, req=req)
            self._later(event, self.random.uniform(0.01, 2), self.writes)
        else:
            req = Request("GET", f"{pods}?limit=500", "list", "", "v1", "pods", "", namespace)
            status = 503 if chance > 0.999995 else 200
            event = replace(event, req=req, dur_ms=8.1, resp=Response(status, "", 900, 7.9, "yes"))
            self._note(event, self.reads)
        return event

    def _later(self, event: Event, after_s: float, noted: list[str]) -> None:
        heapq.heappush(self._open, (self.now_s + after_s, event.eid, event))
        self._note(event, noted)

    def _note(self, event: Event, noted: list[str]) -> None:
        if noted is self.watches or self.random.random() < 0.001 or not noted:
            noted.append(event.eid)

    def _base(self, number: int) -> Event:
        """What an agent's events have in common while it has one token."""
        known = self._sections.get(number)
        if known is None or known[0] < self.now_s:
            name, cluster = f"robot-{number}", f"cluster-{number % CLUSTERS}"
            teams = (f"team-{number % 10}",)
            jti = f"{self.random.getrandbits(128):032x}"
            event = Event(
                eid="",
                kind=Kind.CALL,
                phase=Phase.COMPLETE,
                ts=utc(0),
                org="acme",
                actor=Actor(ActorType.AGENT, name, f"id-{number}", "ann", teams, "access-token", jti),
                client=Client("10.0.0.9", "kubectl/v1.37.0 (linux/amd64) kubernetes/8f1cd3a", "tunnel"),
                cluster=Cluster(f"id-{cluster}", cluster),
                impersonated=Impersonated(f"agent:{name}", ("acme/sre",), {"hawse.dev/session": ("key-1",)}),
                decision=Decision("allow", "granted", "granted"),
            )
            known = self._sections[number] = self.now_s + TOKEN_S, event
        eid = uuid7(int(self.now_s * 1000), self.random.randbytes(10))
        return replace(known[1], eid=eid, ts=utc(self.now_s))


def made(path: Path, number: int) -> None:
    """Make the trail, unless it is there."""
    if path.exists():
        return
    began_s = time.perf_counter()
    fleet = Fleet()
    with closing(AuditStore(path)) as store:
        source = fleet.events()
        for _ in range(number // BATCH):
            store.append([next(source) for _ in range(BATCH)], boot="bench")
    noted = [" ".join(some) for some in (fleet.reads, fleet.writes, fleet.watches)]
    path.with_suffix(".ids").write_text("\n".join(noted))
    print(f"{number} events made in {time.perf_counter() - began_s:.0f} s")


def measure(name: str, search: Callable[[], object], runs: int = RUNS) -> None:
    took_ms = []
    cpu_s = time.process_time()
    found: object = None
    for _ in range(runs):
        began_s = time.perf_counter()
        found = search()
        took_ms.append((time.perf_counter() - began_s) * 1000)
    # CPU time as well, which a busy machine changes least.
    cpu_ms = (time.process_time() - cpu_s) * 1000 / runs
    print(f"{name:<44} {cpu_ms:9.1f} {statistics.median(took_ms):9.1f} {max(took_ms):9.1f} ms   {found}")


def searches(path: Path) -> None:
    reads, writes, watches = (line.split() for line in path.with_suffix(".ids").read_text().splitlines())
    chosen = random.Random(2)

    def show(ids: list[str], characters: int = 36) -> Callable[[], object]:
        def search() -> str:
            with closing(CallReader(path)) as reader:
                try:
                    return f"{len(reader.by_id(chosen.choice(ids)[:characters]).rows)} rows"
                except NoSuchCall:
                    return "none"

        return search

    unknown = [f"{eid[:-4]}{os.urandom(2).hex()}" for eid in reads]
    measure("show: a read", show(reads))
    measure("show: a write", show(writes))
    measure("show: a watch, its end up to 2 million on", show(watches[: len(watches) // 2]))
    measure("show: the first 13 characters of an id", show(reads, 13))
    measure("show: an id that is unknown", show(unknown))

    def newest(wanted: Query) -> Callable[[], object]:
        def search() -> str:
            with closing(CallReader(path)) as reader:
                found = reader.span(wanted, 50)
                return f"{sum(1 for _ in reader.events(*found, wanted))} events"

        return search

    measure("list: the newest 50", newest(Query()))
    measure("list: of one agent", newest(Query(agent="robot-7")))
    measure("list: --verb watch", newest(Query(members=Members(verbs=("watch",)))))
    narrow = Members(teams=("team-3",), namespaces=("app-7",))
    measure("list: --team team-3 --namespace app-7", newest(Query(members=narrow)))
    for name, members in (
        ("--status 5xx, 50 in all", Members(statuses=("5xx",))),
        ("--verb delete, of which there is none", Members(verbs=("delete",))),
        ("--team of which there is none", Members(teams=("none",))),
    ):
        measure(f"list: {name}", newest(Query(members=members)), runs=1)
    measure("list: --text, in the newest 100,000", partial(text_found, path), runs=3)


def text_found(path: Path) -> str:
    text = Text("web-999")
    with closing(CallReader(path)) as reader:
        found = reader.span(Query(), TEXT_EVENTS_MAX)
        return f"{sum(text.is_in(stored.body) for stored in reader.events(*found))} events"


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(name)
        path = folder / "audit.db"
        made(path, number)
        print(f"{path.stat().st_size / number:.0f} bytes an event")
        searches(path)


if __name__ == "__main__":
    main()
