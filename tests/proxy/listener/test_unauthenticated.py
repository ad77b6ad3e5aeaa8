from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import suppress

import pytest
import trio
from prometheus_client import CollectorRegistry
from trio.testing import memory_stream_pair

from proxy.hub.admin.metrics.hub import ConnectionsCollector
from proxy.listener.unauthenticated import (
    PENDING_BYTES_FREE,
    MeteredStream,
    PendingConnection,
    TooManyPendingError,
    UnauthenticatedLimits,
    network_of,
)
from tests.tunnel.stream_pairs import handshake


def _enter(
    limits: UnauthenticatedLimits, address: str, cut: Callable[[str], None] = lambda why: None
) -> PendingConnection:
    """A connection whose TLS hello has come."""
    pending = limits.enter(address, cut)
    pending.hello_received()
    return pending


def test_connections_are_counted_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnauthenticatedLimits, "per_network_max", 2)
    limits = UnauthenticatedLimits(connections_max=4)
    first, _ = _enter(limits, "192.0.2.1"), _enter(limits, "192.0.2.1")
    with pytest.raises(TooManyPendingError, match=r"192\.0\.2\.1"):
        _enter(limits, "192.0.2.1")
    _enter(limits, "192.0.2.2")
    _enter(limits, "192.0.2.3")
    with pytest.raises(TooManyPendingError, match="wait to authenticate"):
        _enter(limits, "192.0.2.3")
    first.release()
    _enter(limits, "192.0.2.1")


def test_three_thousand_clients_of_one_address_may_connect_before_the_first_hello(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limits = UnauthenticatedLimits()
    cut: list[str] = []
    burst = [limits.enter("192.0.2.1", cut.append) for _ in range(3000)]
    # Another network needs no eviction.
    limits.enter("192.0.2.2", cut.append)
    for pending in burst:
        pending.hello_received()
    assert (cut, limits.evicted, limits.refused) == ([], 0, 0)


@pytest.mark.parametrize(("connections_max", "per_network_max"), [(4096, 3072), (1024, 768)])
def test_one_network_leaves_a_quarter_to_the_others(
    connections_max: int, per_network_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limits = UnauthenticatedLimits(connections_max=connections_max)
    for _ in range(per_network_max):
        _enter(limits, "192.0.2.1")
    with pytest.raises(TooManyPendingError, match=rf"^{per_network_max} connections of 192\.0\.2\.1 "):
        _enter(limits, "192.0.2.1")


def test_what_the_limits_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnauthenticatedLimits, "per_network_max", 1)
    limits = UnauthenticatedLimits()
    limits.enter("192.0.2.1", lambda why: None)
    _enter(limits, "192.0.2.1")
    assert (limits.evicted, limits.refused) == (1, 0)
    with pytest.raises(TooManyPendingError):
        _enter(limits, "192.0.2.1")
    assert (limits.evicted, limits.refused) == (1, 1)
    registry = CollectorRegistry()
    registry.register(ConnectionsCollector(limits))
    assert registry.get_sample_value("hawse_connections_unauthenticated") == 1
    for how in ("refused", "evicted"):
        assert registry.get_sample_value("hawse_connections_dropped_total", {"how": how}) == 1


def test_the_oldest_connection_is_cut_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnauthenticatedLimits, "per_network_max", 2)
    at = 100.0
    limits = UnauthenticatedLimits(clock=lambda: at, connections_max=3)
    cut: list[str] = []

    def enter(name: str, address: str) -> PendingConnection:
        return _enter(limits, address, lambda why: cut.append(f"{name}: {why}"))

    enter("first", "192.0.2.1")
    known = enter("second", "192.0.2.1")
    # Both may be about to send a hello.
    at += 1.9
    with pytest.raises(TooManyPendingError):
        enter("third", "192.0.2.1")
    at += 0.1
    enter("third", "192.0.2.1")
    assert cut == ["first: 2 connections of 192.0.2.1 have not authenticated, the limit"]
    known.release()
    enter("fourth", "192.0.2.2")
    enter("fifth", "192.0.2.3")
    assert len(cut) == 1
    at += 2
    # In all there are too many, and one who is known by now is not among them.
    enter("sixth", "192.0.2.4")
    assert cut[1:] == ["third: 3 connections wait to authenticate, the limit"]
    assert (limits.connections, list(limits.networks)) == (3, ["192.0.2.2", "192.0.2.3", "192.0.2.4"])


