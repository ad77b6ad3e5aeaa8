"""A hub's previews against a relay that is a script: it answers the requests that it gets."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing

from audit.ids import new_eid
from auth.policy.ask import Ask
from proxy.exchange.server import ServerConnection
from proxy.hub.approvals.preview.previewer import Previewer
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.authorize.admission import Call, parse_request
from proxy.hub.authorize.decisions import judge
from proxy.hub.calls.live import LiveCall
from proxy.message.head import Headers, RequestHead
from tests.proxy.hub.calls.bench import Bench, open_bench, relay_of
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import Processed, Session, SessionClosed, StreamCode
from tunnel.stream import StreamReset

ASK = Ask(("any",))
JSON_PATCH = b"application/json-patch+json"


@attrs.frozen
class Asked:
    """A request that came to the relay."""

    method: str
    target: str
    head: bytes
    body: bytes

    @property
    def dry(self) -> bool:
        return "dryRun=All" in self.target


def status(code: int, message: str, reason: str = "", **details: object) -> tuple[int, object]:
    """A Status as an answer."""
    return code, {"kind": "Status", "message": message, "reason": reason, "details": details}


Answer = tuple[int, object] | tuple[int, bytes, bytes] | StreamCode | None


@attrs.define(eq=False)
class Cluster:
    """The relay's end of a cluster. `answer` is the script: a status and JSON, or bytes and header lines.

    A StreamCode resets the stream before the API server has seen it, and None leaves it without an answer.
    """

    bench: Bench
    previewer: Previewer
    answer: Callable[[Asked], Answer] = lambda _: (200, {})
    asked: list[Asked] = attrs.Factory(list)
    open: set[TrioStream] = attrs.Factory(set)
    """Streams without an answer."""
    most_open: int = 0
    _changed: trio.Event = attrs.Factory(trio.Event)
    """A stream came, was asked on or ended."""

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait for something about `asked` and `open`."""
        with trio.fail_after(5):
            while not met():
                await self._changed.wait()

    async def serve(self, relay: Session) -> None:
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    nursery.start_soon(self._serve, await accept(relay))
            except SessionClosed:
                nursery.cancel_scope.cancel()

    async def _serve(self, stream: TrioStream) -> None:
        self.open.add(stream)
        self.most_open = max(self.most_open, len(self.open))
        self._tell()
        try:
            await self._answer(stream)
        except StreamReset:
            pass
        finally:
            self.open.discard(stream)
            self._tell()

    async def _answer(self, stream: TrioStream) -> None:
        body = b""
        while data := await stream.receive_some():
            body += data
        method, target, _ = stream.head.split(b"\r\n")[0].decode().split(" ")
        asked = Asked(method, target, stream.head, body)
        self.asked.append(asked)
        self._tell()
        answer = self.answer(asked)
        if answer is None:
            reset = trio.Event()
            stream.raw.on_reset(reset.set)
            await reset.wait()
        elif isinstance(answer, StreamCode):
            stream.reset(answer, processed=Processed.NO, reason="the script says so")
        else:
            code, said, *lines = answer
            text = said if isinstance(said, bytes) else json.dumps(said).encode()
            fields = b"".join(lines) + b"content-length: %d\r\n" % len(text)
            await stream.send_head(b"HTTP/1.1 %d Any\r\n%b\r\n" % (code, fields))
            await stream.send_all(text)
            stream.send_eof_nowait()

    def live(self, line: str, headers: Headers = (), *, cluster: str = "prod") -> LiveCall:
        """A call that is asked about, as the hub has it."""
        method, target = line.split(" ")
        token = b"Bearer " + self.bench.token(cluster).encode()
        head = RequestHead.of(
            method.encode(), f"/clusters/{cluster}{target}".encode(), ((b"authorization", token), *headers)
        )
        parsed = parse_request(head.method, head.target)
        calls, now = self.bench.calls, time.time()
        caller = calls.admission.caller(head, parsed, now)
        assert parsed.info is not None
        assert caller.agent is not None
        assert caller.cluster is not None
        info = parsed.info.upgraded() if head.upgrade is not None else parsed.info
        verdict = judge(calls.directory.current.bundle, caller.agent, caller.cluster, info, now)
        call = Call(head, parsed, info, caller, caller.agent, caller.cluster, "192.0.2.7", verdict)
        client, _ = trio.testing.memory_stream_pair()
        return LiveCall(call, new_eid(), ServerConnection(client), now, time.monotonic())

    async def preview(
        self,
        line: str,
        body: object = None,
        headers: Headers = ((b"content-type", b"application/json"),),
        *,
        ask: Ask = ASK,
        like: str = "",
        cluster: str = "prod",
    ) -> Preview | PreviewRefused:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        live = self.live(line, headers, cluster=cluster)
        with trio.fail_after(20):
            return await self.previewer.preview(live, data, ask, like=like)

    async def made(self, line: str, body: object = None, *, ask: Ask = ASK, like: str = "") -> Preview:
        found = await self.preview(line, body, ask=ask, like=like)
        assert isinstance(found, Preview), found
        return found

    async def refused(self, line: str, body: object = None, *, like: str = "") -> PreviewRefused:
        found = await self.preview(line, body, like=like)
        assert isinstance(found, PreviewRefused), found
        return found

    async def trail(self) -> list[dict[str, Any]]:
        """The events of the previews."""
        return [event for event in await self.bench.trail() if event["kind"] == "preview"]


@asynccontextmanager
async def open_cluster(tmp_path: Path, *, relays: int = 1) -> AsyncIterator[Cluster]:
    """A hub with a cluster `prod` that has so many relays."""
    async with open_bench(tmp_path, with_task=False, streams=20) as bench, trio.open_nursery() as nursery:
        cluster = Cluster(bench, Previewer(bench.calls))
        async with (
            relay_of(bench, "relay-1") if relays else _nothing() as first,
            relay_of(bench, "relay-2") if relays > 1 else _nothing() as second,
        ):
            for relay in (first, second):
                if relay is not None:
                    nursery.start_soon(cluster.serve, relay)
            yield cluster
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield None
