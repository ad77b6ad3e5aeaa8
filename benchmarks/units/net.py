"""What the network side costs by itself: TLS and the WebSocket transport, both ends, over loopback TCP.

    python -m benchmarks.units.net [NAME…]

Each line is the median and the least of RUNS short runs. CPU seconds are those of this process, where both
ends live, so an "exchange" is a request and its answer with everything that both of them did. The floor is
the same exchange by two blocking ssl.SSLSocket in one thread: OpenSSL, the kernel and the smallest of loops.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
import trustme

from benchmarks.accounting import rss_kb
from tunnel.net.connect import client_context, open_tcp, server_context, wrap_client, wrap_server
from tunnel.net.malloc import keep_large_buffers
from tunnel.net.tcp import TCPStream
from tunnel.net.tls import TLSStream
from tunnel.websocket import frames
from tunnel.websocket.transport import Transport
from tunnel.websocket.upgrade import accept_websocket, dial_websocket

RUNS = 5
REQUEST = bytes(100)
ANSWER = bytes(2048)
EXCHANGES = 4000
BULK_BYTES = 256 * 1024 * 1024
BULK_BYTES_SLOW_MASK = 32 * 1024 * 1024
# What the session's writer makes at most, and what it begins with.
MESSAGE_SIZES = (64 * 1024, 256 * 1024)
IDLE_CONNECTIONS = 1000

_Pair = tuple[TLSStream, TLSStream]


class Contexts:
    """One throw-away CA, a server's context and its client's."""

    def __init__(self) -> None:
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
            certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
            key.write_bytes(leaf.private_key_pem.bytes())
            self.server = server_context(certificate, key)
        self.ca_pem = authority.cert_pem.bytes().decode()
        self.client = client_context(self.ca_pem)
        # It keeps no session.
        self.forgetful = ssl.create_default_context(cadata=self.ca_pem)


@asynccontextmanager
async def tls_pair(contexts: Contexts, client_side: ssl.SSLContext | None = None) -> AsyncIterator[_Pair]:
    """A client's and a server's end of one connection."""
    near, far = socket_pair()
    server = wrap_server(TCPStream(far), contexts.server)
    clients: list[TLSStream] = []

    async def dial() -> None:
        context = client_side or contexts.client
        clients.append(await wrap_client(TCPStream(near), context, server_hostname="localhost"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        await server.do_handshake()
    client = clients[0]
    try:
        yield client, server
    finally:
        await trio.aclose_forcefully(client)
        await trio.aclose_forcefully(server)


@asynccontextmanager
async def transport_pair(contexts: Contexts) -> AsyncIterator[tuple[Transport, Transport]]:
    """A relay's and a hub's end of one WebSocket."""
    done = trio.Event()
    opened, servers = trio.open_memory_channel[Transport](1)

    async def answer(stream: TLSStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some()
        async with accept_websocket(stream, request_head=head) as transport:
            opened.send_nowait(transport)
            await done.wait()

    async with tls_pair(contexts) as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(answer, far)
        async with dial_websocket(near, host="localhost", target="/") as client:
            yield client, await servers.receive()
            done.set()


async def per_exchange(ask: Callable[[], Awaitable[None]], serve: Callable[[], Awaitable[None]]) -> float:
    """CPU µs of one exchange."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for _ in range(EXCHANGES // 10):
            await ask()
        began = time.process_time()
        for _ in range(EXCHANGES):
            await ask()
        spent = time.process_time() - began
        nursery.cancel_scope.cancel()
    return spent / EXCHANGES * 1e6


async def tls_exchange(contexts: Contexts) -> float:
    async with tls_pair(contexts) as (client, server):

        async def ask() -> None:
            await client.send_all(REQUEST)
            left = len(ANSWER)
            while left:
                left -= len(await client.receive_some())

        async def serve() -> None:
            while await server.receive_some():
                await server.send_all(ANSWER)

        return await per_exchange(ask, serve)


async def transport_exchange(contexts: Contexts) -> float:
    async with transport_pair(contexts) as (relay, hub):

        async def ask() -> None:
            await hub.send(REQUEST)
            await hub.receive()

        async def serve() -> None:
            while await relay.receive():
                await relay.send(ANSWER)

        return await per_exchange(ask, serve)


