"""The simulations of this hub: one runs at a time, some wait, and the last results are kept in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import NoReturn

import attrs
import trio

from audit.ids import new_eid
from proxy.hub.admin.simulation.job import Job, Outcome, Progress
from proxy.hub.store.engines.errors import ConflictError, NotFoundError

# Operators who try policies at the same time. Each waits for those before.
UNFINISHED_MAX = 4
# An operator compares a few attempts. A result has 2 MB at most.
KEPT_MAX = 16
# Some ten million calls. A longer one has a span that its operator did not mean.
SIMULATION_S_MAX = 600.0

Work = Callable[[Job, Callable[[Progress], None]], Awaitable[Outcome]]
"""Runs one simulation, and tells its progress; cancellation ends it at once."""


class State(StrEnum):
    """The state of a simulation."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@attrs.define(eq=False)
class Running:
    """One simulation of this hub."""

    id: str
    operator: str
    policies: tuple[str, ...]
    """Names of the proposed ones."""
    since: float
    agent: str
    cluster: str
    created_at: float
    _job: Job | None
    """None once it has ended: it has the facts of all agents."""
    state: State = State.WAITING
    ended_at: float | None = None
    progress: Progress = attrs.Factory(lambda: Progress(0, 0))
    outcome: Outcome = attrs.Factory(Outcome)
    ended: trio.Event = attrs.Factory(trio.Event)
    _scope: trio.CancelScope = attrs.Factory(trio.CancelScope)

    def cancel(self, now: float) -> None:
        """Cancel it; raises ConflictError if it has ended."""
        if self.ended_at is not None:
            raise ConflictError(f"the simulation has ended already: it is {self.state}")
        self._end(State.CANCELLED, now)
        self._scope.cancel()

    async def run(self, work: Work, clock: Callable[[], float]) -> None:
        """Run it, unless it was cancelled before."""
        if self._job is None:
            return
        self.state = State.RUNNING
        with self._scope:
            outcome = Outcome(
                message=f"it took longer than {SIMULATION_S_MAX:.0f} s: use a shorter span, or --agent"
            )
            with trio.move_on_after(SIMULATION_S_MAX):
                outcome = await work(self._job, self._note)
            # It may have been cancelled while its process ended.
            if self.ended_at is None:
                self.outcome = outcome
                self._end(State.FAILED if outcome.result is None else State.DONE, clock())

    def _note(self, progress: Progress) -> None:
        self.progress = progress

    def _end(self, state: State, now: float) -> None:
        self.state, self.ended_at, self._job = state, now, None
        self.ended.set()


class Simulations:
    """Queues, runs and keeps simulations; `run` is a task of its owner's."""

    def __init__(self, work: Work, clock: Callable[[], float], hub: str = "") -> None:
        self.hub = hub
        """The id of this hub among those of its database; "" on SQLite."""
        self._work = work
        self._clock = clock
        self._kept: dict[str, Running] = {}
        self._wanted = trio.Event()

    async def run(self) -> NoReturn:
        """Run the simulations, one after the other."""
        while True:
            waiting = next((each for each in self._kept.values() if each.state is State.WAITING), None)
            if waiting is None:
                self._wanted = trio.Event()
                await self._wanted.wait()
            else:
                await waiting.run(self._work, self._clock)

    def start(self, job: Job, operator: str, policies: Sequence[str]) -> Running:
        """Queue a simulation; raises ConflictError if too many have not ended."""
        unfinished = [each for each in self._kept.values() if each.ended_at is None]
        if len(unfinished) >= UNFINISHED_MAX:
            raise ConflictError(
                f"{len(unfinished)} simulations wait or run already: wait for one, or cancel one "
                f"(the first is of {unfinished[0].operator})"
            )
        started = Running(
            new_eid(), operator, tuple(policies), job.since, job.agent, job.cluster, self._clock(), job
        )
        self._kept[started.id] = started
        self._wanted.set()
        for old in list(self._kept.values())[:-KEPT_MAX]:
            if old.ended_at is not None:
                del self._kept[old.id]
        return started

    def get(self, simulation_id: str) -> Running:
        """Return one of the last simulations; raises NotFoundError."""
        found = self._kept.get(simulation_id)
        if found is None:
            others = "; of several hubs, only the one that began it has it" if self.hub else ""
            raise NotFoundError(
                f"this hub has no such simulation: it keeps its last {KEPT_MAX}, until it stops{others}"
            )
        return found

    def cancel(self, simulation_id: str) -> Running:
        """Cancel one; raises NotFoundError, and ConflictError if it has ended."""
        found = self.get(simulation_id)
        found.cancel(self._clock())
        return found

    def all(self) -> list[Running]:
        """Return those that are kept, the newest first."""
        return [*reversed(self._kept.values())]
