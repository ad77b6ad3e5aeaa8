"""What an audit event costs: `python benchmarks/audit_events.py [EVENTS] [FOLDER]`.

FOLDER is on the disk to measure. Prints, for 1, 16 and 64 tasks that each wait for their intents, for
completions, which no task waits for, and for the store alone: events per second, CPU µs an event (making the
event and both threads), and commits per second. benchmarks/README.md has the figures.
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
from audit.recorder import Recorder, open_recorder
from audit.shares import Agent
from audit.store import AuditStore

WAITING_TASKS = (1, 16, 64)


class CountingStore(AuditStore):
    """Counts its commits."""

    commits = 0

    def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        self.commits += 1
        return super().append(batch, boot=boot)


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
    name: str, folder: Path, number: int, work: Callable[[Recorder, int], Awaitable[None]]
) -> None:
    store = CountingStore(folder / f"{name.replace(' ', '-')}.db")
    async with open_recorder(store) as recorder:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await work(recorder, number)
        report(name, number, began_s, cpu_s, store.commits)
    store.close()


def report(name: str, number: int, began_s: float, cpu_s: float, commits: int) -> None:
    took_s = time.perf_counter() - began_s
    cpu_us = (time.process_time() - cpu_s) * 1e6 / number
    print(f"{name:<16} {number / took_s:8.0f} events/s {cpu_us:7.1f} µs {commits / took_s:7.0f} commits/s")


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        folder = Path(name)
        for tasks in WAITING_TASKS:
            trio.run(measure, f"intents x{tasks}", folder, number, partial(intents, tasks=tasks))
        trio.run(measure, "completions", folder, number, completions)
        store = AuditStore(folder / "alone.db")
        batch = [event(Phase.COMPLETE) for _ in range(64)]
        began_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(number // 64):
            store.append(batch)
        report("store, by 64", number, began_s, cpu_s, number // 64)
        store.close()


if __name__ == "__main__":
    main()