def test_the_network_with_the_most_connections_loses_one_to_another_network() -> None:
    limits = UnauthenticatedLimits(connections_max=6)
    cut: list[str] = []
    for number in range(4):
        _enter(limits, "192.0.2.1", lambda why, number=number: cut.append(f"{number}: {why}"))  # type: ignore[misc]
    for _ in range(2):
        _enter(limits, "192.0.2.2")
    _enter(limits, "192.0.2.3")
    # The older ones are nearer to their hello.
    assert cut == ["3: 6 connections wait to authenticate, the limit, 4 of them of 192.0.2.1"]
    with pytest.raises(TooManyPendingError):
        _enter(limits, "192.0.2.2")
    _enter(limits, "192.0.2.3")
    with pytest.raises(TooManyPendingError):
        _enter(limits, "192.0.2.3")
    assert {network: len(there) for network, there in limits.networks.items()} == {
        "192.0.2.1": 2,
        "192.0.2.2": 2,
        "192.0.2.3": 2,
    }


def test_the_oldest_without_a_hello_is_cut_at_once_for_one_of_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(UnauthenticatedLimits, "per_network_max", 3)
    limits = UnauthenticatedLimits()
    cut: list[str] = []
    greeted = _enter(limits, "192.0.2.1", cut.append)
    silent = [
        limits.enter("192.0.2.1", lambda why, number=number: cut.append(f"{number}")) for number in (1, 2)
    ]  # type: ignore[misc]
    newcomer = limits.enter("192.0.2.1", lambda why: cut.append("3"))
    assert cut == ["1"]
    assert (greeted.counted, silent[0].counted) == (True, False)
    silent[1].hello_received()
    # What sent its hello stays, and the newcomer, which has not, makes room for the next.
    limits.enter("192.0.2.1", cut.append).hello_received()
    assert (cut, newcomer.counted) == (["1", "3"], False)
    with pytest.raises(TooManyPendingError):
        limits.enter("192.0.2.1", cut.append)
    # A hello that comes after its connection was ended changes nothing.
    newcomer.hello_received()
    for pending in list(limits.pending):
        pending.release()
    assert [limits.pending, limits.networks, limits.silent, limits.silent_networks] == [{}, {}, {}, {}]


def test_beyond_the_total_connections_without_a_hello_are_cut_first() -> None:
    limits = UnauthenticatedLimits(connections_max=4)
    cut: list[str] = []
    _enter(limits, "192.0.2.1")
    for name, address in (("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.4")):
        limits.enter(address, lambda why, name=name: cut.append(name))  # type: ignore[misc]
    # Of the address that has the most.
    _enter(limits, "192.0.2.3")
    assert cut == ["a"]
    # Of any, if more are without a hello than the fullest address has.
    _enter(limits, "192.0.2.3")
    assert cut == ["a", "b"]
    # Else of the newcomer's own.
    with pytest.raises(TooManyPendingError):
        _enter(limits, "192.0.2.3")
    assert cut == ["a", "b"]


@pytest.mark.parametrize(("connections_max", "flooding"), [(4096, 1), (4096, 2), (1024, 1), (1024, 3)])
def test_a_flood_from_few_addresses_does_not_cut_another_client_before_its_hello(
    connections_max: int, flooding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limits = UnauthenticatedLimits(connections_max=connections_max)
    cut: list[str] = []

    def flood(count: int) -> None:
        for number in range(count):
            with suppress(TooManyPendingError):
                _enter(limits, f"198.51.100.{number % flooding}")

    flood(connections_max + 100)
    client = limits.enter("192.0.2.1", cut.append)
    flood(100)
    assert (cut, client.counted) == ([], True)


@pytest.mark.parametrize(("files_max", "expected"), [(1024, 512), (resource.RLIM_INFINITY, 4096)])
def test_half_of_the_open_files_are_left_for_authenticated_connections(
    files_max: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files_max, files_max))
    assert UnauthenticatedLimits().connections_max == expected


