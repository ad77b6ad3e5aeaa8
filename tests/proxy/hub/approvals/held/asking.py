"""A client whose call a rule asks about, and the relay's answer to it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from proxy.hub.approvals.request import State
from tests.proxy.hub.approvals.held.fakes import HeldBench
from tests.proxy.hub.calls.bench import OK
from tests.proxy.hub.calls.talk import exec_request
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel.net.connect import TLSStream

DELETE = "DELETE /clusters/prod/apis/apps/v1/namespaces/dev/deployments/web HTTP/1.1"
POST = "POST /clusters/prod/api/v1/namespaces/dev/configmaps HTTP/1.1"


@attrs.define(eq=False)
class Asked:
    """An asked call of a client."""

    client: TLSStream
    answered: trio.Event = attrs.Factory(trio.Event)
    received: bytes = b""

    async def read(self) -> None:
        """Receive until the answer is whole, or the end."""
        # The hub may cut it, and the test may close it.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while not self._whole and (data := await self.client.receive_some()):
                self.received += data
        self.answered.set()

    @property
    def _whole(self) -> bool:
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        return bool(end and length) and len(body) == int(length[1])

    @property
    def status(self) -> int:
        assert self.received, "the connection was cut without an answer"
        return int(self.received.split(b" ", 2)[1])

    @property
    def body(self) -> dict[str, object]:
        parsed = json.loads(self.received.partition(b"\r\n\r\n")[2])
        assert isinstance(parsed, dict)
        return parsed

    @property
    def causes(self) -> dict[str, str]:
        details = self.body["details"]
        assert isinstance(details, dict)
        return {each["reason"]: each["message"] for each in details["causes"]}

    async def refused(self, words: str, status: int = 403) -> None:
        """Wait for an answer with these words."""
        await self.wait()
        assert words in str(self.body["message"]), self.body["message"]
        assert self.status == status
        assert b"retry-after" not in self.received.lower()
        assert b"\r\nwarning: 299 - " in self.received.lower()

    async def wait(self) -> None:
        while not self.answered.is_set():
            await step()


@asynccontextmanager
async def asking(
    bench: HeldBench, line: str = DELETE, body: bytes = b"", *headers: str
) -> AsyncIterator[Asked]:
    """Send a call, and read its answer in the background."""
    if body:
        headers = (*headers, f"Content-Length: {len(body)}", "Content-Type: application/json")
    async with sending(bench, bench.hub.request(line, *headers, body=body)) as asked:
        yield asked


@asynccontextmanager
async def asking_exec(bench: HeldBench) -> AsyncIterator[Asked]:
    """Send an exec over WebSocket."""
    data = exec_request(bench.hub).replace(b"Connection: Upgrade", b"Connection: Upgrade, close")
    async with sending(bench, data) as asked:
        yield asked


@asynccontextmanager
async def sending(bench: HeldBench, data: bytes) -> AsyncIterator[Asked]:
    """Send a request, and read its answer in the background."""
    async with bench.hub.served() as served, trio.open_nursery() as nursery:
        asked = Asked(served.client)
        await served.client.send_all(data)
        nursery.start_soon(asked.read)
        yield asked
        nursery.cancel_scope.cancel()


async def step() -> None:
    """Let other tasks and threads run, while trio's clock stands still."""
    await trio.to_thread.run_sync(lambda: None)


async def until_held(bench: HeldBench, count: int = 1) -> None:
    """Wait until so many calls wait for a decision."""
    while len(bench.held.parts.waits.scopes) < count:
        await step()


async def until_state(bench: HeldBench, *states: State) -> None:
    """Wait until the requests are in these states, in their order."""
    while bench.requests.states != list(states):
        await step()


async def answer(bench: HeldBench, asked: Asked, head: bytes = OK) -> TrioStream:
    """Answer the call at the relay, and wait until its client has the answer."""
    stream = await accept(bench.relay)
    await stream.send_head(head)
    await stream.send_all(b"yes")
    await stream.send_eof()
    await asked.wait()
    stream.close_nowait()
    return stream
