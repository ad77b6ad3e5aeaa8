"""Webhooks of real hubs' stores at a real receiver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import trio

from proxy.hub.approvals.requests import outbox
from proxy.hub.approvals.webhook.sender import LEASE_S
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.audit.eventually import eventually
from tests.fakes.databases import run
from tests.proxy.hub.approvals.requests.bench import new_request, opened, populate
from tests.proxy.hub.approvals.webhook.hubs import hub


def waiting(location: Location) -> int:
    rows = run(location, "select count(*) from outbox")
    return int(rows[0][0])


async def test_what_becomes_of_a_request_is_told(database, receiver, webhook_at):
    snapshot = populate(database)
    async with hub(database, snapshot, webhook_at(receiver)) as requests:
        request = await requests.open(new_request(snapshot))
        await eventually(lambda: len(receiver.posted) == 1)
        await requests.decide(
            request.id, approve=True, by="ann@example.com", answer="", shown=request.new.shown
        )
        await eventually(lambda: len(receiver.posted) == 2)
    first, second = (json.loads(each.body) for each in receiver.posted)
    assert [first["type"], second["type"]] == ["request.opened", "request.approved"]
    assert first["request"]["agent"] == "robot0"
    assert first["request"]["cluster"] == "prod"
    assert first["request"]["url"] == f"https://console.example/requests/{request.id}"
    assert second["request"]["decided_by"] == "ann@example.com"
    assert b"replicas" not in b"".join(each.body for each in receiver.posted)


async def test_of_two_hubs_one_sends(database, receiver, webhook_at):
    snapshot = populate(database)
    webhook = webhook_at(receiver)
    async with hub(database, snapshot, webhook) as one, hub(database, snapshot, webhook, boot="b") as two:
        for number in range(12):
            await (one, two)[number % 2].open(new_request(snapshot, number))
        await eventually(lambda: len(receiver.posted) >= 12)
        await eventually(lambda: waiting(database) == 0)
    assert Counter(Counter(each.id for each in receiver.posted).values()) == {1: 12}


async def test_one_that_hangs_delays_neither_requests_nor_the_other(
    database, receiver, other_receiver, webhook_at
):
    receiver.answer = receiver.hang
    snapshot = populate(database)
    both = webhook_at(receiver), webhook_at(other_receiver, name="other")
    async with hub(database, snapshot, *both) as requests:
        took = []
        for number in range(8):
            began = time.monotonic()
            await requests.open(new_request(snapshot, number))
            took.append(time.monotonic() - began)
        await eventually(lambda: len(other_receiver.posted) == 8)
        assert len(receiver.posted) <= 1
    # It would be 5 s each.
    assert max(took) < 3


def test_a_webhook_that_is_configured_no_more_is_forgotten_after_a_day(database):
    snapshot = populate(database)
    with opened(database, webhooks=("removed",)) as table:
        table.open(new_request(snapshot), serves="eid")
        table.tidy()
        assert waiting(database) == 1
        age(database, outbox.KEPT_S + 1)
        table.tidy()
        assert waiting(database) == 0


def age(location: Location, seconds: float) -> None:
    """Let time pass for what waits to be sent."""
    run(location, f"update outbox set created_at = created_at - {seconds}, due_at = due_at - {seconds}")


# A hub of its own: it opens a request, and sends what there is to send.
_PROCESS = """
import sys, trio
from pathlib import Path
from contextlib import closing
from proxy.hub.home.sections.webhook import WebhookConfig
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from tests.proxy.hub.approvals.requests.bench import new_request
from tests.proxy.hub.approvals.webhook.hubs import hub

place, url, secret, ca = sys.argv[1:]
location = PostgresAddress(place) if place.startswith("postgresql:") else Path(place)
webhook = WebhookConfig("on-call", url, "json", Path(secret), Path(ca), True)

async def main():
    with closing(Store(location, org="acme", clock=lambda: 1000.0)) as store:
        snapshot = store.snapshot()
    async with hub(location, snapshot, webhook, boot="killed") as requests:
        await requests.open(new_request(snapshot))
        await trio.sleep(60)

trio.run(main)
"""


async def test_a_message_whose_hub_was_killed_before_it_noted_it_is_sent_again(
    database, receiver, webhook_at
):
    snapshot = populate(database)
    webhook = webhook_at(receiver)
    place = database.url if isinstance(database, PostgresAddress) else str(database)
    argv = [place, webhook.url, str(webhook.secret_file), str(webhook.ca_file)]
    process = subprocess.Popen([sys.executable, "-c", _PROCESS, *argv], cwd=Path(__file__).parents[5])
    with process:
        # The hub is killed when its message has arrived, and has no answer yet.
        receiver.answer = partial(_kill, process)
        await trio.to_thread.run_sync(process.wait)
    assert process.returncode == -signal.SIGKILL
    assert len(receiver.posted) == 1
    receiver.answer = lambda _: (200, {})
    async with hub(database, snapshot, webhook):
        await trio.sleep(0.2)
        # Until the claim of the dead hub ends, no other hub sends.
        assert len(receiver.posted) == 1
        await trio.to_thread.run_sync(age, database, LEASE_S)
        await eventually(lambda: len(receiver.posted) == 2)
        await eventually(lambda: waiting(database) == 0)
    first, second = receiver.posted
    assert (first.id, first.body) == (second.id, second.body)


def _kill(process: subprocess.Popen[bytes], _: object) -> tuple[int, dict[str, str]]:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return 200, {}
