"""Port-forward: connects each client connection to a port of the pod, which is a port of this machine.

Over SPDY a connection is a pair of streams with one request id: one for the data, one for an error's text.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence

import attrs
import trio

from sandbox.channels import Channels, ChannelSink
from sandbox.inbox import Inbox
from sandbox.processes import Pod
from sandbox.spdystreams import SpdyConnection, SpdyStream

COPY_BYTES = 64 * 1024
# Both streams of a pair must be opened within this time; the kubelet's default.
PAIR_DEADLINE_S = 30.0
# How long the client's half of a connection may continue after the pod has closed its half; containerd's.
LINGER_S = 1.0
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class PortForwardError(Exception):
    """The connection to the pod failed; the message is containerd's."""


@attrs.define
class _Pair:
    data: SpdyStream | None = None
    error: SpdyStream | None = None
    complete: trio.Event = attrs.field(factory=trio.Event)


async def serve_spdy(connection: SpdyConnection, pod: Pod) -> None:
    """Serve a client's port-forwards until it leaves or the pod ends."""
    pairs: dict[str, _Pair] = {}
    async with trio.open_nursery() as nursery:

        def accept(stream: SpdyStream) -> bool:
            kind, port = stream.headers.get("streamtype"), stream.headers.get("port", "")
            if kind not in ("data", "error") or not (port.isdecimal() and 1 <= int(port) <= 65535):
                return False
            request_id = stream.headers.get("requestid")
            if request_id is None:
                # Old clients send no request id: their pairs have consecutive stream ids, the error stream
                # first.
                request_id = str(stream.stream_id - (2 if kind == "data" else 0))
            pair = pairs.get(request_id)
            if pair is None:
                pair = pairs[request_id] = _Pair()
                nursery.start_soon(_serve_pair, pair, request_id, pairs, pod)
            if kind == "data" and pair.data is None:
                pair.data = stream
            elif kind == "error" and pair.error is None:
                pair.error = stream
            else:
                return False
            if pair.data is not None and pair.error is not None:
                pair.complete.set()
            return True

        async def end_with_pod() -> None:
            await pod.ended.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_with_pod)
        await connection.run(accept)
        nursery.cancel_scope.cancel()


async def _serve_pair(pair: _Pair, request_id: str, pairs: dict[str, _Pair], pod: Pod) -> None:
    with trio.move_on_after(PAIR_DEADLINE_S):
        await pair.complete.wait()
    del pairs[request_id]
    data, error = pair.data, pair.error
    try:
        if data is None or error is None:
            if error is not None:
                await error.send_all(f"(request={request_id}) timed out waiting for streams".encode())
            for stream in (data, error):
                if stream is not None:
                    await stream.reset()
            return
        port = int(data.headers["port"])
        try:
            await forward(data, port, pod)
            await data.aclose()
            await error.aclose()
        except PortForwardError as exc:
            await error.send_all(_message(port, pod, exc).encode())
            await error.send_eof()
            await data.reset()
            await error.reset()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client is gone, or has reset this pair


async def serve_channels(channels: Channels, ports: Sequence[int], pod: Pod) -> None:
    """Serve one connection per port: channel 2i carries its data, channel 2i + 1 an error's text.

    Raises BrokenResourceError.
    """

    async def serve_port(number: int, port: int) -> None:
        data, error = channels.sink(number), channels.sink(number + 1)
        for sink in (data, error):
            await sink.send_all(struct.pack("<H", port))
        try:
            await forward(_ChannelStream(channels.source(number), data), port, pod)
        except PortForwardError as exc:
            await error.send_all(_message(port, pod, exc).encode())

    async with trio.open_nursery() as nursery:
        for index, port in enumerate(ports):
            nursery.start_soon(serve_port, 2 * index, port)


class _ChannelStream(trio.abc.HalfCloseableStream):
    """A channel's two directions as one stream; neither side can end only its own half."""

    def __init__(self, source: Inbox, sink: ChannelSink) -> None:
        self._source = source
        self._sink = sink

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._source.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._sink.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._sink.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._source.aclose()


async def forward(client: trio.abc.HalfCloseableStream, port: int, pod: Pod) -> None:
    """Connect a client's stream to a port of the pod until both sides have ended.

    Raises PortForwardError if nothing listens on the port, or the pod breaks the connection.
    """
    async with await _connect(port, pod) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_to_pod, client, server)
            failure = await _to_client(server, client)
            # The client's half ends with its connection, unless the client keeps sending.
            linger_s = 0.0 if failure is not None else LINGER_S
            nursery.cancel_scope.deadline = trio.current_time() + linger_s
    if failure is not None:
        raise PortForwardError(f"{_where(pod)}: {failure}")


async def _to_pod(client: trio.abc.ReceiveStream, server: trio.SocketStream) -> None:
    # The other direction shows whether the pod broke it.
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while chunk := await client.receive_some(COPY_BYTES):
            await server.send_all(chunk)
        await server.send_eof()


async def _to_client(server: trio.SocketStream, client: trio.abc.HalfCloseableStream) -> str | None:
    """Copy to the client and end its half; return the pod's error, if any."""
    while True:
        try:
            chunk = await server.receive_some(COPY_BYTES)
        except trio.BrokenResourceError as exc:
            cause = exc.__cause__
            return f"read: {_reason(cause)}" if isinstance(cause, OSError) else f"read: {exc}"
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if chunk:
                await client.send_all(chunk)
                continue
            await client.send_eof()
        return None


async def _connect(port: int, pod: Pod) -> trio.SocketStream:
    """Connect to the port on IPv4, then on IPv6, as containerd does."""
    failures: list[str] = []
    for family, address in LOOPBACK:
        client = trio.socket.socket(family)
        try:
            await client.connect((address, port))
            return trio.SocketStream(client)
        except OSError as exc:
            client.close()
            network, host = ("tcp4", address) if family == socket.AF_INET else ("tcp6", f"[{address}]")
            failures.append(f"dial {network} {host}:{port}: connect: {_reason(exc)}")
        except BaseException:
            client.close()
            raise
    raise PortForwardError(
        f"{_where(pod)}: failed to connect to localhost:{port} inside namespace "
        f'"{pod.sandbox_id}", IPv4: {failures[0]} IPv6 {failures[1]} '
    )


def _message(port: int, pod: Pod, error: PortForwardError) -> str:
    return f"error forwarding port {port} to pod {pod.sandbox_id}, uid : {error}"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _where(pod: Pod) -> str:
    return f'failed to execute portforward in network namespace "/var/run/netns/cni-{pod.uid}"'
