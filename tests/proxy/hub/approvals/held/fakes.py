"""Requests in memory, a preview that says what the test wants, and a bench with a rule that asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import attrs
import trio

from auth.policy.ask import Ask
from auth.policy.text import Source
from proxy.hub.approvals.held.held_calls import HeldCalls
from proxy.hub.approvals.held.parts import Parts
from proxy.hub.approvals.plan.body import BodyBudget
from proxy.hub.approvals.preview.effect import Effect
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.view import View
from proxy.hub.calls.live import LiveCall
from proxy.hub.store.engines.errors import StoreUnavailableError
from tests.proxy.hub.calls.bench import Bench, open_bench, relay_of
from tunnel import Session

APPROVER = "eve@example.com"


@attrs.define(eq=False)
class FakeRequests:
    """The requests of one hub (RequestRows)."""

    rows: dict[str, Request] = attrs.Factory(dict)
    log: list[str] = attrs.Factory(list)
    """The transitions, in order."""
    away: bool = False
    """The store cannot be reached."""
    lose_use: bool = False
    """Another hub takes the grant first."""
    using: trio.Event | None = None
    """Set: a use waits for it, as for a slow commit."""
    uses: int = 0
    """How many have waited for it."""
    events: dict[str, trio.Event] = attrs.Factory(dict)
    listeners: list[object] = attrs.Factory(list)

    async def find(self, agent_id: str, plan: str) -> Request | None:
        await self._checkpoint()
        mine = [row for row in self.rows.values() if (row.new.agent_id, row.new.plan) == (agent_id, plan)]
        found = [row for row in mine if row.state.open]
        found += [row for row in mine if row.state in {State.DENIED, State.USED}]
        return found[0] if found else None

    async def open(self, new: NewRequest, *, eid: str = "") -> Request:
        found = await self.find(new.agent_id, new.plan)
        if found is not None:
            return found
        row = Request(f"req-{len(self.rows) + 1}", new, State.PENDING, 0, 0.0, 3600.0)
        self.rows[row.id] = row
        self.log.append(f"open {row.id}")
        return row

    async def use(self, request_id: str) -> bool:
        await self._checkpoint()
        if self.using is not None:
            self.uses += 1
            with trio.CancelScope(shield=True):
                await self.using.wait()
        if self.lose_use or self.rows[request_id].state is not State.APPROVED:
            return False
        self.change(request_id, State.USING)
        return True

    async def give_back(self, request_id: str) -> bool:
        self.change(request_id, State.APPROVED, returned=1)
        return True

    async def spend(self, request_id: str) -> None:
        self.change(request_id, State.USED)

    async def end(self, request_id: str, state: State, why: str) -> bool:
        await self._checkpoint()
        if self.rows[request_id].state not in {State.PENDING, State.APPROVED}:
            return False
        self.change(request_id, state, because=why)
        return True

    async def every_open(self) -> Sequence[Request]:
        await self._checkpoint()
        return [row for row in self.rows.values() if row.state in {State.PENDING, State.APPROVED}]

    def changed(self, request: Request) -> trio.Event:
        if self.rows[request.id].changes != request.changes:
            event = trio.Event()
            event.set()
            return event
        return self.events.setdefault(request.id, trio.Event())

    def revoked(self, request_id: str) -> bool:
        return self.rows[request_id].state is State.REVOKED

    # -- for the test

    @property
    def states(self) -> list[State]:
        return [row.state for row in self.rows.values()]

    def approve(self, request_id: str = "req-1") -> None:
        self.change(request_id, State.APPROVED, by=APPROVER)

    def deny(self, because: str, request_id: str = "req-1") -> None:
        self.change(request_id, State.DENIED, answer=because)

    def change(
        self,
        request_id: str,
        state: State,
        *,
        by: str = "",
        answer: str = "",
        because: str = "",
        returned: int = 0,
    ) -> None:
        row = self.rows[request_id]
        self.log.append(f"{row.state}→{state} {request_id}")
        self.rows[request_id] = attrs.evolve(
            row,
            state=state,
            decided_by=by or row.decided_by,
            answer=answer or row.answer,
            because=because,
            uses_returned=row.uses_returned + returned,
            changes=row.changes + 1,
        )
        event = self.events.pop(request_id, None)
        if event is not None:
            event.set()

    async def _checkpoint(self) -> None:
        if self.away:
            raise StoreUnavailableError("the database is away")
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class FakePreviews:
    """Previews without any request (PreviewMaker)."""

    effect: str = "effect"
    refused: PreviewRefused | None = None
    made: int = 0
    gate: trio.Event | None = None
    """Set: each preview waits for it."""
    running: int = 0
    most: int = 0
    """The most that ran at once."""

    async def preview(
        self, live: LiveCall, body: bytes, ask: Ask, *, like: str = ""
    ) -> Preview | PreviewRefused:
        self.made += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.lowlevel.checkpoint()
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.running -= 1
        effect = str(Effect.of(b"s" * 16, self.effect))
        return self.refused or Preview(effect, View(summary="deletes it"))


POLICY = """
    apiVersion: hawse.dev/v1
    kind: Policy
    metadata: {name: careful}
    spec:
      bind: {teams: [sre]}
      rules:
        - id: risky
          effect: ask
          verbs: [delete, create, patch, get]
          resources: ["*", "*/*"]
          namespaces: [dev]
          obligations: {maxDuration: 60s}
          reason: look first
          ask: {approvers: [eve@example.com], wait: 45s, interactive: true}
"""


def policy_of(text: str = POLICY) -> list[Source]:
    return [Source(dedent(text), "careful.yaml")]


@attrs.define(eq=False)
class HeldBench:
    """A hub with a relay, and fakes of what an approval needs."""

    hub: Bench
    relay: Session
    requests: FakeRequests
    previews: FakePreviews
    held: HeldCalls

    async def apply(self, text: str = POLICY) -> None:
        sources = policy_of(text)
        await self.hub.directory.change(lambda store: store.apply_policies(sources))


@asynccontextmanager
async def open_held_bench(folder: Path, *, with_task: bool, streams: int = 20) -> AsyncIterator[HeldBench]:
    requests, previews = FakeRequests(), FakePreviews()
    async with (
        open_bench(folder, with_task=with_task, streams=streams) as hub,
        relay_of(hub) as relay,
        trio.open_nursery() as nursery,
    ):
        parts = Parts(hub.calls, requests, previews, BodyBudget(2 * 1024 * 1024), nursery)
        held = HeldCalls(parts)
        hub.calls.asked = held
        bench = HeldBench(hub, relay, requests, previews, held)
        await bench.apply()
        yield bench
        assert parts.slots.count == 0
        assert parts.budget.held_bytes == 0
        assert not parts.using
        nursery.cancel_scope.cancel()
