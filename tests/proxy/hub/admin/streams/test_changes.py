"""What changed: topics, at most once a second, for any number of subscribers."""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs
import pytest
import trio
from trio.testing import MockClock

from proxy.hub.admin.streams.changes import OF_SNAPSHOT, ChangeFeed, Subscription
from proxy.hub.store.entities import Snapshot
from tests.fakes.admin import Bench, enrol


@attrs.define
class Hub:
    calls: int = 0
    compared: int = 0

    def sessions(self) -> int:
        self.compared += 1
        return self.calls


def feed_of(hub: Hub, snapshot: Callable[[], Snapshot]) -> ChangeFeed:
    return ChangeFeed(snapshot, {"sessions": hub.sessions})


async def topics(subscription: Subscription) -> list[str]:
    [event] = await subscription.receive()
    assert (event.event, event.id) == ("changed", "")
    found: list[str] = json.loads(event.data)["topics"]
    return found


@pytest.fixture
def snapshot(bench: Bench) -> Callable[[], Snapshot]:
    return lambda: bench.directory.current


async def test_the_first_event_has_no_topics(snapshot: Callable[[], Snapshot]) -> None:
    assert await topics(feed_of(Hub(), snapshot).subscribe({"sessions"})) == []


async def test_a_change_is_an_event_within_a_second_and_many_are_one(
    snapshot: Callable[[], Snapshot], autojump_clock: MockClock
) -> None:
    hub = Hub()
    subscription = feed_of(hub, snapshot).subscribe({"sessions", "agents"})
    await topics(subscription)
    changed_at = trio.current_time()
    for _ in range(100):
        hub.calls += 1
    assert await topics(subscription) == ["sessions"]
    assert trio.current_time() - changed_at <= 1.0
    with trio.move_on_after(60) as silence:
        await topics(subscription)
    assert silence.cancelled_caught


async def test_each_second_with_a_change_has_one_event(
    snapshot: Callable[[], Snapshot], autojump_clock: MockClock
) -> None:
    hub = Hub()
    subscription = feed_of(hub, snapshot).subscribe({"sessions"})
    await topics(subscription)
    await trio.sleep(0.3)
    for number in range(1, 30):
        hub.calls += 1
        assert await topics(subscription) == ["sessions"]
        assert trio.current_time() == pytest.approx(number)


async def test_all_subscribers_share_one_comparison_a_second(
    snapshot: Callable[[], Snapshot], autojump_clock: MockClock
) -> None:
    hub = Hub()
    feed = feed_of(hub, snapshot)
    subscriptions = [feed.subscribe({"sessions"}) for _ in range(20)]
    for each in subscriptions:
        await topics(each)
    hub.compared = 0
    async with trio.open_nursery() as nursery:
        for each in subscriptions:
            nursery.start_soon(topics, each)
        await trio.sleep(30.5)
        hub.calls = 1
    assert hub.compared <= 32


async def test_a_subscriber_hears_of_its_topics_alone_and_of_nothing_before_it(
    snapshot: Callable[[], Snapshot], autojump_clock: MockClock
) -> None:
    hub = Hub()
    feed = feed_of(hub, snapshot)
    early = feed.subscribe({"sessions"})
    hub.calls = 1
    await trio.sleep(5)
    late, other = feed.subscribe({"sessions"}), feed.subscribe({"agents"})
    for each in (early, late, other):
        await topics(each)
    assert await topics(early) == ["sessions"]
    with trio.move_on_after(10):
        raise AssertionError(await topics(late))
    hub.calls = 2
    with trio.move_on_after(10):
        raise AssertionError(await topics(other))


async def test_each_part_of_the_directory_has_its_topic(
    bench: Bench, snapshot: Callable[[], Snapshot], autojump_clock: MockClock
) -> None:
    feed = ChangeFeed(snapshot, {})
    subscription = feed.subscribe(set(OF_SNAPSHOT))
    await topics(subscription)
    await enrol(bench)
    assert await topics(subscription) == ["agents", "clusters", "teams"]
    await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer"})
    assert await topics(subscription) == ["tokens"]
    await bench.ok("POST", "/v1/agents/sre-1/lock")
    assert await topics(subscription) == ["agents"]
