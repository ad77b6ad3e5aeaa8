"""Agents that never rest: calls one after the other while something is restarted, and shells that stay."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs

from tests.system.raw import RawClient
from tests.system.world import NAMESPACE, POD, World

DEADLINE_S = 30.0
# An access token lives for 60 s.
TOKEN_S = 30.0
# What a shell answers to each line it is given.
ECHO = "while read line; do echo got $line; done; echo bye"


@attrs.define(eq=False)
class Caller:
    """One agent's client: a connection that is kept, as long as the hub keeps it."""

    client: RawClient
    fresh: bool
    """A connection for each call."""
    calls: int = 0
    failures: list[str] = attrs.Factory(list)

    def run(self, stop: threading.Event) -> None:
        connection = self._connection()
        token, minted_at = self.client.token(), time.monotonic()
        while not stop.is_set():
            if time.monotonic() - minted_at > TOKEN_S:
                token, minted_at = self.client.token(), time.monotonic()
            try:
                self._call(connection, token)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            if self.fresh:
                connection.close()
        connection.close()

    def _connection(self) -> http.client.HTTPSConnection:
        # It connects again by itself where the last answer said that it was the last one.
        context: ssl.SSLContext = self.client.context()
        return http.client.HTTPSConnection("127.0.0.1", self.client.port, timeout=DEADLINE_S, context=context)

    def _call(self, connection: http.client.HTTPSConnection, token: str) -> None:
        """A read, and then a write that has no effect."""
        self.calls += 1
        prefix = f"/clusters/{self.client.way}/api/v1/namespaces/{NAMESPACE}"
        headers = {"Authorization": f"Bearer {token}"}
        if self.calls % 2:
            connection.request("GET", f"{prefix}/pods/{POD}", headers=headers)
        else:
            body = b'{"metadata":{"labels":{"touched":"%d"}}}' % self.calls
            headers["Content-Type"] = "application/merge-patch+json"
            connection.request("PATCH", f"{prefix}/pods/{POD}?dryRun=All", body=body, headers=headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            self.failures.append(f"{answer.status} {text[:300]!r}")


@contextmanager
def calling(world: World, *ways: str) -> Iterator[list[Caller]]:
    """Call by each way for the block, on kept connections and on fresh ones."""
    callers = [Caller(RawClient(world, way), fresh) for way in ways for fresh in (False, True)]
    stop = threading.Event()
    threads = [threading.Thread(target=caller.run, args=(stop,)) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@attrs.define(eq=False)
class Shell:
    """A live `kubectl exec`."""

    process: subprocess.Popen[bytes]
    said: list[bytes] = attrs.Factory(list)

    def say(self, line: bytes) -> bytes:
        """Give it a line, and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def leave(self) -> tuple[int, bytes, bytes]:
        """End its input; returns the exit code, and the rest of what it says."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err


@contextmanager
def shells(world: World, count: int, way: str) -> Iterator[list[Shell]]:
    """So many live execs, each of which has answered once."""
    started: list[Shell] = []
    try:
        for number in range(count):
            spdy = number % 2 == 1
            process = world.popen(way, "exec", "-i", POD, "--", "sh", "-c", ECHO, spdy=spdy)
            started.append(Shell(process))
        for number, shell in enumerate(started):
            assert shell.say(b"before %d" % number) == b"got before %d\n" % number
        yield started
    finally:
        for shell in started:
            shell.process.kill()
            with suppress(ValueError):
                shell.process.communicate()
