"""What the trail costs a read call: `python -m benchmarks.units.audit [FOLDER] [URL]`.

FOLDER is on the disk to measure, and so is the PostgreSQL database of URL, if it is given. First the parts by
themselves; then the writer thread beside a loop that is busy, as in a hub: both want the interpreter's lock,
so what its waits and hand-overs cost is in the last figures and in no other. They say how much CPU the whole
process needs an event more than the same busy loop without a trail.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from audit.ids import new_eid
from audit.mask import Masks
from audit.postgres.store import PostgresStore
from audit.record import Event
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.shared import own_part
from audit.shares import Agent
from audit.store import AuditStore
from benchmarks.units.calls import Case
from benchmarks.units.timing import RUNS, measure, once, repeated, report

BATCHES = (16, 64, 256)
EVENTS = 4096
# What a hub does between two events, about: 60 µs of Python, and now and then a system call.
SPIN = 1400


class NullStore(AuditStore):
    """Takes everything and writes nothing: what is left is the queue and the writer's own way."""

    def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        return {}


def batches(case: Case, size: int) -> Iterator[list[Event]]:
    """Events as they come: a few targets, an id and a time each."""
    while True:
        yield [case.closing_event() for _ in range(size)]


def stores(folder: Path, name: str) -> dict[str, AuditStore | PostgresStore]:
    """New stores of the engines that are measured."""
    found: dict[str, AuditStore | PostgresStore] = {"": AuditStore(folder / f"{name}.db")}
    if len(sys.argv) > 2:
        found[" in PostgreSQL"] = PostgresStore(lambda: sys.argv[2])
    return found


def store_alone(folder: Path, case: Case) -> None:
    for size in BATCHES:
        for where, store in stores(folder, f"alone-{size}").items():
            measure_store(f"(e) store alone{where}, batches of {size}", store, case, size)


def measure_store(name: str, store: AuditStore | PostgresStore, case: Case, size: int) -> None:
    runs = []
    for _ in range(RUNS):
        ready = list(itertools.islice(batches(case, size), EVENTS // size))

        def write(ready: list[list[Event]] = ready) -> None:
            for batch in ready:
                store.append(batch, boot=name)

        runs.append(once(write, EVENTS))
    report(name, runs)
    store.close()


def spin() -> None:
    for _ in range(SPIN):
        pass


async def busy(recorder: Recorder | None, case: Case) -> None:
    """A loop that makes an event in each pass, also without a recorder, and calls the system as loops do."""
    reading, writing = os.pipe()
    for number in range(EVENTS):
        spin()
        event = case.closing_event()
        if recorder is not None:
            recorder.complete(event)
        if number % 4 == 0:
            os.write(writing, b".")
            os.read(reading, 1)
            await trio.lowlevel.checkpoint()
    os.close(reading)
    os.close(writing)


async def beside_a_busy_loop(folder: Path, case: Case) -> None:
    extra: dict[str, list[float]] = defaultdict(list)
    for number in range(RUNS):
        began_s = time.process_time()
        await busy(None, case)
        without_s = time.process_time() - began_s
        measured: dict[str, AuditStore | PostgresStore] = {"queue": NullStore(folder / f"null-{number}.db")}
        for where, store in stores(folder, f"busy-{number}").items():
            measured[f"whole trail{where}"] = store
        for name, kept in measured.items():
            async with open_recorder(kept) as recorder:
                began_s = time.process_time()
                await busy(recorder, case)
                await recorder.flush()
                extra[name].append((time.process_time() - began_s - without_s) * 1e6 / EVENTS)
            kept.close()
    for name, runs in extra.items():
        report(f"(d+e) beside a busy loop: {name}", runs)


async def main() -> None:
    case = Case()
    closing = case.closing_event()
    masks, patterned = Masks(), Masks(["password=.*"])
    measure("new_eid", new_eid)
    measure("(c) building the closing event", case.closing_event)
    measure("(e) its own part as JSON", lambda: own_part(closing))
    measure("(e) masks, nothing configured", lambda: masks.apply(closing))
    measure("(e) masks, one pattern configured", lambda: patterned.apply(closing))
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        store = NullStore(folder / "queue.db")
        async with open_recorder(store) as recorder:
            queue = repeated(lambda: recorder.complete(closing), 1000)
            runs = []
            for _ in range(RUNS):
                runs.append(once(queue, 1000))
                await recorder.flush()
            report("(d) recorder.complete", runs)
        store.close()
        store_alone(folder, case)
        await beside_a_busy_loop(folder, case)


if __name__ == "__main__":
    trio.run(main)
