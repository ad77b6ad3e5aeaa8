"""A client's connection whose calls are begun without a task."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import attrs
import pytest
import trio

from audit.errors import AuditUnavailable
from audit.record import Event
from audit.store import AuditStore
from tests.proxy.hub.calls.bench import Bench
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import Session
from tunnel.net.connect import TLSStream

PODS = "GET /clusters/prod/api/v1/pods HTTP/1.1"


@attrs.frozen
class Line:
    """A client's connection, and the relay that its calls come to."""

    bench: Bench
    client: TLSStream
    relay: Session

    async def send(self, line: str = PODS, *headers: str, token: str | None = None) -> None:
        bearer = self.bench.token() if token is None else token
        lines = [line, "Host: hub.example", f"Authorization: Bearer {bearer}", *headers]
        await self.client.send_all("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def ask(self, line: str = PODS, *headers: str, token: str | None = None) -> TrioStream:
        """Send a request; returns the stream that the relay gets for it."""
        await self.send(line, *headers, token=token)
        with trio.fail_after(2):
            return await accept(self.relay)

    async def hear(self, end: bytes) -> bytes:
        received = b""
        with trio.fail_after(2):
            while not received.endswith(end):
                data = await self.client.receive_some()
                assert data, f"the connection ended after {received!r}"
                received += data
        return received


async def next_of(*relays: Session) -> TrioStream:
    """The next call, whichever relay it comes to."""
    streams: list[TrioStream] = []

    async def wait(relay: Session) -> None:
        streams.append(await accept(relay))
        nursery.cancel_scope.cancel()

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            for relay in relays:
                nursery.start_soon(wait, relay)
    return streams[0]


POST = "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1"


class Commits:
    """Commits of the trail that wait until they are let go, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gate = threading.Event()
        self.failure = ""
        append = AuditStore.append

        def append_later(store: AuditStore, events: Sequence[Event], *, boot: str) -> object:
            self._gate.wait(5)
            if self.failure:
                raise AuditUnavailable(self.failure)
            return append(store, events, boot=boot)

        monkeypatch.setattr(AuditStore, "append", append_later)

    def let_go(self) -> None:
        self._gate.set()
