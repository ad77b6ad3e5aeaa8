from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from proxy.listener.balancers import NO_BALANCERS, Balancers
from proxy.listener.client_address import HEADER_S, Admitter, address_of
from proxy.listener.unauthenticated import UnauthenticatedLimits
from tests.fakes.balancer import LOCAL, UNSPEC, header, of_client
from tunnel.net.connect import peer_address
from tunnel.net.loglimit import LogLimit
from tunnel.net.tcp import TCPListener, TCPStream

HELLO = b"\x16\x03\x01 and what else a client sends"


@attrs.define(eq=False)
class Pair:
    admitter: Admitter
    client: trio.SocketStream
    server: TCPStream

    @property
    def networks(self) -> dict[str, int]:
        return {network: len(there) for network, there in self.admitter.limits.networks.items()}

    async def ended(self) -> bool:
        """Whether the connection is closed at this end; what is on its way is read first."""
        try:
            return await self.client.receive_some() == b""
        except trio.BrokenResourceError:
            return True


@asynccontextmanager
async def connected(balancers: Balancers) -> AsyncIterator[Pair]:
    """A connection of 127.0.0.1 that is accepted, and not yet let in."""
    [listening] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = TCPListener(listening)
    client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    server = await listener.accept()
    admitter = Admitter(UnauthenticatedLimits(), LogLimit(logging.getLogger("hawse.test")), balancers)
    async with listener, client, server:
        yield Pair(admitter, client, server)


BALANCERS = Balancers.of(["127.0.0.0/8"])


async def test_a_load_balancers_connection_is_its_clients_and_what_follows_is_left() -> None:
    async with connected(BALANCERS) as pair, trio.open_nursery() as nursery:
        sent = of_client("203.0.113.7", 5) + HELLO

        async def drip() -> None:
            for at in range(len(sent)):
                await pair.client.send_all(sent[at : at + 1])
                await trio.lowlevel.checkpoint()

        nursery.start_soon(drip)
        pending = await pair.admitter.admit(pair.server)
        assert pending is not None
        assert (pending.network, pair.networks) == ("203.0.113.7", {"203.0.113.7": 1})
        assert (address_of(pair.server), peer_address(pair.server)) == ("203.0.113.7", "203.0.113.7:5")
        received = b""
        while len(received) < len(HELLO):
            received += await pair.server.receive_some()
        assert received == HELLO


async def test_a_load_balancers_own_connection_keeps_its_address() -> None:
    async with connected(BALANCERS) as pair:
        await pair.client.send_all(header(LOCAL, UNSPEC, b"tlvs of some kind") + HELLO)
        pending = await pair.admitter.admit(pair.server)
        assert pending is not None
        assert (pending.network, pair.networks) == ("127.0.0.1", {"127.0.0.1": 1})
        assert await pair.server.receive_some() == HELLO


async def test_a_header_of_another_is_never_read() -> None:
    for balancers in (NO_BALANCERS, Balancers.of(["127.0.0.2"])):
        async with connected(balancers) as pair:
            sent = of_client("203.0.113.7") + HELLO
            await pair.client.send_all(sent)
            pending = await pair.admitter.admit(pair.server)
            assert pending is not None
            assert pending.network == address_of(pair.server) == "127.0.0.1"
            assert await pair.server.receive_some() == sent


async def test_a_load_balancer_without_a_header_is_refused_at_its_first_bytes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected(BALANCERS) as pair:
        await pair.client.send_all(HELLO)
        assert await pair.admitter.admit(pair.server) is None
        assert await pair.ended()
        assert pair.networks == {}
    assert "which listen_proxy_from names: its first bytes are no PROXY header of version 2" in caplog.text


@pytest.mark.parametrize("sent", [b"", of_client("203.0.113.7")[:-1]], ids=["nothing", "nearly-all"])
async def test_a_load_balancer_has_two_seconds_for_the_header(
    sent: bytes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with connected(BALANCERS) as pair:
        await pair.client.send_all(sent)
        began = trio.current_time()
        assert await pair.admitter.admit(pair.server) is None
        assert trio.current_time() - began == pytest.approx(HEADER_S)
        assert await pair.ended()
        assert pair.networks == {}
    assert "no PROXY header has come from 127.0.0.1:" in caplog.text


async def test_a_tcp_health_check_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected(BALANCERS) as pair:
        await pair.client.aclose()
        assert await pair.admitter.admit(pair.server) is None
        assert pair.networks == {}
    assert caplog.text == ""


async def test_a_client_above_the_limit_is_refused_and_the_load_balancers_share_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.listener.unauthenticated.UnauthenticatedLimits.per_network_max", 1)
    async with connected(BALANCERS) as pair:
        pair.admitter.limits.enter("203.0.113.7", lambda why: None).hello_received()
        await pair.client.send_all(of_client("203.0.113.7"))
        assert await pair.admitter.admit(pair.server) is None
        assert await pair.ended()
        assert pair.networks == {"203.0.113.7": 1}


async def test_one_that_makes_room_before_its_header_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.listener.unauthenticated.UnauthenticatedLimits.per_network_max", 1)
    async with connected(BALANCERS) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.admitter.admit, pair.server)
        await trio.testing.wait_all_tasks_blocked()
        pair.admitter.limits.enter("127.0.0.1", lambda why: None)
        assert await pair.ended()
    assert pair.networks == {"127.0.0.1": 1}


async def test_cancelled_before_its_header_nothing_stays_open() -> None:
    async with connected(BALANCERS) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.admitter.admit, pair.server)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await pair.ended()
        assert pair.networks == {}
