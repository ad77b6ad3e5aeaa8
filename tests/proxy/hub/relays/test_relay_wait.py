from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.hub.relays import relay_wait as module
from proxy.hub.relays.relay_wait import ARRIVALS_PER_S, EXPECTED_S, PARK_S, RelayWait


async def test_an_unexpected_cluster_is_not_waited_for(autojump_clock: MockClock) -> None:
    relay_wait = RelayWait()
    began = trio.current_time()
    assert not await relay_wait.wait_for("c1")
    relay_wait.expect(["c2"])
    assert not await relay_wait.wait_for("c1")
    assert trio.current_time() == began


async def test_all_who_wait_go_on_when_a_relay_comes(autojump_clock: MockClock) -> None:
    relay_wait = RelayWait()
    relay_wait.expect(["c1", "c2"])
    outcomes: list[tuple[str, bool, float]] = []
    began = trio.current_time()

    async def wait(cluster: str) -> None:
        outcomes.append((cluster, await relay_wait.wait_for(cluster), trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        for cluster in ("c1", "c1", "c2"):
            nursery.start_soon(wait, cluster)
        await wait_all_tasks_blocked()
        assert relay_wait.parked == 3
        await trio.sleep(2)
        relay_wait.arrived("c1")
    assert sorted(outcomes) == [("c1", True, 2), ("c1", True, 2), ("c2", False, PARK_S)]
    assert relay_wait.parked == 0
    # It has been here, so its absence is news from now on.
    assert not await relay_wait.wait_for("c1")
    assert trio.current_time() - began == PARK_S


async def test_the_time_of_arrivals_ends_and_is_longer_for_a_large_fleet(autojump_clock: MockClock) -> None:
    small, large = RelayWait(), RelayWait()
    small.expect(["c1"])
    large.expect(f"c{n}" for n in range(10 * ARRIVALS_PER_S))
    await trio.sleep(EXPECTED_S + 1)
    began = trio.current_time()
    assert not await small.wait_for("c1")
    assert trio.current_time() == began
    assert not await large.wait_for("c1")
    assert trio.current_time() == began + PARK_S


async def test_calls_that_wait_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARKED_MAX", 2)
    relay_wait = RelayWait()
    relay_wait.expect(["c1"])
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(relay_wait.wait_for, "c1")
        await wait_all_tasks_blocked()
        began = trio.current_time()
        assert not await relay_wait.wait_for("c1")
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()
    assert relay_wait.parked == 0
