"""Two ends of a connection over a loopback socket, and of one with TLS over any stream."""

from __future__ import annotations

import ssl

import trio

from tests.tunnel.certificates import contexts
from tunnel.net.tcp import TCPListener, TCPStream
from tunnel.net.tls import TLSStream

AnyStream = trio.abc.Stream


async def tcp_pair() -> tuple[TCPStream, TCPStream]:
    """(client, server) of one connection over loopback."""
    async with TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]) as listener:
        client = TCPStream.take_over(
            await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        )
        return client, await listener.accept()


async def handshake(
    pair: tuple[AnyStream, AnyStream], version: ssl.TLSVersion | None = None
) -> tuple[TLSStream, TLSStream]:
    """(client, server) with TLS over both ends of `pair`."""
    client_side, server_side = contexts(version)
    client = TLSStream(pair[0], client_side, server_hostname="hub.test")
    server = TLSStream(pair[1], server_side, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    return client, server


async def receive_exactly(stream: AnyStream, count: int, max_bytes: int | None = None) -> bytes:
    received = b""
    while len(received) < count:
        data = await stream.receive_some(max_bytes)
        assert data, f"the stream ended after {len(received)} of {count} bytes"
        received += data
    return received
