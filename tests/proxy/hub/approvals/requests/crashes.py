"""A process that uses grants and kills itself at a counted point (SIGKILL), and what is left then.

    python -m tests.proxy.hub.approvals.requests.crashes FOLDER POINTS [URL]

For each of POINTS points it forks a process that makes three calls: use, intent, write, and the end of the
use. The second call is refused by the API server at first, so its use is returned. Each step has as many
points, though some are short. A point is an event of Python's profiler, in any thread, so it may be between
any two calls of a function. Then another process of the hub starts: the agent repeats each call, and does
what its grant allows.

Each line of its output is what one crash has left, as JSON. It is a process of its own, since a process with
threads, such as that of pytest, cannot fork.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import attrs
import trio

from audit.events import new_event
from audit.ids import new_eid
from audit.record import Actor, ActorType, Approval, Kind, Phase, Response, utc
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.store import AuditStore
from proxy.hub.approvals.request import Request, State
from proxy.hub.approvals.requests.service import Requests, open_requests
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.entities import Snapshot
from tests.fakes.databases import run
from tests.fakes.hub_rows import add_hub
from tests.proxy.hub.approvals.requests.bench import new_request, opened, populate

CALLS = 3
STEPS = "use", "intent", "write", "end", "done"


@attrs.frozen
class Place:
    """Where the processes of one crash keep what they keep."""

    folder: Path
    requests: Location
    snapshot: Snapshot

    @property
    def audit_file(self) -> Path:
        return self.folder / "audit.db"

    def write(self, request_id: str, eid: str) -> None:
        """Do what the API server would do for a call; durable when this returns."""
        descriptor = os.open(self.folder / "writes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{request_id} {eid}\n".encode())
        os.close(descriptor)

    def writes(self) -> list[tuple[str, str]]:
        file = self.folder / "writes"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(line.split()[0], line.split()[1]) for line in lines]


@attrs.define(eq=False)
class Killer:
    """Kills the process at a point of a step."""

    step: int
    """The number of the step, from 1; 0 kills in none."""
    point: int
    shared: mmap.mmap
    """What the process does, and how many points each step had."""
    _begun: int = 0
    _points: Iterator[int] = attrs.Factory(count)

    def install(self) -> None:
        """Watch this thread, and all that begin from now on."""
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)

    def begin(self, what: str) -> None:
        """Note that the process is about to do this."""
        at = 8 * (1 + self._begun)
        self.shared[at : at + 8] = next(self._points).to_bytes(8, "big")
        if self._begun == self.step > 0:
            # This time, the step had fewer points.
            self._kill()
        self.shared[0] = STEPS.index(what)
        self._begun += 1
        self._points = count()

    def _on_event(self, frame: object, event: str, argument: object) -> None:
        if next(self._points) == self.point and self._begun == self.step > 0:
            self._kill()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


async def call(
    requests: Requests, recorder: Recorder, place: Place, request: Request, killer: Killer, *, refused: bool
) -> None:
    """Do what a hub does for a call with an approved request; `refused`: the API server took nothing."""
    killer.begin("use")
    if not await requests.use(request.id):
        return
    killer.begin("intent")
    intent = new_event(
        Kind.CALL,
        Actor(ActorType.AGENT, "robot0"),
        org="acme",
        phase=Phase.INTENT,
        approval=Approval(request.id),
    )
    await recorder.intent(intent)
    killer.begin("write")
    if not refused:
        place.write(request.id, intent.eid)
    killer.begin("end")
    recorder.complete(intent.completed(utc(time.time()), resp=Response(200)))
    if refused:
        await requests.give_back(request.id)
    else:
        await requests.spend(request.id)


async def serve(place: Place, ids: list[str], killer: Killer) -> None:
    """Run the hub for these calls."""
    with closing(AuditStore(place.audit_file, make=False)) as store:
        opening = open_requests(
            place.requests,
            org="acme",
            boot="boot-a",
            snapshot=lambda: place.snapshot,
            record=lambda event: None,
            runs_here=lambda boot: True,
        )
        async with open_recorder(store, boot="boot-a") as recorder, opening as requests:
            found = [await requests.get(request_id) for request_id in ids]
            for number, request in enumerate(found):
                if number == 1:
                    await call(requests, recorder, place, request, killer, refused=True)
                await call(requests, recorder, place, request, killer, refused=False)
            killer.begin("done")


def crash(place: Place, ids: list[str], step: int, point: int) -> tuple[str, list[int]]:
    """Fork the hub; returns in which step it was killed, or `done`, and how many points the steps had."""
    shared = mmap.mmap(-1, 4096)
    if (child := os.fork()) == 0:
        killer = Killer(step, point, shared)
        killer.install()
        trio.run(serve, place, ids, killer)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the hub has failed")
    points = [int.from_bytes(shared[at : at + 8], "big") for at in range(16, len(shared), 8)]
    return STEPS[shared[0]], [number for number in points if number]


def intents(place: Place) -> set[str]:
    """The ids of the calls whose intents are in the trail."""
    with closing(sqlite3.connect(place.audit_file)) as trail:
        return {eid for (eid,) in trail.execute("SELECT eid FROM events WHERE phase = 'intent'")}


def look(place: Place, ids: list[str]) -> dict[str, object]:
    """Start the hub again, and let the agent repeat each call; returns what is wrong, and the states."""
    recorded, first = intents(place), place.writes()
    with opened(place.requests, "boot-b") as table:
        before = {request_id: table.get(request_id).state for request_id in ids}
        if isinstance(place.requests, PostgresAddress):
            run(place.requests, "update hubs set state = 'dead' where boot = 'boot-a'")
        table.spend_of(["boot-a"])
        again = {request_id: repeat(table, place, request_id) for request_id in ids}
    written = [request_id for request_id, _ in place.writes()]
    return {
        "without_grant": [each for each, _ in first if before[each] not in (State.USING, State.USED)],
        "without_intent": [eid for _, eid in first if eid not in recorded],
        "twice": [each for each in ids if written.count(each) > 1],
        "open": [each for each in ids if again[each].open],
        "written": len(first),
        "repeated": len(written) - len(first),
    }


def repeat(table: RequestsTable, place: Place, request_id: str) -> State:
    if table.use(request_id, 0):
        place.write(request_id, new_eid())
        table.spend(request_id)
    return table.get(request_id).state


def grants(place: Location, snapshot: Snapshot) -> list[str]:
    """Approve some requests."""
    ids: list[str] = []
    with opened(place) as table:
        for number in range(CALLS):
            request = table.open(new_request(snapshot, number), serves="")
            table.decide(request.id, approve=True, by="ann", answer="", shown=request.new.shown)
            ids.append(request.id)
    return ids


def spread(points: list[int], number: int) -> list[tuple[int, int]]:
    """Choose some of the points of each step."""
    found = []
    for which in range(number):
        step, rest = divmod(which * len(points), number)
        found.append((step + 1, points[step] * rest // number))
    return found


def main(folder: Path, points: int, url: str | None) -> None:
    first = folder / "first"
    first.mkdir()
    location: Location = first / "hub.db" if url is None else PostgresAddress(url)
    AuditStore(first / "audit.db").close()
    snapshot = populate(location)
    if isinstance(location, PostgresAddress):
        add_hub(location, "boot-a")
    ids = grants(location, snapshot)
    chosen = [(0, 0)]
    for number in range(points + 1):
        here = folder / str(number)
        shutil.copytree(first, here)
        if isinstance(location, PostgresAddress):
            run(location, "delete from requests", "update hubs set state = 'serving'")
            ids = grants(location, snapshot)
            place = Place(here, location, snapshot)
        else:
            place = Place(here, here / "hub.db", snapshot)
        died, counted = crash(place, ids, *chosen[number])
        if number == 0:
            # It was not killed, and has counted.
            chosen += spread(counted, points)
        else:
            print(json.dumps({"died": died, **look(place, ids)}))
        shutil.rmtree(here)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
