from __future__ import annotations

import errno
import re
import socket

import pytest
import trio
import trio.testing

from proxy.listener.accept import RETRY_S, open_listeners, serve_connections
from proxy.process.config import Address
from tunnel.net.connect import close_forcefully, peer_address
from tunnel.net.tcp import TCPListener, TCPStream


async def test_it_listens_on_the_configured_address() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0), "listen")
    async with listener:
        host, port = listener.socket.getsockname()
        assert host == "127.0.0.1"
        async with await trio.open_tcp_stream(host, port) as client, await listener.accept() as server:
            await client.send_all(b"ahoy")
            assert await server.receive_some(4) == b"ahoy"


@pytest.mark.parametrize("with_ipv6", [True, False])
async def test_everywhere_includes_ipv4(monkeypatch: pytest.MonkeyPatch, with_ipv6: bool) -> None:
    if not with_ipv6:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (listener,) = await open_listeners(Address.parse("[::]:0"), "listen")
    async with listener:
        port = listener.socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as client, await listener.accept() as server:
            host, port = client.socket.getsockname()
            assert peer_address(server) == f"{host}:{port}"


async def test_an_address_in_use_is_named_with_what_stated_it() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0), "listen")
    async with listener:
        taken = Address("127.0.0.1", listener.socket.getsockname()[1])
        for address in (taken, Address("::", taken.port)):
            told = (
                f"cannot listen on {address} (--port): Address already in use: "
                "end what listens there, or give --port another port"
            )
            with pytest.raises(OSError, match=re.escape(told)):
                await open_listeners(address, "--port")


@pytest.mark.parametrize("name", ["no-such-host.invalid", "hub..example"])
async def test_a_name_that_leads_nowhere_is_named(name: str) -> None:
    with pytest.raises(OSError, match=rf"cannot listen on {re.escape(name)}:1 \(listen\): "):
        await open_listeners(Address(name, 1), "listen")


async def test_accepting_pauses_while_the_process_has_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3
    accept = TCPListener.accept

    async def limited(listener: TCPListener) -> TCPStream:
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(TCPListener, "accept", limited)
    (listener,) = await open_listeners(Address("127.0.0.1", 0), "listen")
    address = listener.socket.getsockname()
    accepted = trio.Event()

    async def handle(stream: TCPStream) -> None:
        accepted.set()
        await close_forcefully(stream)

    async with trio.open_nursery() as nursery:
        began_s = trio.current_time()
        await nursery.start(serve_connections, handle, [listener], nursery)
        async with await trio.open_tcp_stream(*address):
            await accepted.wait()
        assert trio.current_time() == pytest.approx(began_s + 3 * RETRY_S)
        nursery.cancel_scope.cancel()
    assert listener.socket.fileno() == -1
    assert [line.message for line in caplog.records] == ["cannot accept connections: Too many open files"]


async def test_a_handler_outlives_the_accepting() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0), "listen")
    address = listener.socket.getsockname()
    received = b""

    async def handle(stream: TCPStream) -> None:
        nonlocal received
        await accepting.cancel_and_wait()
        received = bytes(await stream.receive_some(4))
        await stream.aclose()

    class Accepting:
        def __init__(self) -> None:
            self.scope = trio.CancelScope()
            self.ended = trio.Event()

        async def run(self) -> None:
            with self.scope:
                await serve_connections(handle, [listener], handlers)
            self.ended.set()

        async def cancel_and_wait(self) -> None:
            self.scope.cancel()
            await self.ended.wait()

    accepting = Accepting()
    async with trio.open_nursery() as handlers:
        handlers.start_soon(accepting.run)
        async with await trio.open_tcp_stream(*address) as client:
            await client.send_all(b"ahoy")
            await accepting.ended.wait()
            assert await client.receive_some() == b""
    assert received == b"ahoy"


async def test_another_fault_of_the_listener_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: TCPListener) -> TCPStream:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(TCPListener, "accept", broken)
    (listener,) = await open_listeners(Address("127.0.0.1", 0), "listen")
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="Invalid argument"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connections, close_forcefully, [listener], nursery)
    assert listener.socket.fileno() == -1
