"""What an audit event costs: `python benchmarks/audit_events.py [EVENTS] [FOLDER] [URL]`.

FOLDER is on the disk to measure, and so is the PostgreSQL database of URL, if it is given. Prints, for 1, 16
and 64 tasks that each wait for their intents, for completions, which no task waits for, and for the store
alone: events per second, CPU µs an event (making the event and both threads of this process), and commits per
second. benchmarks/README.md has the figures.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from audit.ids import new_eid
from audit.postgres.store import PostgresStore
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
    utc,
)
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.shares import Agent
from audit.store import AuditStore

WAITING_TASKS = (1, 16, 64)


class CountingStore:
    """Counts the commits of a store."""

    def __init__(self, store: AuditStore | PostgresStore) -> None:
        self.commits = 0
        self._append = store.append
        self.append_once, self.close_unknown, self.close = store.append_once, store.close_unknown, store.close

    def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        self.commits += 1
        return self._append(batch, boot=boot)


def event(phase: Phase) -> Event:
    return Event(
        eid=new_eid(),
        kind=Kind.CALL,
        phase=phase,
        ts=utc(time.time()),
        org="acme",
        actor=Actor(ActorType.AGENT, "robot", "0199a1b2", "ann", ("sre",), "access-token", new_eid()),
        client=Client("10.0.0.9", "kubectl/v1.37.0 (linux/amd64) kubernetes/8f1cd3a", "tunnel"),
        cluster=Cluster("0199a1b3", "prod"),
        req=Request("PATCH", "/api/v1/namespaces/app/configmaps/settings?fieldManager=kubectl-edit", "patch"),
        impersonated=Impersonated("agent:robot", ("acme/sre",), {"hawse.dev/session": ("key-1",)}),
        decision=Decision("allow", "granted", "granted"),
    )


async def intents(recorder: Recorder, number: int, tasks: int) -> None:
    async def one() -> None:
        for _ in range(number // tasks):
            await recorder.intent(event(Phase.INTENT))

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(one)


async def completions(recorder: Recorder, number: int) -> None:
    for sent in range(0, number, 16):
        # As in a busy hub: a few events, then other tasks run.
        await trio.lowlevel.checkpoint()
        for _ in range(16):
            recorder.complete(event(Phase.COMPLETE))
        if sent % 1024 == 0:
            await recorder.flush()
    await recorder.flush()


async def measure(
    name: str,
    store: AuditStore | PostgresStore,
    number: int,
    work: Callable[[Recorder, int], Awaitable[None]],
) -> None:
    counting = CountingStore(store)
    async with open_recorder(counting) as recorder:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await work(recorder, number)
        report(name, number, began_s, cpu_s, counting.commits)
    store.close()


def report(name: str, number: int, began_s: float, cpu_s: float, commits: int) -> None:
    took_s = time.perf_counter() - began_s
    cpu_us = (time.process_time() - cpu_s) * 1e6 / number
    print(f"{name:<28} {number / took_s:8.0f} events/s {cpu_us:7.1f} µs {commits / took_s:7.0f} commits/s")


def measure_alone(name: str, store: AuditStore | PostgresStore, number: int) -> None:
    batches = [[event(Phase.COMPLETE) for _ in range(64)] for _ in range(number // 64)]
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for batch in batches:
        store.append(batch, boot="alone")
    report(name, number, began_s, cpu_s, number // 64)
    store.close()


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    url = sys.argv[3] if len(sys.argv) > 3 else None
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        engines: list[tuple[str, Callable[[str], AuditStore | PostgresStore]]] = [
            ("", lambda file: AuditStore(Path(name) / f"{file}.db"))
        ]
        if url is not None:
            engines.append((" in PostgreSQL", lambda _: PostgresStore(lambda: url)))
        for tasks in WAITING_TASKS:
            for where, make in engines:
                store = make(f"intents-{tasks}")
                trio.run(measure, f"intents x{tasks}{where}", store, number, partial(intents, tasks=tasks))
        for where, make in engines:
            trio.run(measure, f"completions{where}", make("completions"), number, completions)
        for where, make in engines:
            measure_alone(f"store, by 64{where}", make("alone"), number)


if __name__ == "__main__":
    main()
