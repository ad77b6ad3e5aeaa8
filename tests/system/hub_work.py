"""What agents do while hubs are restarted: execs of some seconds, watches that begin again, and calls."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import attrs
import websockets
import websockets.sync.client as websocket_client

from tests.system.callers import Caller
from tests.system.hubs import CLUSTER, HubsWorld
from tests.system.raw import DEADLINE_S, RawClient
from tests.system.world import NAMESPACE, POD

PODS = f"/clusters/{CLUSTER}/api/v1/namespaces/{NAMESPACE}/pods"
# client-go, too, tries a call again whose connection was refused or closed before it began.
FRESH_CALLERS, KEPT_CALLERS = 2, 2


@attrs.frozen
class Lengths:
    """How long an exec and a watch last, in seconds: from, to."""

    execs_s: tuple[int, int] = (5, 40)
    watches_s: tuple[int, int] = (5, 60)


@attrs.define(eq=False)
class Work:
    """Threads, each with one stream or call after the other, and what failed of them."""

    client: RawClient
    lengths: Lengths
    counts: Counter[str] = attrs.Factory(Counter)
    failures: list[str] = attrs.Factory(list)
    _stopping: threading.Event = attrs.Factory(threading.Event)
    _callers: list[Caller] = attrs.Factory(list)
    _threads: list[threading.Thread] = attrs.Factory(list)

    def start(self, execs: int, watches: int) -> None:
        for number in range(execs):
            self._thread(self._repeat, self._exec, random.Random(number), self.lengths.execs_s)
        for number in range(watches):
            self._thread(self._repeat, self._watch, random.Random(-1 - number), self.lengths.watches_s)
        self._callers = [Caller(self.client, fresh=True) for _ in range(FRESH_CALLERS)]
        self._callers += [Caller(self.client, fresh=False) for _ in range(KEPT_CALLERS)]
        for caller in self._callers:
            self._thread(caller.run, self._stopping)

    def stop(self) -> None:
        """Let each stream that is open end by itself."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for caller in self._callers:
            self.counts["calls"] += caller.calls
            self.failures += caller.failures

    def _thread(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _repeat(
        self, act: Callable[[str, int], str], chosen: random.Random, lengths_s: tuple[int, int]
    ) -> None:
        while not self._stopping.is_set():
            seconds = chosen.randint(*lengths_s)
            began = time.monotonic()
            try:
                kind = act(self.client.token(), seconds)
            except (OSError, http.client.HTTPException, websockets.WebSocketException, ValueError) as error:
                after_s = time.monotonic() - began
                self.failures.append(f"{act.__name__} of {seconds} s after {after_s:.1f} s: {error!r}")
            else:
                self.counts[kind] += 1

    def _exec(self, token: str, seconds: int) -> str:
        """Count for so long, a number each second; raises an exception unless each one comes."""
        script = f"i=0; while [ $i -lt {seconds} ]; do echo $i; sleep 1; i=$((i+1)); done"
        query = urlencode([*(("command", part) for part in ("sh", "-c", script)), ("stdout", "1")])
        out, status = b"", b""
        with websocket_client.connect(
            f"wss://127.0.0.1:{self.client.port}{PODS}/{POD}/exec?{query}",
            ssl=self.client.context(),
            subprotocols=["v5.channel.k8s.io"],  # type: ignore[list-item]
            additional_headers={"Authorization": f"Bearer {token}"},
            open_timeout=DEADLINE_S,
            ping_interval=None,
            proxy=None,
        ) as connection:
            for message in connection:
                assert isinstance(message, bytes)
                out += message[1:] if message[:1] == b"\x01" else b""
                status += message[1:] if message[:1] == b"\x03" else b""
        said = json.loads(status or b"{}").get("status")
        if out.split() != [b"%d" % number for number in range(seconds)] or said != "Success":
            raise ValueError(f"the exec printed {out[-40:]!r}, and its status is {status!r}")
        return "execs"

    def _watch(self, token: str, seconds: int) -> str:
        """Watch for so long; raises an exception unless the API server itself ends it."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.client.port, timeout=seconds + DEADLINE_S, context=self.client.context()
        )
        began = time.monotonic()
        try:
            target = f"{PODS}?watch=1&timeoutSeconds={seconds}"
            connection.request("GET", target, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200 or time.monotonic() - began < seconds - 1:
            raise ValueError(f"{answer.status} {text[-300:]!r}")
        return "watches"


@contextmanager
def working(world: HubsWorld, execs: int, watches: int, lengths: Lengths | None = None) -> Iterator[Work]:
    """Work for the block, and then until what is open has ended."""
    work = Work(RawClient(world, CLUSTER), lengths or Lengths())
    work.start(execs, watches)
    try:
        yield work
    finally:
        work.stop()