def floor_exchange(contexts: Contexts) -> float:
    """The same by two blocking sockets that never have to wait."""
    near, far = socket_pair()
    client = contexts.client.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
    server = contexts.server.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    handshake_blocking(client, server)
    began = time.process_time()
    for _ in range(EXCHANGES):
        client.send(REQUEST)
        server.recv(65536)
        server.send(ANSWER)
        client.recv(65536)
    spent = time.process_time() - began
    client.close()
    server.close()
    return spent / EXCHANGES * 1e6


def socket_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def handshake_blocking(client: ssl.SSLSocket, server: ssl.SSLSocket) -> None:
    ends = [client, server]
    for end in ends:
        end.setblocking(False)
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    for end in (client, server):
        end.setblocking(True)


def floor_bulk(contexts: Contexts) -> float:
    """A record at a time through two blocking sockets."""
    near, far = socket_pair()
    client = contexts.client.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
    server = contexts.server.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    handshake_blocking(client, server)
    record = bytes(16 * 1024)
    buffer = bytearray(16 * 1024)
    rounds = BULK_BYTES // len(record)
    began = time.process_time()
    for _ in range(rounds):
        server.send(record)
        left = len(record)
        while left:
            left -= client.recv_into(buffer)
    spent = time.process_time() - began
    client.close()
    server.close()
    return spent / BULK_BYTES * 1e9


async def tls_bulk(contexts: Contexts, size: int) -> float:
    """CPU s/GB."""
    async with tls_pair(contexts) as (client, server):
        chunk = os.urandom(size)

        async def send() -> None:
            for _ in range(BULK_BYTES // size):
                await server.send_all(chunk)

        async def receive() -> None:
            left = BULK_BYTES
            while left:
                left -= len(await client.receive_some())

        return await per_byte(send, receive) / BULK_BYTES * 1e9


async def transport_bulk(contexts: Contexts, size: int, total: int) -> float:
    """CPU s/GB of a download: from the relay, which masks, to the hub."""
    async with transport_pair(contexts) as (relay, hub):
        message = os.urandom(size)
        count = total // size

        async def send() -> None:
            for _ in range(count):
                await relay.send(message)

        async def receive() -> None:
            for _ in range(count):
                assert len(await hub.receive()) == size

        return await per_byte(send, receive) / total * 1e9


async def per_byte(send: Callable[[], Awaitable[None]], receive: Callable[[], Awaitable[None]]) -> float:
    """CPU seconds until both have ended."""
    began = time.process_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
    return time.process_time() - began


async def transport_bulk_slow_mask(contexts: Contexts) -> float:
    fast, frames.apply_mask = frames.apply_mask, frames.apply_mask_slowly  # type: ignore[misc]
    try:
        return await transport_bulk(contexts, MESSAGE_SIZES[0], BULK_BYTES_SLOW_MASK)
    finally:
        frames.apply_mask = fast  # type: ignore[misc]


async def handshake_cost(contexts: Contexts, *, resumed: bool) -> float:
    """CPU µs of a connect, a handshake, one send and a close."""
    count = 100
    began = time.process_time()
    for _ in range(count):
        async with tls_pair(contexts, contexts.client if resumed else contexts.forgetful) as (client, server):
            await server.send_all(REQUEST)
            await client.receive_some()
    return (time.process_time() - began) / count * 1e6


# --- memory: two processes, so that each end is measured by itself ---


def idle_memory() -> None:
    """Print the KB of one idle connection that has carried an exchange, at each end."""
    contexts = Contexts()
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.units.net", "--idle-client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        server_kb = trio.run(_idle_server, contexts, child)
        client_kb = float(child.stdout.readline())
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
    print(f"{'idle TLS connection, server end':<52}{server_kb:9.1f} KB")
    print(f"{'idle TLS connection, client end':<52}{client_kb:9.1f} KB")


async def _idle_server(contexts: Contexts, child: subprocess.Popen[str]) -> float:
    served = 0
    first_served, all_served = trio.Event(), trio.Event()

    async def handle(tcp: trio.abc.Stream) -> None:
        nonlocal served
        async with wrap_server(tcp, contexts.server) as tls:
            await tls.do_handshake()
            try:
                while await tls.receive_some():
                    await tls.send_all(ANSWER)
                    served += 1
                    first_served.set()
                    if served == IDLE_CONNECTIONS + 1:
                        all_served.set()
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=128)
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        assert child.stdin is not None
        child.stdin.write(f"{listeners[0].socket.getsockname()[1]} {contexts.ca_pem.encode().hex()}\n")
        child.stdin.flush()
        await first_served.wait()
        before = rss_kb(os.getpid())
        await all_served.wait()
        await trio.sleep(0.2)
        after = rss_kb(os.getpid())
        nursery.cancel_scope.cancel()
    return (after - before) / IDLE_CONNECTIONS


