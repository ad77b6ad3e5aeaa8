"""Streams by the thousand that begin and end in every way there is, and both processes are as before."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import attrs
import pytest

from tests.faults.control import Way
from tests.faults.figures import note
from tests.faults.pipe import End
from tests.faults.world import FaultWorld, Living
from tests.system.raw import RawClient
from tests.system.world import NAMESPACE, POD_PATH

pytestmark = [pytest.mark.kubectl]

V5 = "Sec-WebSocket-Protocol: v5.channel.k8s.io"
CLIENTS = 25
# An access token lives for 60 s.
TOKEN_S = 40.0
# Whatever was cut is over by then: a session that nobody resumes lives for 60 s, a kept connection for less.
SETTLED_S = 100.0
# More objects of a kind than this are a leak: connections are kept, and closed in their own time.
SLACK = 16
RESIDENT_GROWTH_MAX = 0.10
# What is free is given back when a process comes to rest, which it looks for every 10 s: the first look after
# the last work may still have seen some of it (proxy.process.memory.malloc_trim).
REST_S = 22.0
# And as much as that comes and goes all the time.
RESTLESS_KIB = 256


@attrs.define(eq=False)
class Churn:
    """Clients that open streams and do all kinds of things to them, and a network that joins in."""

    world: FaultWorld
    opens: int
    seed: int
    done: int = 0
    tokens: int = 0
    """That its clients have shown."""
    ways: Counter[str] = attrs.Factory(Counter)
    """How the streams have ended, as far as their clients have seen."""
    faults: Counter[str] = attrs.Factory(Counter)
    _lock: threading.Lock = attrs.Factory(threading.Lock)

    def run(self, *, fault_every_s: float) -> None:
        """Open so many streams, while something is broken every so often; heal everything."""
        over = threading.Event()
        breaking = threading.Thread(target=self._break, args=(over, fault_every_s))
        breaking.start()
        try:
            with ThreadPoolExecutor(CLIENTS) as pool:
                for result in [pool.submit(self._client, number) for number in range(CLIENTS)]:
                    result.result()
        finally:
            over.set()
            breaking.join()
            self.world.tunnel.heal()
            self.world.api.heal()

    def _break(self, over: threading.Event, every_s: float) -> None:
        chance = random.Random(self.seed)
        tunnel, api = self.world.tunnel, self.world.api
        faults: dict[str, Callable[[], object]] = {
            "tunnel cut": lambda: tunnel.cut(chance.choice(list(End))),
            "tunnel cut in a frame": lambda: tunnel.cut(
                after=chance.randrange(1, 20_000), way=chance.choice([Way.UP, Way.DOWN])
            ),
            "tunnel refused": lambda: (tunnel.refuse(chance.uniform(0.1, 0.6)), tunnel.cut()),
            "API server gone": lambda: api.cut(chance.choice(list(End))),
            "API server cut in an answer": lambda: api.cut_next(chance.randrange(1, 2000), times=3),
            "API server refused": lambda: api.refuse(chance.uniform(0.05, 0.5)),
        }
        while not over.wait(chance.uniform(0.5, 1.5) * every_s):
            name = chance.choice(list(faults))
            faults[name]()
            self.faults[name] += 1

    def _client(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        client = self.world.client()
        token, minted_at, shown = client.token(), time.monotonic(), 1
        for _ in range(self.opens // CLIENTS):
            if time.monotonic() - minted_at > TOKEN_S:
                token, minted_at, shown = client.token(), time.monotonic(), shown + 1
            way = chance.choice([self._read, self._write, self._follow, self._upgrade])
            try:
                how = way(client, token, chance)
            except (OSError, ssl.SSLError):
                how = "cut"
            with self._lock:
                self.done += 1
                self.ways[how] += 1
        with self._lock:
            self.tokens += shown

    def _read(self, client: RawClient, token: str, chance: random.Random) -> str:
        return self._talk(client, self._head(client, token, "GET", POD_PATH), chance)

    def _write(self, client: RawClient, token: str, chance: random.Random) -> str:
        body = b'{"metadata":{"labels":{"seen":"%d"}}}' % chance.randrange(1000)
        fields = ("Content-Type: application/merge-patch+json", f"Content-Length: {len(body)}")
        # Sometimes its end never comes.
        body = body[: chance.choice([len(body), len(body), len(body) // 2])]
        head = self._head(client, token, "PATCH", f"{POD_PATH}?dryRun=All", *fields)
        return self._talk(client, head + body, chance)

    def _follow(self, client: RawClient, token: str, chance: random.Random) -> str:
        path = chance.choice(
            [f"{POD_PATH}/log?follow=true", f"/api/v1/namespaces/{NAMESPACE}/pods?watch=true"]
        )
        return self._talk(client, self._head(client, token, "GET", path), chance, endless=True)

    def _upgrade(self, client: RawClient, token: str, chance: random.Random) -> str:
        path = f"{POD_PATH}/exec?command={chance.choice(['true', 'cat'])}&stdin=true&stdout=true"
        fields = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        head = self._head(
            client, token, "GET", path, *fields, "Sec-WebSocket-Version: 13", V5, close="Upgrade"
        )
        return self._talk(client, head, chance, endless=True)

    def _head(
        self, client: RawClient, token: str, method: str, path: str, *fields: str, close: str = "close"
    ) -> bytes:
        lines = [
            f"{method} /clusters/{client.way}{path} HTTP/1.1",
            "Host: hub",
            f"Authorization: Bearer {token}",
            f"Connection: {close}",
            *fields,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def _talk(self, client: RawClient, said: bytes, chance: random.Random, *, endless: bool = False) -> str:
        """Say it, and stay to the end of the answer or leave before, with a word or without."""
        with client.connect() as connection:
            connection.sendall(said)
            leaves = chance.random() < (1.0 if endless else 0.3)
            connection.settimeout(chance.uniform(0.001, 0.3) if leaves else 15.0)
            received = b""
            with suppress(TimeoutError):
                while data := connection.recv(65536):
                    received += data
                    if leaves and chance.random() < 0.3:
                        break
            if leaves and chance.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        return f"status {received[9:12].decode()}" if received else "left before an answer"


def settled(world: FaultWorld, before: tuple[Living, Living], tokens: int) -> dict[str, dict[str, int]]:
    """What there is more of than before so many tokens were shown, at the hub and at the relay."""
    relay = world.relays["relay-0"]
    now = (world.living(world.hub), world.living(relay))
    return {
        name: grown
        for name, then, current in zip(("hub", "relay"), before, now, strict=True)
        if (grown := current.grown(then, SLACK, tokens=tokens))
    }


def at_rest(world: FaultWorld) -> tuple[Living, Living]:
    """What lives at the hub and at the relay, once both give nothing back any more."""
    last: list[tuple[Living, Living]] = []

    def still() -> bool:
        last.append((world.living(world.hub), world.living(world.relays["relay-0"])))
        return len(last) > 1 and all(
            abs(now.resident_kib - then.resident_kib) < RESTLESS_KIB
            for now, then in zip(*last[-2:], strict=True)
        )

    world.until(still, "their memory stays as it is", SETTLED_S, every_s=REST_S)
    return last[-1]


def churn_and_compare(world: FaultWorld, *, warm: int, opens: int, fault_every_s: float) -> None:
    relay = world.relays["relay-0"]
    # With what is made once: contexts, caches, pools, the allocator's arenas.
    Churn(world, warm, 1).run(fault_every_s=fault_every_s)
    world.until(lambda: world.connected() and world.streams() == 0, "no stream is left", SETTLED_S)
    before = at_rest(world)
    began = time.monotonic()
    churn = Churn(world, opens, 2)
    churn.run(fault_every_s=fault_every_s)
    took_s = time.monotonic() - began
    world.until(lambda: world.connected() and world.streams() == 0, "no stream is left", SETTLED_S)
    more: dict[str, dict[str, int]] = {}

    def back() -> bool:
        more.clear()
        more.update(settled(world, before, churn.tokens))
        return not more

    try:
        world.until(back, "all is as before", SETTLED_S, every_s=1.0)
    except AssertionError:
        raise AssertionError(f"there is more of: {more}") from None
    after = at_rest(world)
    growth = {
        name: now.resident_kib / then.resident_kib - 1
        for name, now, then in zip(("hub", "relay"), after, before, strict=True)
    }
    note(
        "opens and closes under random faults",
        f"{opens}",
        took_s=round(took_s),
        faults=sum(churn.faults.values()),
        **{
            f"{name}_{what}": f"{getattr(then, what)} -> {getattr(now, what)}"
            for name, now, then in zip(("hub", "relay"), after, before, strict=True)
            for what in ("tasks", "files", "resident_kib")
        },
        **{how.replace(" ", "_"): count for how, count in sorted(churn.ways.items())},
    )
    assert churn.done == opens
    # All of it has happened, or the test shows less than it says.
    assert {"status 200", "status 101", "left before an answer"} <= set(churn.ways), churn.ways
    assert sum(churn.faults.values()) >= 3
    assert {daemon.process.poll() for daemon in (world.hub, relay) if daemon is not None} == {None}
    assert max(growth.values()) < RESIDENT_GROWTH_MAX, growth


@pytest.mark.timeout(300)
def test_some_hundred_streams_under_faults_leave_nothing_behind(world: FaultWorld) -> None:
    churn_and_compare(world, warm=75, opens=200, fault_every_s=2.0)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_streams_under_faults_leave_nothing_behind(world: FaultWorld) -> None:
    churn_and_compare(world, warm=800, opens=10_000, fault_every_s=2.0)
