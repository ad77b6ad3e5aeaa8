"""A hub that is stopped for longer than its lease, and let go on."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from audit.postgres.reader import PostgresReader
from tests.fakes.apiserver import Exchange
from tests.faults.figures import note
from tests.faults.hub_on_postgres import HubOnPostgres, hub_on_postgres
from tests.faults.second_hub import start_second_hub
from tests.system.disk import hold
from tests.system.raw import V5, Talk
from tests.system.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

STOPPED_S = 90.0
# From the last renewal, which may be 2 s before the stop.
DEAD_S = 75.0
ASKED_S = 30.0
"""When requests are sent to the stopped hub; their tokens are valid for 60 s."""
ENDS_WITHIN_S = 10.0
LOST_LEASE = 4


def _events(exchange: Exchange) -> None:
    """A watch with an event each second."""
    exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with suppress(OSError, ValueError):
        while True:
            exchange.send(b"3\r\n{}\n\r\n")
            if exchange.wait_gone(1.0):
                return


def _wait(exchange: Exchange) -> None:
    """A write that is not answered."""
    exchange.wait_gone(2 * STOPPED_S)


def phases(hub: HubOnPostgres) -> dict[str, Counter[str]]:
    """The phases of each call of an agent in the trail."""
    found: dict[str, Counter[str]] = {}
    with closing(PostgresReader(lambda: hub.server.url)) as reader:
        for stored in reader.events(*reader.span()):
            event = json.loads(stored.line)
            if event["kind"] == "call":
                found.setdefault(event["eid"], Counter())[event["phase"]] += 1
    return found


def test_a_hub_that_was_stopped_serves_nothing_writes_no_second_end_and_exits(tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(hub_on_postgres(tmp_path))
        first = hub.chain.world.hub
        assert first is not None
        second, _ = start_second_hub(hub.world)
        client = hub.client

        def begin(head: bytes) -> Talk:
            return stack.enter_context(client.talk(head))

        watch_path, watch_mark = hub.chain.path(_events, "?watch=1")
        exec_path, _ = hub.chain.exec_path(hold)
        write_path, write_mark = hub.chain.path(_wait)
        streams = [begin(client.head(watch_path)), begin(client.upgrade(exec_path, V5))]
        assert [talk.answer(body=False).status for talk in streams] == [200, 101]
        write = begin(client.head(write_path, "Content-Length: 2", method="PUT") + b"{}")
        wait_until(lambda: hub.chain.server.seen(write_mark))
        # A read has a first row once it lasts this long.
        wait_until(lambda: Counter(start=1) in phases(hub).values())
        asked = [client.head(watch_path.replace("?watch=1", "")) for _ in range(3)]
        talks = [begin(b"") for _ in asked]

        first.process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(ASKED_S)
        for talk, head in zip(talks, asked, strict=True):
            talk.send(head)
        wait_until(lambda: "is dead: its lease" in second.log.read_text(), DEAD_S)
        dead_s = time.monotonic() - stopped
        wait_until(lambda: "closed calls of a dead hub" in second.log.read_text(), ENDS_WITHIN_S)
        time.sleep(max(0.0, stopped + STOPPED_S - time.monotonic()))
        for talk in (*streams, write):
            _drain(talk)
        before = phases(hub)
        served = len(hub.chain.server.seen(watch_mark))

        first.process.send_signal(signal.SIGCONT)
        went_on = time.monotonic()
        status = first.process.wait(ENDS_WITHIN_S)
        exit_s = time.monotonic() - went_on
        received = [talk.rest(ENDS_WITHIN_S) for talk in (*streams, write, *talks)]

        assert status == LOST_LEASE
        assert "this hub ends its calls and exits: the lease of this hub had ended" in first.log.read_text()
        assert DEAD_S - 3 < dead_s < DEAD_S + 6
        # Neither a byte of a stream, nor a call.
        assert received[:2] == [b"", b""]
        assert all(b"200 " not in each.split(b"\r\n")[0] for each in received[2:]), received
        assert len(hub.chain.server.seen(watch_mark)) == served
        after = phases(hub)
        ends = [sum(found[end] for end in ("complete", "unknown")) for found in after.values()]
        assert before == {eid: after[eid] for eid in before}
        assert set(ends) == {1}, after
        assert sum(found["unknown"] for found in after.values()) == 3
        assert "events lost at the end" not in first.log.read_text()
        note(
            "a hub stopped for 90 s beside another one",
            "SIGSTOP, SIGCONT",
            dead_s=round(dead_s, 1),
            exit_s=round(exit_s, 2),
            calls=len(after),
        )


def _drain(talk: Talk) -> None:
    """Receive what came before."""
    with suppress(TimeoutError):
        while talk.more(0.2):
            pass
    talk.received.clear()