def test_silent_connections_of_many_addresses_do_not_evict_a_gateways() -> None:
    at = 100.0
    limits = UnauthenticatedLimits(clock=lambda: at, connections_max=8)
    cut: list[str] = []
    for number in range(5):
        limits.enter(f"198.51.100.{number}", lambda why, number=number: cut.append(f"{number}"))  # type: ignore[misc]
    agents = [_enter(limits, "192.0.2.1", lambda why: cut.append("an agent")) for _ in range(2)]
    agents.append(limits.enter("192.0.2.1", lambda why: cut.append("an agent")))
    at += 2
    for number in range(3):
        _enter(limits, f"203.0.113.{number}")
    assert cut == ["0", "1", "2"]
    assert all(agent.counted for agent in agents)
    # Fewer than an address has are no flood: a slow client makes no room for one that has sent its hellos.
    _enter(limits, "203.0.113.4")
    assert cut[3:] == ["an agent"]


def test_the_addresses_of_one_ipv6_client_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnauthenticatedLimits, "per_network_max", 2)
    limits = UnauthenticatedLimits()
    first, _ = _enter(limits, "2001:db8::1"), _enter(limits, "2001:db8::2")
    with pytest.raises(TooManyPendingError, match="2001:db8::/64"):
        _enter(limits, "2001:db8::3")
    _enter(limits, "2001:db8:0:1::1")
    first.release()
    _enter(limits, "2001:db8::3")


def test_leaving_twice_gives_back_once() -> None:
    limits = UnauthenticatedLimits()
    one, other = _enter(limits, "192.0.2.1"), _enter(limits, "192.0.2.1")
    one.charge(100)
    one.release()
    one.release()
    assert (limits.connections, limits.bytes_held) == (1, 0)
    other.release()
    assert (limits.connections, dict(limits.networks)) == (0, {})


def test_unauthenticated_bytes_are_bounded_in_all() -> None:
    limits = UnauthenticatedLimits(bytes_max=4 * PENDING_BYTES_FREE)
    one, other = _enter(limits, "192.0.2.1"), _enter(limits, "192.0.2.2")
    other.charge(PENDING_BYTES_FREE)
    one.charge(3 * PENDING_BYTES_FREE)
    with pytest.raises(trio.BrokenResourceError, match="too many bytes"):
        one.charge(1)
    one.release()
    other.release()
    assert limits.bytes_held == 0


def test_a_crowd_of_large_heads_does_not_cost_an_ordinary_one_its_connection() -> None:
    limits = UnauthenticatedLimits(bytes_max=PENDING_BYTES_FREE)
    crowd, ordinary = _enter(limits, "192.0.2.1"), _enter(limits, "192.0.2.2")
    crowd.charge(PENDING_BYTES_FREE)
    ordinary.charge(PENDING_BYTES_FREE)


def test_an_answered_connection_counts_no_more() -> None:
    limits = UnauthenticatedLimits()
    one = _enter(limits, "192.0.2.1")
    one.charge(1000)
    one.release_bytes()
    one.charge(10)
    assert limits.bytes_held == 10
    one.release()
    one.release_bytes()
    assert limits.bytes_held == 0


async def test_a_stream_counts_received_bytes_until_its_sender_is_authenticated() -> None:
    client, server = await handshake(memory_stream_pair())
    limits = UnauthenticatedLimits()
    pending = _enter(limits, "192.0.2.1")
    metered = MeteredStream(server, pending)
    await client.send_all(bytes(100))
    assert await metered.receive_some() == bytes(100)
    await client.send_all(bytes(100))
    assert await metered.receive_some(30) == bytes(30)
    assert limits.bytes_held == 130
    async with trio.open_nursery() as nursery:
        # One that is under way when its sender becomes known counts no more either.
        assert await metered.receive_some() == bytes(70)
        nursery.start_soon(metered.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        pending.release()
        await client.send_all(bytes(100))
    assert limits.bytes_held == 0
    await client.send_all(b"known")
    assert await metered.receive_some() == b"known"
    assert pending.bytes_held == 0
    await metered.send_all(b"answer")
    assert await client.receive_some() == b"answer"
    await client.aclose()
    await metered.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await metered.wait_send_all_might_not_block()


def test_an_ipv4_client_behind_a_translator_counts_alone() -> None:
    assert network_of("64:ff9b::192.0.2.1") == network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("64:ff9b:1::1") == "64:ff9b:1::/64"


def test_an_address_that_is_not_ip_counts_alone() -> None:
    assert network_of("@hub") == "@hub"
