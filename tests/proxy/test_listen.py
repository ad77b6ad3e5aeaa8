from __future__ import annotations

import pytest
import trio

from proxy.configuration import Address
from proxy.listen import open_listeners


async def test_it_listens_where_it_is_told() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    async with listener:
        host, port = listener.socket.getsockname()
        assert host == "127.0.0.1"
        async with await trio.open_tcp_stream(host, port) as client, await listener.accept() as server:
            await client.send_all(b"ahoy")
            assert await server.receive_some(4) == b"ahoy"


async def test_an_address_in_use_is_named() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    async with listener:
        taken = Address("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises(OSError, match=f"cannot listen on {taken}: Address already in use"):
            await open_listeners(taken)


async def test_a_name_that_leads_nowhere_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot listen on no-such-host\.invalid:1: "):
        await open_listeners(Address("no-such-host.invalid", 1))
