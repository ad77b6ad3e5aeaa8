from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
from prometheus_client import CollectorRegistry

from proxy.hub.approvals.request import Request
from proxy.hub.approvals.requests.outbox import OPENED, Delivery
from proxy.hub.approvals.webhook.message import Message
from proxy.hub.approvals.webhook.metrics import WebhookMetrics
from proxy.hub.approvals.webhook.send import SendFailedError
from proxy.hub.approvals.webhook.sender import ATTEMPTS_MAX, LEASE_S, PAUSE_S, POLL_S, RETRY_S, Sender
from proxy.hub.home.sections.webhook import WebhookConfig
from proxy.hub.store.engines.errors import StoreUnavailableError
from tests.proxy.hub.approvals.webhook.requests import REQUEST

Listener = Callable[[frozenset[str]], None]


@attrs.define(eq=False)
class FakeOutbox:
    """Rows in memory, on trio's clock."""

    due: dict[str, float] = attrs.Factory(dict)
    """When each is due."""
    attempts: dict[str, int] = attrs.Factory(dict)
    away: bool = False
    listeners: list[Listener] = attrs.Factory(list)

    def add(self, *names: str) -> None:
        for name in names:
            self.due[name], self.attempts[name] = trio.current_time(), 0
        for listener in self.listeners:
            listener(frozenset(names))

    async def claim(self, webhook: str, lease_s: float) -> Delivery | None:
        await self._answer()
        for name, due_at in self.due.items():
            if due_at <= trio.current_time():
                self.due[name] = trio.current_time() + lease_s
                self.attempts[name] += 1
                return Delivery(name, webhook, OPENED, REQUEST, self.attempts[name])
        return None

    async def delivered(self, delivery: Delivery) -> None:
        await self._answer()
        del self.due[delivery.id]

    async def retry(self, delivery: Delivery, after_s: float) -> None:
        await self._answer()
        self.due[delivery.id] = trio.current_time() + after_s

    def on_change(self, listener: Listener) -> None:
        self.listeners.append(listener)

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailableError("the store is away")


@attrs.define(eq=False)
class Bench:
    """A sender, and what it has sent, with the times."""

    outbox: FakeOutbox = attrs.Factory(FakeOutbox)
    sent: list[tuple[str, float]] = attrs.Factory(list)
    bodies: list[bytes] = attrs.Factory(list)
    failure: str = ""
    takes_s: float = 0.0
    metrics: WebhookMetrics = attrs.field(factory=lambda: WebhookMetrics(["on-call"]))
    began_s: float = attrs.field(factory=trio.current_time)

    def sender(self, **changes: Any) -> Sender:
        webhook = WebhookConfig("on-call", "https://hooks.example/hunter2", **changes)
        sender = Sender(webhook, self.send, self.outbox, message_of, self.metrics)
        self.outbox.on_change(sender.wake)
        return sender

    async def send(self, message_id: str, body: bytes) -> None:
        self.sent.append((message_id, trio.current_time() - self.began_s))
        self.bodies.append(body)
        await trio.sleep(self.takes_s)
        if self.failure:
            raise SendFailedError(self.failure)

    def counts(self) -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(self.metrics)
        value = registry.get_sample_value
        return {
            outcome: value("hawse_webhook_attempts_total", {"webhook": "on-call", "outcome": outcome}) or 0.0
            for outcome in ("delivered", "failed", "dropped")
        }


def message_of(event: str, request: Request) -> Message:
    return Message(event, request, "robot", "prod", "https://console.example/requests/r1")


async def test_messages_are_sent_as_they_come_and_deleted(nursery, autojump_clock):
    bench = Bench()
    nursery.start_soon(bench.sender().run)
    await trio.sleep(1)
    bench.outbox.add("m1", "m2")
    await trio.sleep(0.001)
    assert [name for name, _ in bench.sent] == ["m1", "m2"]
    assert bench.outbox.due == {}
    await trio.sleep(100)
    assert len(bench.sent) == 2
    assert bench.counts() == {"delivered": 2, "failed": 0, "dropped": 0}


