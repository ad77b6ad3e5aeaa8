"""Port-forward to real ports of this machine, over SPDY streams and over channels."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from sandbox import spdy
from sandbox.portforward import PAIR_DEADLINE_S, serve_spdy
from sandbox.processes import Pod
from sandbox.spdystreams import SpdyConnection
from tests.sandbox.clients import (
    SpdyClient,
    WebSocketClient,
    read_head,
    running_pod,
    served,
    spdy_request,
    websocket_request,
)

Handler = Callable[[trio.SocketStream], Awaitable[object]]


async def shout(stream: trio.SocketStream) -> None:
    """Echo in upper case until the other half ends, and then send a last word."""
    while data := await stream.receive_some():
        await stream.send_all(bytes(data).upper())
    await stream.send_all(b" over")


@asynccontextmanager
async def listening(handler: Handler = shout) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def handle(stream: trio.SocketStream) -> None:
            await handler(stream)

        await nursery.start(trio.serve_listeners, handle, [listener])
        yield int(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@pytest.fixture
def closed_port() -> Iterator[int]:
    # Held, so that no other process listens there meanwhile.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@asynccontextmanager
async def forwarding(pod: Pod) -> AsyncIterator[SpdyClient]:
    async with served(spdy_request("portforward.k8s.io", query={}), "portforward", pod) as stream:
        head, rest = await read_head(stream)
        assert head[0] == "HTTP/1.1 101 Switching Protocols"
        assert "X-Stream-Protocol-Version: portforward.k8s.io" in head
        yield SpdyClient(stream, rest)


async def open_pair(client: SpdyClient, port: int, request_id: str) -> tuple[int, int]:
    error = await client.open(streamtype="error", port=str(port), requestid=request_id)
    await client.send(error, b"", fin=True)
    data = await client.open(streamtype="data", port=str(port), requestid=request_id)
    return data, error


async def test_connections_are_carried_side_by_side_and_half_close(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod, listening() as port, forwarding(pod) as client:
        pairs = [await open_pair(client, port, str(number)) for number in range(5)]
        for number, (data, _) in enumerate(pairs):
            await client.send(data, b"hello %d" % number, fin=True)
        await client.receive_until(lambda: len(client.ended) == 10)
        for number, (data, error) in enumerate(pairs):
            assert client.data[data] == b"HELLO %d over" % number
            assert client.data[error] == b""
        assert client.reset == {}


async def test_a_refused_port_is_told_on_the_error_stream(tmp_path: Path, closed_port: int) -> None:
    async with running_pod(tmp_path) as pod, listening() as port, forwarding(pod) as client:
        data, error = await open_pair(client, closed_port, "0")
        await client.receive_until(lambda: data in client.reset)
        text = client.data[error].decode()
        assert text.startswith(
            f"error forwarding port {closed_port} to pod {pod.sandbox_id}, uid : failed to "
        )
        # The IPv6 part depends on what this machine reports for ::1.
        assert (
            f'failed to connect to localhost:{closed_port} inside namespace "{pod.sandbox_id}", '
            f"IPv4: dial tcp4 127.0.0.1:{closed_port}: connect: connection refused "
            f"IPv6 dial tcp6 [::1]:{closed_port}: connect: "
        ) in text
        # Another connection of the same client is not affected.
        data, _ = await open_pair(client, port, "1")
        await client.send(data, b"x", fin=True)
        await client.receive_until(lambda: data in client.ended)
        assert client.data[data] == b"X over"


async def test_a_connection_that_the_pod_resets_is_an_error(tmp_path: Path) -> None:
    async def slam(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()

    async with running_pod(tmp_path) as pod, listening(slam) as port, forwarding(pod) as client:
        data, error = await open_pair(client, port, "0")
        await client.send(data, b"x")
        await client.receive_until(lambda: data in client.reset)
        assert client.data[error].endswith(b"read: connection reset by peer")


async def test_a_pair_without_request_id_is_told_by_its_numbers(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod, listening() as port, forwarding(pod) as client:
        await client.open(streamtype="error", port=str(port))
        data = await client.open(streamtype="data", port=str(port))
        await client.send(data, b"old", fin=True)
        await client.receive_until(lambda: data in client.ended)
        assert client.data[data] == b"OLD over"


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "data"},
        {"streamtype": "data", "port": "0"},
        {"streamtype": "data", "port": "65536"},
        {"streamtype": "stdin", "port": "80"},
        {"port": "80"},
    ],
)
async def test_streams_that_are_none_of_a_port_forward_are_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with running_pod(tmp_path) as pod, forwarding(pod) as client:
        number = await client.open(**headers)
        await client.receive_until(lambda: bool(client.reset))
        assert client.reset == {number: spdy.CANCEL}


async def test_a_second_stream_of_one_kind_is_refused(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod, forwarding(pod) as client:
        await client.open(streamtype="error", port="80", requestid="0")
        second = await client.open(streamtype="error", port="80", requestid="0")
        await client.receive_until(lambda: bool(client.reset))
        assert client.reset == {second: spdy.CANCEL}


async def test_the_end_of_the_pod_ends_the_port_forward(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod, listening() as port, forwarding(pod) as client:
        data, _ = await open_pair(client, port, "0")
        await client.send(data, b"x")
        await client.receive_until(lambda: client.data.get(data) == b"X")
        pod.request_stop(0)
        await client.receive_until(lambda: client.gone_away)
        assert data in client.reset


async def test_a_tunnel_carries_spdy_in_websocket_messages(tmp_path: Path) -> None:
    request = websocket_request("SPDY/3.1+portforward.k8s.io", query={})
    async with (
        running_pod(tmp_path) as pod,
        listening() as port,
        served(request, "portforward", pod) as stream,
    ):
        head, rest = await read_head(stream)
        assert "Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io" in head
        websocket = WebSocketClient(stream, rest)
        codec = spdy.Codec()
        fields = {"port": str(port), "requestid": "7"}
        await websocket.send(codec.syn_stream(1, {**fields, "streamtype": "error"}))
        await websocket.send(codec.syn_stream(3, {**fields, "streamtype": "data"}) + spdy.data(3, b"in "))
        await websocket.send(spdy.data(3, b"a tunnel", fin=True))
        answer, ended = b"", 0
        while ended < 2:
            message = await websocket.receive()
            assert message is not None
            for event in codec.receive(message):
                if isinstance(event, spdy.DataReceived):
                    answer += event.data
                    ended += event.fin
        assert answer == b"IN A TUNNEL over"
        await websocket.send(spdy.goaway(0))
        while await websocket.receive() is not None:
            pass
        assert websocket.closed == 1000


@pytest.mark.parametrize("protocols", [(), ("v4.channel.k8s.io",)])
async def test_channels_carry_one_connection_to_each_port(
    tmp_path: Path, protocols: tuple[str, ...], closed_port: int
) -> None:
    async with running_pod(tmp_path) as pod, listening() as port:
        request = websocket_request(*protocols, query={"ports": [f"{port},{closed_port}"]})
        async with served(request, "portforward", pod) as stream:
            _, rest = await read_head(stream)
            websocket = WebSocketClient(stream, rest)
            await websocket.send(b"\x00hello")
            channels: dict[int, bytes] = {}
            while channels.get(0, b"")[2:] != b"HELLO" or len(channels.get(3, b"")) < 10:
                message = await websocket.receive()
                assert message is not None
                channels[message[0]] = channels.get(message[0], b"") + message[1:]
            assert channels[1] == struct.pack("<H", port)
            assert channels[2] == struct.pack("<H", closed_port)
            assert channels[3][2:].startswith(b"error forwarding port %d to pod" % closed_port)


async def test_a_pair_that_stays_incomplete_is_given_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    pod = Pod("default", "p", "uid", root=tmp_path, restart_policy="Never", on_change=lambda pod: None)
    ours, theirs = memory_stream_pair()
    client = SpdyClient(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_spdy, SpdyConnection(theirs), pod)
        error = await client.open(streamtype="error", port="80", requestid="0")
        await client.receive_until(lambda: error in client.reset)
        assert trio.current_time() >= PAIR_DEADLINE_S
        assert client.data[error] == b"(request=0) timed out waiting for streams"
        await ours.aclose()
