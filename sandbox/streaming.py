"""The upgrades of a pod's subresources: exec, attach and port-forward, from the request to the last byte.

The API server has already authenticated and authorised the request, and found the pod. Requests that can be
refused with a plain answer raise `UpgradeRefused`, before any byte is written.

The API server answers `v5.channel.k8s.io` and `SPDY/3.1+portforward.k8s.io` itself, and passes everything
else to the kubelet. A client sees the difference in the wording. With v5, the kubelet's refusals arrive as a
Status after the 101.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import attrs
import trio

from sandbox import channels, portforward, remotecommand
from sandbox.channels import Channels
from sandbox.processes import Container, ContainerNotRunningError, Pod
from sandbox.remotecommand import ClientStreams
from sandbox.spawn import SpawnError
from sandbox.spdystreams import SpdyConnection, SpdyStream
from sandbox.websocket import BadHandshakeError, WebSocket, WebSocketStream, accept_handshake

Subresource = Literal["exec", "attach", "portforward"]

V5, V4, V1 = "v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"
# The kubelet's protocols; v5 exists over WebSocket only.
SPDY_COMMAND_PROTOCOLS = (V4, "v3.channel.k8s.io", "v2.channel.k8s.io", V1)
PORT_FORWARD = "portforward.k8s.io"
TUNNEL_PREFIX = "SPDY/3.1+"
# The kubelet's default for the streams that the client must open.
STREAMS_DEADLINE_S = 30.0
# How long the client may take to disconnect after the end. Its further data is discarded meanwhile, since
# closing a socket with unread bytes would destroy the final messages. These may take long: a proxy on the
# path may have lost its connection, and be back only after 40 s.
FAREWELL_S = 60.0
_REASONS = {400: "BadRequest", 403: "Forbidden", 404: "NotFound", 500: "InternalError"}


@attrs.frozen
class UpgradeRequest:
    """A request for an upgrade: header names in lower case, order and repetition kept."""

    method: str
    query: Mapping[str, Sequence[str]]
    headers: Sequence[tuple[bytes, bytes]]

    def lines(self, name: bytes) -> list[bytes]:
        """Return the values of every line of this header."""
        return [value for key, value in self.headers if key == name]

    def values(self, name: bytes) -> list[str]:
        """Return the values of every line of this header, split at commas."""
        lines = [line.decode("latin-1") for line in self.lines(name)]
        return [part.strip() for line in lines for part in line.split(",") if part.strip()]

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean of the query as the API server reads it: only "false" and "0" are false."""
        values = self.query.get(name, ())
        return values[0].lower() not in ("false", "0") if values else default