@pytest.mark.parametrize(("form", "key"), [("json", "type"), ("slack", "blocks")])
async def test_the_format_makes_the_body(nursery, autojump_clock, form, key):
    bench = Bench()
    nursery.start_soon(bench.sender(format=form).run)
    bench.outbox.add("m1")
    await trio.sleep(1)
    assert key in json.loads(bench.bodies[0])


async def test_retries_end(nursery, autojump_clock, caplog):
    bench = Bench(failure="hooks.example answered 500")
    nursery.start_soon(bench.sender().run)
    bench.outbox.add("m1")
    await trio.sleep(3600)
    assert len(bench.sent) == ATTEMPTS_MAX
    times = [at for _, at in bench.sent]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    for number, gap in enumerate(gaps):
        assert RETRY_S * 2**number <= gap <= RETRY_S * 2**number + PAUSE_S + POLL_S
    # Most requests still wait for their approval then.
    assert times[-1] < 15 * 60
    assert bench.outbox.due == {}
    assert bench.counts() == {"delivered": 0, "failed": ATTEMPTS_MAX - 1, "dropped": 1}
    first, last = caplog.records[0], caplog.records[-1]
    assert first.getMessage() == (
        "webhook on-call: attempt 1 of 8 failed: hooks.example answered 500; the next is in 5 s"
    )
    assert last.levelno == logging.ERROR
    assert last.getMessage() == (
        "webhook on-call: gave up after 8 attempts: hooks.example answered 500. It was not sent: "
        "request r1 (opened)"
    )
    assert "hunter2" not in caplog.text


async def test_a_message_that_hubs_died_of_is_dropped_unsent(nursery, autojump_clock):
    bench = Bench()
    bench.outbox.add("m1")
    bench.outbox.attempts["m1"] = ATTEMPTS_MAX
    nursery.start_soon(bench.sender().run)
    await trio.sleep(1)
    assert (bench.sent, bench.outbox.due) == ([], {})


async def test_a_failure_lets_the_other_messages_wait_but_not_fail(nursery, autojump_clock):
    bench = Bench(failure="no answer", takes_s=5)
    nursery.start_soon(bench.sender().run)
    bench.outbox.add("m1", "m2", "m3")
    await trio.sleep(12)
    # Attempts are as far apart as they take, and PAUSE_S more.
    assert [at for _, at in bench.sent] == [0, 5 + PAUSE_S]
    bench.failure, bench.takes_s = "", 0
    await trio.sleep(60)
    assert bench.outbox.due == {}


async def test_one_that_hangs_delays_no_other(nursery, autojump_clock):
    hanging, quick = Bench(failure="no answer", takes_s=5), Bench()
    for bench in (hanging, quick):
        nursery.start_soon(bench.sender().run)
    await trio.sleep(1)
    for bench in (hanging, quick):
        bench.outbox.add("m1", "m2", "m3")
    await trio.sleep(0.01)
    assert len(quick.sent) == 3
    assert len(hanging.sent) == 1


async def test_a_store_that_is_away_is_waited_for(nursery, autojump_clock):
    bench = Bench()
    nursery.start_soon(bench.sender().run)
    bench.outbox.away = True
    bench.outbox.add("m1")
    await trio.sleep(30)
    assert bench.sent == []
    bench.outbox.away = False
    await trio.sleep(POLL_S)
    assert len(bench.sent) == 1


async def test_a_message_whose_end_could_not_be_written_is_sent_again(nursery, autojump_clock):
    bench = Bench(takes_s=1)
    nursery.start_soon(bench.sender().run)
    bench.outbox.add("m1")
    await trio.sleep(0.5)
    bench.outbox.away = True
    await trio.sleep(1)
    bench.outbox.away = False
    await trio.sleep(LEASE_S + POLL_S)
    assert [name for name, _ in bench.sent] == ["m1", "m1"]
    assert bench.outbox.due == {}
