"""The transport against the `websockets` library, which shares no code with wsproto, over real TLS and TCP.

The library runs in threads of its own, with its own sockets.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
import trio
import websockets.exceptions
import websockets.sync.client
import websockets.sync.connection
import websockets.sync.server
import websockets.typing

from tests.tunnel.certificates import contexts
from tests.tunnel.websocket.websocket_bench import MESSAGES, expect_closed, read_head
from tunnel.net.connect import open_tls, wrap_server
from tunnel.net.tcp import TCPListener, TCPStream
from tunnel.websocket.transport import MESSAGE_BYTES_MAX, Transport
from tunnel.websocket.upgrade import SUBPROTOCOL, accept_websocket, dial_websocket

Peer = websockets.sync.connection.Connection
Script = Callable[[Peer], None]
Use = Callable[[Transport], Awaitable[None]]

SUBPROTOCOLS = [websockets.typing.Subprotocol(SUBPROTOCOL)]
TIMEOUT_S = 20.0


@contextmanager
def listening(script: Script) -> Iterator[int]:
    """The library's server in a thread; yields its port."""
    failures: list[BaseException] = []

    def guarded(peer: Peer) -> None:
        # The library would log it and go on.
        try:
            script(peer)
        except BaseException as exc:
            failures.append(exc)
            raise

    server = websockets.sync.server.serve(
        guarded, "127.0.0.1", 0, ssl=contexts()[1], subprotocols=SUBPROTOCOLS, max_size=MESSAGE_BYTES_MAX
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        thread.join()
    if failures:
        raise failures[0]


async def with_server(script: Script, use: Use) -> None:
    with listening(script) as port:
        stream = await open_tls("127.0.0.1", port, contexts()[0], server_hostname="hub.test")
        async with dial_websocket(stream, host="hub.test", target="/v1/tunnel") as transport:
            await use(transport)


@asynccontextmanager
async def accepting(use: Use) -> AsyncIterator[int]:
    """Our server, which serves one connection; yields its port."""
    served = trio.Event()

    async def serve(tcp: TCPStream) -> None:
        tls = wrap_server(tcp, contexts()[1])
        await tls.do_handshake()
        async with accept_websocket(tls, request_head=await read_head(tls)) as transport:
            await use(transport)
        served.set()

    async with trio.open_nursery() as nursery:
        listener = TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0])
        await nursery.start(trio.serve_listeners, serve, [listener])
        yield listener.socket.getsockname()[1]
        await served.wait()
        nursery.cancel_scope.cancel()


async def with_client(script: Script, use: Use) -> None:
    def run(port: int) -> None:
        with websockets.sync.client.connect(
            f"wss://localhost:{port}/v1/tunnel",
            ssl=contexts()[0],
            subprotocols=SUBPROTOCOLS,
            max_size=MESSAGE_BYTES_MAX,
            compression="deflate",
            proxy=None,
        ) as peer:
            script(peer)

    async with accepting(use) as port:
        await trio.to_thread.run_sync(run, port)


both_roles = pytest.mark.parametrize("run", [with_server, with_client])


@both_roles
async def test_messages_of_any_size_go_there_and_back(run: Callable[[Script, Use], Awaitable[None]]) -> None:
    closes: list[tuple[int, str]] = []

    def echo(peer: Peer) -> None:
        try:
            while True:
                peer.send(peer.recv())
        except websockets.exceptions.ConnectionClosed as closed:
            if closed.rcvd is not None:
                closes.append((closed.rcvd.code, closed.rcvd.reason))

    async def use(transport: Transport) -> None:
        for payload in MESSAGES:
            await transport.send(payload)
            assert await transport.receive() == payload
        await transport.aclose(4403, "enough")

    await run(echo, use)
    assert closes == [(4403, "enough")]


@both_roles
async def test_fragments_with_pings_between_them_are_one_message_and_each_ping_has_its_pong(
    run: Callable[[Script, Use], Awaitable[None]],
) -> None:
    def script(peer: Peer) -> None:
        pongs = []

        def fragments() -> Iterator[bytes]:
            for index in range(5):
                pongs.append(peer.ping(b"%d" % index))
                yield bytes([index]) * 30_000

        peer.send(fragments())
        assert all(pong.wait(TIMEOUT_S) for pong in pongs)
        assert peer.recv() == b"thanks"

    async def use(transport: Transport) -> None:
        assert await transport.receive() == b"".join(bytes([index]) * 30_000 for index in range(5))
        await transport.send(b"thanks")
        # The script returns, and its library closes.
        closed = await expect_closed(transport.receive)
        assert closed.code == 1000

    await run(script, use)


@both_roles
async def test_the_peers_close_is_answered(run: Callable[[Script, Use], Awaitable[None]]) -> None:
    clean: list[bool] = []

    def script(peer: Peer) -> None:
        peer.send(b"last words")
        peer.close(4503, "draining")
        with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
            peer.recv()
        clean.append(caught.value.rcvd == caught.value.sent and not caught.value.rcvd_then_sent)

    async def use(transport: Transport) -> None:
        assert await transport.receive() == b"last words"
        closed = await expect_closed(transport.receive)
        assert (closed.code, closed.reason) == (4503, "draining")

    await run(script, use)
    assert clean == [True]


def send_text(peer: Peer) -> None:
    peer.send("text")


def send_too_much(peer: Peer) -> None:
    peer.send(bytes(MESSAGE_BYTES_MAX + 1))


def send_too_much_in_fragments(peer: Peer) -> None:
    peer.send(bytes(65536) for _ in range(MESSAGE_BYTES_MAX // 65536 + 1))


@both_roles
@pytest.mark.parametrize(
    ("violate", "code"), [(send_text, 1003), (send_too_much, 1009), (send_too_much_in_fragments, 1009)]
)
async def test_a_peer_that_breaks_our_limits_gets_the_close_code(
    run: Callable[[Script, Use], Awaitable[None]], violate: Script, code: int
) -> None:
    told: list[int | None] = []

    def script(peer: Peer) -> None:
        with suppress(websockets.exceptions.ConnectionClosed):
            violate(peer)
        with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
            peer.recv()
        told.append(caught.value.rcvd.code if caught.value.rcvd is not None else None)

    async def use(transport: Transport) -> None:
        assert (await expect_closed(transport.receive)).code == code

    await run(script, use)
    assert told == [code]


@both_roles
async def test_a_peer_that_pings_without_end_does_not_stop_the_messages(
    run: Callable[[Script, Use], Awaitable[None]],
) -> None:
    def script(peer: Peer) -> None:
        for _ in range(300):
            last = peer.ping()
        assert last.wait(TIMEOUT_S)
        assert peer.recv() == b"meanwhile"
        peer.send(b"bye")
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            peer.recv()

    async def use(transport: Transport) -> None:
        await transport.send(b"meanwhile")
        assert await transport.receive() == b"bye"

    await run(script, use)