class UpgradeRefused(Exception):
    """The answer to a request that is not upgraded; the connection closes after it."""

    def __init__(
        self, status: int, body: bytes, content_type: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(body.decode(errors="replace").strip())
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = tuple(headers)

    @classmethod
    def by_api_server(cls, status: int, message: str) -> UpgradeRefused:
        """Refuse as the API server does, with a Status."""
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS[status],
            "code": status,
        }
        return cls(status, json.dumps(body).encode(), "application/json")

    @classmethod
    def by_kubelet(
        cls, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> UpgradeRefused:
        """Refuse as a kubelet does, whose plain text the API server passes on."""
        return cls(status, f"{message}\n".encode(), "text/plain; charset=utf-8", headers)


async def serve_upgrade(
    stream: trio.abc.Stream, leftover: bytes, request: UpgradeRequest, subresource: Subresource, pod: Pod
) -> None:
    """Answer an authorised GET or POST of a pod's subresource and serve it to its end.

    Raises UpgradeRefused before anything is written. `leftover` is the data after the request's head. The
    caller closes the stream afterwards; broken connections are not errors here. If cancelled, it kills the
    processes that it started.
    """
    tokens = [token.lower() for token in request.values(b"connection")]
    if not any("upgrade" in token for token in tokens) or not request.values(b"upgrade"):
        raise UpgradeRefused.by_api_server(400, "Upgrade request required")
    connection = _Connection(stream, leftover, request)
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        if subresource == "portforward":
            await _serve_port_forward(connection, pod)
        else:
            await _serve_command(connection, subresource, choose_container(pod, request))


def choose_container(pod: Pod, request: UpgradeRequest) -> Container:
    """Return the container that the request names, or the only one there is."""
    names = request.query.get("container", ())
    if names and names[0]:
        container = pod.container(names[0])
        if container is None:
            raise UpgradeRefused.by_api_server(400, f"container {names[0]} is not valid for pod {pod.name}")
        return container
    if len(pod.containers) != 1:
        choices = " ".join(pod.containers)
        raise UpgradeRefused.by_api_server(
            400, f"a container name must be specified for pod {pod.name}, choose one of: [{choices}]"
        )
    return next(iter(pod.containers.values()))


@attrs.frozen
class _Connection:
    """A request and its connection; the requested protocol determines the first answer."""

    stream: trio.abc.Stream
    leftover: bytes
    request: UpgradeRequest

    @property
    def is_websocket(self) -> bool:
        return [token.lower() for token in self.request.values(b"upgrade")] == ["websocket"]

    @property
    def websocket_protocols(self) -> list[str]:
        return self.request.values(b"sec-websocket-protocol")

    async def accept_websocket(self, supported: Sequence[str]) -> tuple[WebSocket, str]:
        """Accept the client's first supported subprotocol; raises UpgradeRefused.

        "" stands for a client that names none. Kubernetes' server then sends the header with an empty value.
        """
        protocol = _first_common(self.websocket_protocols or [""], supported)
        if protocol is None:
            # The real server's library answers with only its status line.
            raise UpgradeRefused(403, b"", "text/plain; charset=utf-8")
        try:
            answer = accept_handshake(
                self.request.lines(b"sec-websocket-key"),
                self.request.lines(b"sec-websocket-version"),
                protocol,
            )
        except BadHandshakeError:
            raise UpgradeRefused(400, b"", "text/plain; charset=utf-8") from None
        await self.stream.send_all(answer)
        return WebSocket(self.stream, self.leftover), protocol

    def negotiate_spdy(self, supported: Sequence[str]) -> str:
        """Choose the protocol over SPDY, as the kubelet does; raises UpgradeRefused."""
        if not any("spdy/3.1" in token.lower() for token in self.request.values(b"upgrade")):
            raise UpgradeRefused.by_kubelet(400, "unable to upgrade: missing upgrade headers in request")
        requested = self.request.values(b"x-stream-protocol-version")
        if not requested:
            raise UpgradeRefused.by_kubelet(
                400,
                "unable to upgrade: header X-Stream-Protocol-Version does not exist in request "
                f"with {len(self.request.headers)} headers",
            )
        return _negotiate(requested, supported)

    async def accept_spdy(self, supported: Sequence[str]) -> tuple[SpdyConnection, str]:
        """Accept the client's first supported protocol; raises UpgradeRefused."""
        protocol = self.negotiate_spdy(supported)
        await self.stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: " + protocol.encode() + b"\r\n\r\n"
        )
        return SpdyConnection(self.stream, self.leftover), protocol


def _negotiate(requested: Sequence[str], supported: Sequence[str]) -> str:
    """Return the client's first protocol that the kubelet supports; raises UpgradeRefused."""
    protocol = _first_common(requested, supported)
    if protocol is None:
        raise UpgradeRefused.by_kubelet(
            403,
            f"unable to upgrade: unable to negotiate protocol: client supports [{' '.join(requested)}], "
            f"server accepts [{' '.join(supported)}]",
            [(b"X-Accepted-Stream-Protocol-Versions", name.encode()) for name in supported],
        )
    return protocol


def _first_common(requested: Sequence[str], supported: Sequence[str]) -> str | None:
    return next((name for name in requested if name in supported), None)


# Exec and attach.