async def _idle_client() -> None:
    port, ca = sys.stdin.readline().split()
    context = client_context(bytes.fromhex(ca).decode())
    streams: list[TLSStream] = []

    async def dial() -> None:
        tls = await wrap_client(await open_tcp("127.0.0.1", int(port)), context, server_hostname="localhost")
        await tls.send_all(REQUEST)
        await tls.receive_some()
        streams.append(tls)

    await dial()
    before = rss_kb(os.getpid())
    for _ in range(IDLE_CONNECTIONS):
        await dial()
    print((rss_kb(os.getpid()) - before) / IDLE_CONNECTIONS, flush=True)
    sys.stdin.readline()
    for tls in streams:
        await trio.aclose_forcefully(tls)


def measure(name: str, unit: str, once: Callable[[], float]) -> None:
    values = [once() for _ in range(RUNS)]
    print(f"{name:<52}{statistics.median(values):9.2f} {unit}   (least {min(values):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only what has one of these words in its name")
    parser.add_argument(
        "--malloc",
        action="store_true",
        help="as the processes run: tunnel.net.malloc.keep_large_buffers",
    )
    parser.add_argument("--idle-client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft < hard else (soft, hard))
    if options.idle_client:
        trio.run(_idle_client)
        return
    if options.malloc:
        print("glibc keeps large buffers" if keep_large_buffers() else "this is not glibc")
    contexts = Contexts()
    cases: list[tuple[str, str, Callable[[], float]]] = [
        ("exchange by blocking sockets (the floor)", "µs", lambda: floor_exchange(contexts)),
        ("exchange over TLS", "µs", lambda: trio.run(tls_exchange, contexts)),
        ("exchange over the WebSocket transport", "µs", lambda: trio.run(transport_exchange, contexts)),
        ("bulk by blocking sockets (the floor)", "s/GB", lambda: floor_bulk(contexts)),
    ]
    for size in MESSAGE_SIZES:
        cases.append(
            (
                f"bulk over TLS, {size // 1024} KiB a send",
                "s/GB",
                lambda size=size: trio.run(tls_bulk, contexts, size),  # type: ignore[misc]
            )
        )
    if frames.apply_mask is frames.apply_mask_slowly:
        print("the C mask is missing: pip install '.[speed]'; all WebSocket lines are without it")
    for size in MESSAGE_SIZES:
        cases.append(
            (
                f"bulk over the WebSocket transport, {size // 1024} KiB",
                "s/GB",
                lambda size=size: trio.run(transport_bulk, contexts, size, BULK_BYTES),  # type: ignore[misc]
            )
        )
    cases += [
        (
            "bulk over the WebSocket transport, pure Python mask",
            "s/GB",
            lambda: trio.run(transport_bulk_slow_mask, contexts),
        ),
        (
            "connect, full handshake, one send, close",
            "µs",
            lambda: trio.run(partial(handshake_cost, contexts, resumed=False)),
        ),
        (
            "connect, resumed handshake, one send, close",
            "µs",
            lambda: trio.run(partial(handshake_cost, contexts, resumed=True)),
        ),
    ]
    for name, unit, once in cases:
        if not options.names or any(word in name for word in options.names):
            measure(name, unit, once)
    if not options.names or any(word in "idle TLS connection" for word in options.names):
        idle_memory()


if __name__ == "__main__":
    main()
