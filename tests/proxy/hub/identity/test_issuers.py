from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.hub.identity.fetch import FetchFailed
from proxy.hub.identity.issuers import (
    FETCH_S,
    FRESH_S,
    REFETCH_S,
    RETRY_S,
    STALE_MAX_S,
    IssuerKeys,
    IssuerUnavailable,
)
from proxy.hub.store.entities import Issuer
from tests.fakes.jwks import jwk, jwks

ISSUER = Issuer("i", "https://issuer.example", None, None, None, False)


@attrs.define
class World:
    """What an issuer publishes, and how often it was asked."""

    kids: list[str] = attrs.Factory(lambda: ["k1"])
    down: bool = False
    hangs: bool = False
    asked: int = 0

    async def fetch(self, issuer: Issuer) -> bytes:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.down:
            raise FetchFailed("connection refused")
        return jwks(*(jwk(kid=kid) for kid in self.kids)).encode()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def keys(world: World) -> IssuerKeys:
    return IssuerKeys(world.fetch)


async def test_keys_are_fetched_once_for_all_who_wait(world: World, keys: IssuerKeys) -> None:
    found = []

    async def find() -> None:
        found.append(await keys.find(ISSUER, "k1"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(find)
    assert world.asked == 1
    assert {key.kid for key in found if key is not None} == {"k1"}
    assert len(found) == 20


async def test_a_rotation_is_noticed_at_the_first_token_by_a_new_key(
    world: World, keys: IssuerKeys, autojump_clock: MockClock
) -> None:
    await keys.find(ISSUER, "k1")
    world.kids = ["k1", "k2"]
    await trio.sleep(REFETCH_S)
    assert await keys.find(ISSUER, "k2") is not None
    assert world.asked == 2


async def test_unauthenticated_tokens_cause_few_fetches(
    world: World, keys: IssuerKeys, autojump_clock: MockClock
) -> None:
    for number in range(100):
        assert await keys.find(ISSUER, f"made-up-{number}") is None
    assert world.asked == 1
    await trio.sleep(REFETCH_S)
    for number in range(100):
        assert await keys.find(ISSUER, f"made-up-{number}") is None
    assert world.asked == 2


async def test_a_key_that_was_taken_back_counts_no_longer_than_it_is_fresh(
    world: World, keys: IssuerKeys, autojump_clock: MockClock
) -> None:
    await keys.find(ISSUER, "k1")
    world.kids = ["k2"]
    await trio.sleep(FRESH_S - 1)
    assert await keys.find(ISSUER, "k1") is not None
    await trio.sleep(1)
    assert await keys.find(ISSUER, "k1") is None


async def test_an_outage_is_bridged_for_a_bounded_time(
    world: World, keys: IssuerKeys, autojump_clock: MockClock
) -> None:
    await keys.find(ISSUER, "k1")
    world.down = True
    await trio.sleep(FRESH_S)
    assert await keys.find(ISSUER, "k1") is not None
    asked = world.asked
    assert await keys.find(ISSUER, "k1") is not None
    assert world.asked == asked
    await trio.sleep(RETRY_S)
    assert await keys.find(ISSUER, "k1") is not None
    assert world.asked == asked + 1
    await trio.sleep(STALE_MAX_S - FRESH_S - RETRY_S)
    with pytest.raises(IssuerUnavailable, match=r"issuer\.example cannot be had: connection refused"):
        await keys.find(ISSUER, "k1")
    world.down = False
    await trio.sleep(RETRY_S)
    assert await keys.find(ISSUER, "k1") is not None


async def test_an_issuer_that_hangs_holds_each_up_only_so_long(
    world: World, keys: IssuerKeys, autojump_clock: MockClock
) -> None:
    world.hangs = True
    began = trio.current_time()
    refused = 0

    async def find() -> None:
        nonlocal refused
        with pytest.raises(IssuerUnavailable, match="no answer within 10 s"):
            await keys.find(ISSUER, "k1")
        refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(find)
    assert (refused, world.asked) == (10, 1)
    assert trio.current_time() - began == pytest.approx(FETCH_S)


async def test_a_cancelled_request_does_not_cancel_the_others(
    world: World, keys: IssuerKeys, autojump_clock: MockClock
) -> None:
    world.hangs = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.find, ISSUER, "k1")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    world.hangs = False
    with pytest.raises(IssuerUnavailable, match="was cancelled"):
        await keys.find(ISSUER, "k1")
    await trio.sleep(RETRY_S)
    assert await keys.find(ISSUER, "k1") is not None


async def test_an_issuer_that_was_changed_is_fetched_again(world: World, keys: IssuerKeys) -> None:
    await keys.find(ISSUER, "k1")
    await keys.find(attrs.evolve(ISSUER, ca_pem="x"), "k1")
    assert world.asked == 2


async def test_configured_keys_are_never_fetched(world: World, keys: IssuerKeys) -> None:
    given = attrs.evolve(ISSUER, jwks=jwks(jwk(kid="g")))
    assert await keys.find(given, "g") is not None
    assert await keys.find(given, "k1") is None
    assert world.asked == 0