@attrs.frozen
class _CommandRequest:
    """The parameters of an exec or attach."""

    container: Container
    command: tuple[str, ...] | None  # None for attach
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    def check(self) -> None:
        """Refuse what the kubelet refuses before it upgrades."""
        if not (self.stdin or self.stdout or self.stderr):
            raise UpgradeRefused.by_kubelet(400, "you must specify at least 1 of stdin, stdout, stderr")
        if not self.container.running:
            raise UpgradeRefused.by_kubelet(500, f'container not found ("{self.container.name}")')

    def start(self) -> AbstractAsyncContextManager[remotecommand.Command]:
        """Start the command, or attach; raises ContainerNotRunningError or SpawnError."""
        if self.command is None:
            return self._attach()
        return self.container.exec(
            self.command, stdin=self.stdin, stdout=self.stdout, stderr=self.stderr, tty=self.tty
        )

    @asynccontextmanager
    async def _attach(self) -> AsyncIterator[remotecommand.Command]:
        with self.container.attach(stdin=self.stdin, stdout=self.stdout, stderr=self.stderr) as attachment:
            yield attachment


async def _serve_command(connection: _Connection, subresource: Subresource, container: Container) -> None:
    request = connection.request
    is_exec = subresource == "exec"
    tty = request.flag("tty") if is_exec else container.spec.tty
    requested = _CommandRequest(
        container,
        command=tuple(request.query.get("command", ())) if is_exec else None,
        stdin=request.flag("stdin"),
        stdout=request.flag("stdout", default=True),
        # A terminal has only one output.
        stderr=request.flag("stderr", default=True) and not tty,
        tty=tty,
    )
    if connection.is_websocket and V5 in connection.websocket_protocols:
        await _command_over_websocket(connection, requested, (V5,))
        return
    requested.check()
    if connection.is_websocket:
        await _command_over_websocket(connection, requested, (V4, V1, ""))
    else:
        await _command_over_spdy(connection, requested)


async def _command_over_websocket(
    connection: _Connection, requested: _CommandRequest, supported: Sequence[str]
) -> None:
    websocket, protocol = await connection.accept_websocket(supported)
    inputs = [channels.RESIZE, *([channels.STDIN] if requested.stdin else [])]
    wires = Channels(websocket, inputs=inputs, half_close=protocol == V5)
    client = ClientStreams(
        stdin=wires.source(channels.STDIN) if requested.stdin else None,
        stdout=wires.sink(channels.STDOUT) if requested.stdout else None,
        stderr=wires.sink(channels.STDERR) if requested.stderr else None,
        resize=wires.source(channels.RESIZE),
        error=wires.sink(channels.ERROR),
        structured=protocol in (V5, V4),
    )
    async with _while_client_stays(wires.run):
        # This is how Kubernetes' server tells a client that the connection is established.
        await (client.stdout or client.stderr or client.error).send_all(b"")
        await _run(client, requested, translated=protocol == V5)
        await websocket.close()
        wires.discard()


async def _command_over_spdy(connection: _Connection, requested: _CommandRequest) -> None:
    spdy, protocol = await connection.accept_spdy(SPDY_COMMAND_PROTOCOLS)
    expected = {
        "error": True,
        "stdin": requested.stdin,
        "stdout": requested.stdout,
        "stderr": requested.stderr,
        "resize": requested.tty and protocol in (V4, "v3.channel.k8s.io"),
    }
    streams: dict[str, SpdyStream] = {}
    complete = trio.Event()

    def accept(stream: SpdyStream) -> bool:
        kind = stream.headers.get("streamtype", "")
        if kind not in expected or kind in streams:
            return False
        streams[kind] = stream
        if all(kind in streams for kind, needed in expected.items() if needed):
            complete.set()
        return True

    async with _while_client_stays(lambda: spdy.run(accept)):
        with trio.move_on_after(STREAMS_DEADLINE_S) as deadline:
            await complete.wait()
        if not deadline.cancelled_caught:
            client = ClientStreams(
                stdin=streams["stdin"] if requested.stdin else None,
                stdout=streams["stdout"] if requested.stdout else None,
                stderr=streams["stderr"] if requested.stderr else None,
                resize=streams.get("resize"),
                error=streams["error"],
                structured=protocol == V4,
            )
            await _run(client, requested, translated=False)
        await spdy.close()


