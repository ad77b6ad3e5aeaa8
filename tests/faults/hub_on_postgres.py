"""Hub, relays and a scripted API server, with a PostgreSQL that fails behind a link that fails.

clients ──▶ hub ──▶ relays ──▶ API server
             └──link──▶ PostgreSQL
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import attrs

from audit.postgres.reader import PostgresReader
from tests.fakes.apiserver import Exchange
from tests.faults.control import Link, open_proxy
from tests.faults.postgres import FaultyPostgres, faulty_postgres
from tests.faults.traffic import NAMED, PREFIX, Traffic
from tests.system.chain import Chain, open_chain
from tests.system.disk import hold
from tests.system.raw import V5, RawClient, Talk
from tests.system.world import World

# What an end takes to come through threads and processes.
GRACE_S = 2.0
# Nothing of one agent's limits is tested here.
LIMITS = "[limits]\nrequests_per_second = 0\ncancels_per_second = 0\naudit_bytes_per_second = 0\n"
HELD_S = 120.0
# The ends of calls are written together, and after an outage in many batches.
ENDS_WITHIN_S = 10.0
WRITE, READ = Counter({"intent": 1, "complete": 1}), Counter({"complete": 1})


@attrs.define(eq=False)
class OnPostgres:
    """All that runs: a chain whose hub, or hubs, are on a PostgreSQL that fails."""

    chain: Chain
    server: FaultyPostgres
    whole: tuple[Counter[str], ...] = (WRITE, READ)
    """The phases that a call may have in the trail."""
    ends_within_s: float = ENDS_WITHIN_S

    @property
    def world(self) -> World:
        return self.chain.world

    @property
    def client(self) -> RawClient:
        return self.chain.client("tunnel")

    def moved(self) -> dict[str, Exchange]:
        """The calls of the traffic that the API server has seen, by the object's name."""
        return {
            each.target.removeprefix(PREFIX): each
            for each in list(self.chain.server.all_exchanges)
            if each.target.startswith(PREFIX)
        }

    def check_trail(self, traffic: Traffic) -> dict[str, int]:
        """Each write that moved has its intent, and each call one end; returns how many there are.

        The traffic has stopped.
        """
        calls = self._recorded(until_s=time.monotonic() + self.ends_within_s)
        begun = {name for name, phases in calls.values() if phases["intent"]}
        writes = {name for name, exchange in self.moved().items() if exchange.method == "PUT"}
        assert writes <= begun
        answered = {call.name for call in traffic.calls if call.status == 200}
        assert answered <= self.moved().keys()
        strange = {eid: found for eid, found in calls.items() if found[1] not in self.whole}
        assert not strange, strange
        return {"moved": len(writes), "intents": len(begun)}

    def _recorded(self, until_s: float) -> dict[str, tuple[str, Counter[str]]]:
        """The name and the phases of each call of the traffic, by `eid`, once each has an end."""
        ends = {"complete", "unknown"}
        while True:
            found: dict[str, tuple[str, Counter[str]]] = {}
            with closing(PostgresReader(lambda: self.server.url)) as reader:
                for stored in reader.events(*reader.span()):
                    event = json.loads(stored.line)
                    name = event.get("req", {}).get("name", "")
                    if event["kind"] == "call" and name.startswith(NAMED):
                        _, phases = found.setdefault(event["eid"], (name, Counter()))
                        phases[event["phase"]] += 1
            if all(phases.keys() & ends for _, phases in found.values()) or time.monotonic() > until_s:
                return found
            time.sleep(0.2)


@attrs.define(eq=False, kw_only=True)
class HubOnPostgres(OnPostgres):
    """One hub, and the link between it and its database."""

    link: Link


@attrs.define(eq=False)
class Streams:
    """Open watches and execs, and when each ended, by time.monotonic, at the client and at the API server."""

    exchanges: list[Exchange] = attrs.Factory(list)
    ended: list[float] = attrs.Factory(list)
    _threads: list[threading.Thread] = attrs.Factory(list)

    def open(self, hub: OnPostgres, count: int, stack: ExitStack, client: RawClient | None = None) -> None:
        """Open so many watches, and as many execs, by the hub or by another client."""
        client = client or hub.client
        for number in range(2 * count):
            path, mark = hub.chain.exec_path(hold) if number % 2 else hub.chain.path(_watch, "?watch=1")
            head = client.upgrade(path, V5) if number % 2 else client.head(path)
            talk = stack.enter_context(client.talk(head))
            assert talk.answer(body=False).status == (101 if number % 2 else 200)
            self.exchanges += hub.chain.server.seen(mark)
            thread = threading.Thread(target=self._read, args=(talk,), daemon=True)
            thread.start()
            self._threads.append(thread)
            stack.callback(self._leave, talk, thread)

    def _leave(self, talk: Talk, thread: threading.Thread) -> None:
        """End a stream before its file descriptor is closed, which OpenSSL would go on reading."""
        talk.hang_up()
        thread.join()

    def _read(self, talk: Talk) -> None:
        talk.rest(HELD_S)
        self.ended.append(time.monotonic())

    def last_end(self, until: float) -> float:
        """Wait for all ends, at both sides, and return the last one."""
        for thread in self._threads:
            thread.join(max(0.0, until + GRACE_S - time.monotonic()))
        assert len(self.ended) == len(self._threads)
        for exchange in self.exchanges:
            while exchange.connection.closed_at is None:
                assert time.monotonic() < until + GRACE_S, "the API server still has a stream"
                time.sleep(0.02)
        return max([*self.ended, *(each.connection.closed_at or 0.0 for each in self.exchanges)])


def _watch(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
    exchange.wait_gone(HELD_S)


@contextmanager
def hub_on_postgres(folder: Path, *, settings: str = "", small: str = "") -> Iterator[HubOnPostgres]:
    """Bring all of it up; at the end, no log has an exception."""
    with faulty_postgres(small=small) as server, open_proxy(folder) as proxy:
        link = proxy.link(server.port)
        url = f"postgresql://postgres@127.0.0.1:{link.port}/postgres?sslmode=disable"
        with open_chain(folder, f'[database]\nurl = "{url}"\n{LIMITS}{settings}') as chain:
            yield HubOnPostgres(chain, server, link=link)
            chain.check_logs()
