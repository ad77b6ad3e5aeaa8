"""Reads and writes at a rate, over kept connections, and what became of each."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

import attrs

from tests.system.raw import RawClient

# A call that takes longer hangs.
TIMEOUT_S = 90.0
CALLS_PER_S_MAX = 25
"""Of one connection."""
# A token is valid for a minute, and none is given while the trail is away.
TOKEN_EVERY_S = 15.0
ASKED_AGAIN_S = 0.2
PREFIX = "/api/v1/namespaces/work/configmaps/"
NAMED = "call-"
_numbers = count()
BODY = json.dumps({"data": {"text": "x" * 200}}).encode()


@attrs.frozen
class Call:
    """One call, as its client saw it."""

    method: str
    name: str
    """The object's, which no other call has."""
    began: float
    """By time.monotonic, as `ended`."""
    ended: float
    status: int
    """0 without an answer."""
    said: str = ""
    """The answer of a call that failed."""

    @property
    def took_s(self) -> float:
        """From its start to the end of its answer."""
        return self.ended - self.began


@attrs.define(eq=False)
class Traffic:
    """An agent's calls, by threads, a connection each."""

    client: RawClient
    rates: dict[str, int]
    """Calls a second, by method."""
    calls: list[Call] = attrs.Factory(list)
    """Those that are over."""
    _threads: list[threading.Thread] = attrs.Factory(list)
    _stopping: threading.Event = attrs.Factory(threading.Event)
    _expired: threading.Event = attrs.Factory(threading.Event)
    _token: str = ""

    def since(self, began: float) -> list[Call]:
        """The calls that have begun since a moment, and are over."""
        return [call for call in list(self.calls) if call.began >= began]

    def failed(self, began: float = 0.0) -> list[Call]:
        """Those of them that the API server has not answered."""
        return [call for call in self.since(began) if call.status != 200]

    def longest_s(self, *methods: str) -> float:
        """The longest time of a call, of these methods or of any."""
        return max(call.took_s for call in self.calls if not methods or call.method in methods)

    def until_good(self, began: float, within_s: float) -> float:
        """Wait for a good call of each kind that began since then; returns how long that took."""
        while True:
            good = [call for call in self.since(began) if call.status == 200]
            if {call.method for call in good} == set(self.rates):
                firsts = (min(call.ended for call in good if call.method == method) for method in self.rates)
                return max(firsts) - began
            assert time.monotonic() - began < within_s, self.calls[-3:]
            time.sleep(0.02)

    def start(self) -> None:
        """Start the threads."""
        self._renew()
        self._threads.append(threading.Thread(target=self._keep_token))
        for method, per_s in self.rates.items():
            connections = -(-per_s // CALLS_PER_S_MAX)
            for _ in range(connections):
                thread = threading.Thread(target=self._call, args=(method, connections / per_s))
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the calls, after the one that each thread is in."""
        self._stopping.set()
        self._expired.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _renew(self) -> None:
        # Without a new token, the last one is used on.
        with suppress(OSError):
            self._token = self.client.token()

    def _keep_token(self) -> None:
        while not self._stopping.wait(ASKED_AGAIN_S):
            if self._expired.wait(TOKEN_EVERY_S):
                self._expired.clear()
            self._renew()

    def _call(self, method: str, every_s: float) -> None:
        port, context = self.client.port, self.client.context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            # No more calls after a wait than before it.
            due = max(due + every_s, time.monotonic())
            call = self._one(connection, method)
            self.calls.append(call)
            if call.status == 401:
                self._expired.set()
            if not call.status:
                connection.close()
        connection.close()

    def _one(self, connection: http.client.HTTPSConnection, method: str) -> Call:
        name = f"{NAMED}{next(_numbers)}"
        target = f"/clusters/{self.client.way}{PREFIX}{name}"
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        began, status, said = time.monotonic(), 0, ""
        try:
            connection.request(method, target, BODY if method == "PUT" else None, headers)
            with connection.getresponse() as answer:
                body = answer.read()
            status = answer.status
            said = "" if status == 200 else body.decode()
        except (OSError, http.client.HTTPException) as error:
            said = repr(error)
        return Call(method, name, began, time.monotonic(), status, said)


@contextmanager
def traffic(client: RawClient, *, reads_per_s: int = 0, writes_per_s: int = 0) -> Iterator[Traffic]:
    """Make calls for the block."""
    rates = {"GET": reads_per_s, "PUT": writes_per_s}
    running = Traffic(client, {method: per_s for method, per_s in rates.items() if per_s})
    running.start()
    try:
        yield running
    finally:
        running.stop()