async def _run(client: ClientStreams, requested: _CommandRequest, *, translated: bool) -> None:
    """Run the command and report how it ended; raises BrokenResourceError if the client is lost."""
    try:
        if translated:
            requested.check()
        async with requested.start() as command:
            code = await remotecommand.join(client, command)
        status = remotecommand.exited(code, requested.command or (), translated=translated)
    except UpgradeRefused as exc:
        status = remotecommand.internal_error(f"unable to upgrade connection: {exc}")
    except (ContainerNotRunningError, SpawnError) as exc:
        text = (
            "error executing command in container: failed to exec in container: failed to start exec: "
            f"OCI runtime exec failed: exec failed: unable to start container process: {exc}: unknown"
        )
        status = remotecommand.internal_error(f"Internal error occurred: {text}" if translated else text)
    await client.send_status(status)


@asynccontextmanager
async def _while_client_stays(read: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Read from the client beside the block, and cancel the block if the client is gone.

    After the block the client has a moment to disconnect. A connection that breaks ends the block quietly.
    """
    try:
        async with trio.open_nursery() as nursery:

            async def read_to_end() -> None:
                await read()
                nursery.cancel_scope.cancel()

            nursery.start_soon(read_to_end)
            yield
            nursery.cancel_scope.deadline = trio.current_time() + FAREWELL_S
    except* trio.BrokenResourceError:
        pass


# Port-forward.


async def _serve_port_forward(connection: _Connection, pod: Pod) -> None:
    if not connection.is_websocket:
        spdy, _ = await connection.accept_spdy((PORT_FORWARD,))
        await portforward.serve_spdy(spdy, pod)
        if await spdy.close():
            await _wait_for_hang_up(connection.stream)
        return
    protocols = connection.websocket_protocols
    tunnelled = [name for name in protocols if name.startswith(TUNNEL_PREFIX) and name.endswith(".k8s.io")]
    if tunnelled:
        _negotiate([name.removeprefix(TUNNEL_PREFIX) for name in tunnelled], (PORT_FORWARD,))
        websocket, _ = await connection.accept_websocket((TUNNEL_PREFIX + PORT_FORWARD,))
        tunnel = WebSocketStream(websocket)
        spdy = SpdyConnection(tunnel)
        await portforward.serve_spdy(spdy, pod)
        if await spdy.close():
            await tunnel.aclose()
            await _wait_for_hang_up(tunnel)
        return
    await _port_forward_over_channels(connection, pod)


async def _port_forward_over_channels(connection: _Connection, pod: Pod) -> None:
    """Serve the old protocol, with one connection per port over two channels."""
    values = [part for value in connection.request.query.get("ports", ()) for part in value.split(",")]
    if not values:
        raise UpgradeRefused.by_kubelet(400, 'query parameter "port" is required')
    for value in values:
        if not (value.isdecimal() and 1 <= int(value) <= 65535):
            raise UpgradeRefused.by_kubelet(400, f'unable to parse "{value}" as a port')
    ports = [int(value) for value in values]
    websocket, _ = await connection.accept_websocket((V4, ""))
    wires = Channels(websocket, inputs=range(0, 2 * len(ports), 2), half_close=False)
    async with _while_client_stays(wires.run):
        await portforward.serve_channels(wires, ports, pod)
        await websocket.close()
        wires.discard()


async def _wait_for_hang_up(stream: trio.abc.Stream) -> None:
    """Give the client a moment to disconnect by itself; its data is discarded meanwhile."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        with trio.move_on_after(FAREWELL_S):
            while await stream.receive_some():
                pass
