"""A preview that says what the test wants, and a bench with a rule that asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
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
from proxy.hub.approvals.view import View
from proxy.hub.calls.live import LiveCall
from tests.fakes.requests import FakeRequests
from tests.proxy.hub.calls.bench import Bench, open_bench, relay_of
from tunnel import Session


@attrs.define(eq=False)
class FakePreviews:
    """Previews without any request (PreviewMaker)."""

    effect: str = "effect"
    refused: PreviewRefused | None = None
    made: int = 0
    meanwhile: Callable[[], object] = object
    """Called during each."""

    async def preview(
        self, live: LiveCall, body: bytes, ask: Ask, *, like: str = ""
    ) -> Preview | PreviewRefused:
        self.made += 1
        await trio.lowlevel.checkpoint()
        self.meanwhile()
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
