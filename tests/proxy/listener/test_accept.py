from __future__ import annotations

import re
import socket

import pytest
import trio

from proxy.listener.accept import open_listeners
from proxy.process.config import Address
from tunnel.net.connect import peer_address


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
