"""Clients of the streaming protocols for the tests: SPDY by our codec, WebSocket by wsproto's other role."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import wsproto
from trio.testing import memory_stream_pair
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong

from sandbox import spdy
from sandbox.container import ContainerSpec
from sandbox.processes import Pod, Registry, open_registry
from sandbox.streaming import Subresource, UpgradeRequest, serve_upgrade

WEBSOCKET_HEADERS = (
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
)
SPDY_HEADERS = ((b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1"))


def websocket_request(*protocols: str, query: Mapping[str, Sequence[str]]) -> UpgradeRequest:
    offered = [(b"sec-websocket-protocol", ", ".join(protocols).encode())] if protocols else []
    return UpgradeRequest("GET", query, [*WEBSOCKET_HEADERS, *offered])


def spdy_request(*protocols: str, query: Mapping[str, Sequence[str]]) -> UpgradeRequest:
    # One line per protocol, as client-go sends them.
    lines = [(b"x-stream-protocol-version", name.encode()) for name in protocols]
    return UpgradeRequest("POST", query, [*SPDY_HEADERS, *lines])


@asynccontextmanager
async def running_pod(
    root: Path, *specs: ContainerSpec, changed: Callable[[Pod], None] | None = None
) -> AsyncIterator[Pod]:
    """A pod with running containers, by default one without a command."""
    async with open_registry(root) as registry:
        yield await start_pod(registry, *specs, changed=changed)


async def start_pod(
    registry: Registry, *specs: ContainerSpec, changed: Callable[[Pod], None] | None = None
) -> Pod:
    running = trio.Event()

    def on_change(pod: Pod) -> None:
        if all(container.running for container in pod.containers.values()):
            running.set()
        if changed is not None:
            changed(pod)

    pod = registry.start("default", "p", "uid-1", specs or [ContainerSpec("main")], on_change=on_change)
    await running.wait()
    return pod


async def until(condition: Callable[[], bool]) -> None:
    """Poll for a condition in another process, which sends no notification."""
    for _ in range(1000):
        if condition():
            return
        await trio.sleep(0.005)
    raise AssertionError("it does not become so")


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def group_members(group: int) -> list[int]:
    """The running processes of a group."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(folder.name))
    return members


async def read_head(stream: trio.abc.ReceiveStream) -> tuple[list[str], bytes]:
    """The lines of an answer's head, and the data after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        assert more, f"no head in {data!r}"
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), rest


@asynccontextmanager
async def served(
    request: UpgradeRequest, subresource: Subresource, pod: Pod
) -> AsyncIterator[trio.abc.Stream]:
    """The client's end of an upgrade that is being served; the server must end by itself."""
    client, server = memory_stream_pair()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await serve_upgrade(server, b"", request, subresource, pod)
        await server.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        with trio.fail_after(10):
            yield client
            await client.aclose()
            nursery.cancel_scope.deadline = trio.current_time() + 5
    assert not nursery.cancel_scope.cancelled_caught, "the server goes on without its client"


class WebSocketClient:
    """Sends and receives whole messages."""

    def __init__(self, stream: trio.abc.Stream, rest: bytes = b"") -> None:
        self.stream = stream
        self.connection = Connection(ConnectionType.CLIENT)
        self.connection.receive_data(rest)
        self.closed: int | None = None
        self.pongs: list[bytes] = []
        self._events: list[Event] = list(self.connection.events())

    async def send(self, data: bytes, *, finished: bool = True) -> None:
        await self.stream.send_all(self.connection.send(BytesMessage(data, message_finished=finished)))

    async def send_event(self, event: Event) -> None:
        await self.stream.send_all(self.connection.send(event))

    async def receive(self) -> bytes | None:
        """The next message, or None at the end; then `closed` is the close code, if there was one."""
        message = b""
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, BytesMessage):
                    message += event.data
                    if event.message_finished:
                        return message
                elif isinstance(event, CloseConnection):
                    self.closed = event.code
                    if self.connection.state is not wsproto.connection.ConnectionState.CLOSED:
                        await self.send_event(event.response())
                    return None
                elif isinstance(event, Ping):
                    await self.send_event(event.response())
                elif isinstance(event, Pong):
                    self.pongs.append(bytes(event.payload))
            data = await self.stream.receive_some()
            if not data:
                return None
            self.connection.receive_data(bytes(data))
            self._events.extend(self.connection.events())

    async def outcome(self) -> tuple[dict[int, bytes], dict[str, object] | None]:
        """The data received on each channel until the end, and the Status from channel 3."""
        channels: dict[int, bytes] = {}
        while (message := await self.receive()) is not None:
            channels[message[0]] = channels.get(message[0], b"") + message[1:]
        error = channels.pop(3, b"")
        return channels, json.loads(error) if error else None


class SpdyClient:
    """Opens streams and collects the data of each."""

    def __init__(self, stream: trio.abc.Stream, rest: bytes = b"") -> None:
        self.stream = stream
        self.codec = spdy.Codec()
        self.rest = rest
        self.replied: set[int] = set()
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.pings: list[int] = []
        self.gone_away = False
        self._next = 1

    async def open(self, **headers: str) -> int:
        stream_id, self._next = self._next, self._next + 2
        await self.stream.send_all(self.codec.syn_stream(stream_id, headers))
        return stream_id

    async def send(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        await self.stream.send_all(spdy.data(stream_id, data, fin=fin))

    async def receive_until(self, condition: Callable[[], bool]) -> None:
        """Read until the condition holds, or the connection ends."""
        while not condition():
            data = self.rest or await self.stream.receive_some()
            self.rest = b""
            if not data:
                return
            for event in self.codec.receive(bytes(data)):
                self._take(event)

    async def receive_to_the_end(self) -> None:
        """Read until GOAWAY."""
        await self.receive_until(lambda: self.gone_away)

    def _take(self, event: spdy.Event) -> None:
        match event:
            case spdy.StreamReplied(stream_id):
                self.replied.add(stream_id)
            case spdy.DataReceived(stream_id, data, fin):
                self.data[stream_id] = self.data.get(stream_id, b"") + data
                if fin:
                    self.ended.add(stream_id)
            case spdy.StreamReset(stream_id, status):
                self.reset[stream_id] = status
            case spdy.PingReceived(ping_id):
                self.pings.append(ping_id)
            case spdy.GoneAway():
                self.gone_away = True
            case spdy.StreamOpened():
                raise AssertionError("the server opens no streams")
