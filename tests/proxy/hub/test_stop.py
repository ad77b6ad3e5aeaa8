"""The order in which a hub stops, on virtual time."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from functools import partial
from typing import cast

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from proxy.exchange.deadlines import Deadlines
from proxy.hub.front import Front
from proxy.hub.home.config import PEERS_GRACE_S, STOP_GRACE_S, STOP_LB_S, StopConfig
from proxy.hub.stop import Stop
from proxy.process.lifecycle.drain import PLAIN_S, Drained


class Open(Drained):
    """Open calls that end by themselves."""

    def __init__(self) -> None:
        self.calls: list[bool] = []

    @property
    def count(self) -> int:
        return len(self.calls)

    @property
    def long(self) -> int:
        return sum(self.calls)

    @property
    def any_long(self) -> bool:
        return any(self.calls)

    async def run(self, seconds: float, *, long: bool) -> None:
        self.calls.append(long)
        await trio.sleep(seconds)
        self.calls.remove(long)
        self._ended()


class Idles:
    """A connection between two requests."""

    async def aclose(self) -> None: ...


@attrs.define(eq=False)
class Hub:
    """What a stop has to do with, and what it did when."""

    did: list[tuple[float, str]] = attrs.Factory(list)
    ready: bool = False
    leaving: bool = False
    live: Open = attrs.Factory(Open)
    deadlines: Deadlines = attrs.Factory(Deadlines)
    began: float = attrs.Factory(trio.current_time)
    serve: bool = True
    carry: bool = True
    asked: None = None
    """No call waits for an approval."""
    signal: trio.MemorySendChannel[int] = attrs.field(init=False)
    signals: trio.MemoryReceiveChannel[int] = attrs.field(init=False)

    @property
    def now(self) -> float:
        return trio.current_time() - self.began

    @property
    def calls(self) -> Hub:
        return self

    @property
    def dials(self) -> Hub:
        return self

    @property
    def relays(self) -> Relays:
        return Relays(self)

    def leave(self, *, replaced: bool = False) -> None:
        """As the peers."""
        assert not self.deadlines.ending
        self.did.append((self.now, "peers replaced" if replaced else "peers"))


@attrs.frozen
class Relays:
    """The relays' endpoint."""

    hub: Hub

    def leave(self, grace_s: float, *, replaced: bool = False, resumes: bool = False) -> None:
        assert self.hub.deadlines.ending
        words = ["relays", f"{grace_s:.0f}", "replaced" * replaced, "resumes" * resumes]
        self.hub.did.append((self.hub.now, " ".join(word for word in words if word)))


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    hub.signal, hub.signals = trio.open_memory_channel[int](1)
    with hub.signal, hub.signals:
        yield hub


def stop_of(hub: Hub, config: StopConfig = StopConfig(), *, peers: bool = True) -> Stop:  # noqa: B008 - it is frozen
    return Stop(config, cast(Front, hub), hub.signals, hub if peers else None)


async def test_a_hub_tells_its_peers_before_its_relays_and_waits_for_its_balancer(
    hub: Hub, autojump_clock: MockClock
) -> None:
    stop = stop_of(hub)
    await stop.leave()
    assert hub.did == [
        (0, "peers"),
        (0, f"relays {PEERS_GRACE_S} resumes"),
    ]
    assert hub.leaving
    assert hub.now == STOP_LB_S
    await stop.finish(replaced=False)
    assert hub.now == STOP_LB_S
    assert len(hub.did) == 2


@pytest.mark.parametrize("peers", [True, False])
async def test_a_hub_without_others_that_serve_stops_as_one_alone(
    hub: Hub, autojump_clock: MockClock, peers: bool
) -> None:
    hub.serve = False
    stop = stop_of(hub, peers=peers)
    await stop.leave()
    assert hub.did == []
    assert not hub.leaving
    await stop.finish(replaced=False)
    assert hub.did == [(0, "peers")] * peers + [(0, f"relays {STOP_GRACE_S}")]
    assert hub.now == 0


@pytest.mark.parametrize("carry", [True, False])
async def test_a_hub_that_another_process_replaces_tells_its_peers_that(
    hub: Hub, autojump_clock: MockClock, carry: bool
) -> None:
    hub.carry = carry
    await stop_of(hub).finish(replaced=True)
    assert hub.did == [(0, "peers replaced"), (0, "relays 900 replaced" + carry * " resumes")]


async def test_calls_that_are_forwarded_for_peers_are_waited_for(hub: Hub, autojump_clock: MockClock) -> None:
    stop = stop_of(hub)
    stop.forwarded = forwarded = Open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(forwarded.run, 500, long=True))
        nursery.start_soon(partial(hub.live.run, 300, long=True))
        await trio.testing.wait_all_tasks_blocked()
        await stop.leave()
        assert hub.now == STOP_LB_S
        await stop.finish(replaced=False)
        assert hub.now == 500
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("long", "waits_s"), [(True, 900), (False, STOP_LB_S + PLAIN_S)])
async def test_the_grace_begins_with_the_signal(
    hub: Hub, autojump_clock: MockClock, long: bool, waits_s: float
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(hub.live.run, 1000, long=long))
        await trio.testing.wait_all_tasks_blocked()
        stop = stop_of(hub)
        await stop.leave()
        await stop.finish(replaced=False)
        assert hub.now == waits_s
        nursery.cancel_scope.cancel()


async def test_a_hub_with_peers_answers_idle_connections_once_more_for_a_minute(
    hub: Hub, autojump_clock: MockClock
) -> None:
    hub.deadlines.watch(Idles())
    stop = stop_of(hub)
    await stop.leave()
    await stop.finish(replaced=False)
    assert hub.now == pytest.approx(PLAIN_S, abs=0.3)


@pytest.mark.parametrize("early", [True, False])
async def test_another_signal_cuts_what_is_open(hub: Hub, autojump_clock: MockClock, early: bool) -> None:
    stop = stop_of(hub)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(hub.live.run, 500, long=True))
        await trio.testing.wait_all_tasks_blocked()
        await hub.signal.send(signal.SIGTERM)
        if early:
            await stop.leave()
        await stop.finish(replaced=False)
        assert hub.now == 0
        nursery.cancel_scope.cancel()
