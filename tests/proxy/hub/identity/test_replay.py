from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.hub.identity.replay import ReplayCache, ReplayedError
from proxy.hub.store.engines.engine import Location
from tests.fakes.replays import open_replays

# Beyond the clocks of all databases, so that no row expires.
NOW = 4_000_000_000.0

MakeCache = Callable[..., ReplayCache]


@pytest.fixture
async def make_cache(database: Location, tmp_path: Path) -> AsyncIterator[MakeCache]:
    place = tmp_path / "seen.db" if isinstance(database, Path) else database
    async with open_replays(place) as store:
        yield lambda tokens_max=100, owner_tokens_max=100: ReplayCache(
            "token", tokens_max, owner_tokens_max, store
        )


async def test_a_token_is_good_once(make_cache: MakeCache) -> None:
    tokens = make_cache()
    await tokens.use("c1", "a", NOW + 60, NOW)
    with pytest.raises(ReplayedError, match="used before"):
        await tokens.use("c1", "a", NOW + 60, NOW + 59)
    await tokens.use("c2", "a", NOW + 60, NOW)
    await tokens.use("c1", "b", NOW + 60, NOW)


async def test_a_token_is_valid_once_for_all_that_share_the_store(make_cache: MakeCache) -> None:
    await make_cache().use("c1", "a", NOW + 60, NOW)
    other = make_cache()
    with pytest.raises(ReplayedError, match="used before"):
        await other.use("c1", "a", NOW + 60, NOW + 65)
    await other.use("c1", "b", NOW + 60, NOW)


async def test_a_token_is_remembered_until_its_leeway_is_over_and_then_forgotten(
    make_cache: MakeCache,
) -> None:
    tokens = make_cache()
    await tokens.use("c1", "a", NOW + 60, NOW)
    with pytest.raises(ReplayedError):
        await tokens.use("c1", "a", NOW + 60, NOW + 65)
    await tokens.use("c1", "b", NOW + 200, NOW + 80)
    assert len(tokens._memory._used) == len(tokens._memory._expiries) == 1
    assert tokens._memory._owners == {"c1": 1}


async def test_the_memory_is_bounded_and_fails_closed(make_cache: MakeCache) -> None:
    tokens = make_cache(tokens_max=3)
    for number in range(3):
        await tokens.use(f"c{number}", "a", NOW + 60, NOW)
    with pytest.raises(ReplayedError, match="3 uses of a token within a minute, the limit"):
        await tokens.use("c3", "a", NOW + 60, NOW)
    await tokens.use("c3", "a", NOW + 200, NOW + 80)


async def test_what_an_owner_has_used_counts_until_it_is_over_each_by_itself(make_cache: MakeCache) -> None:
    tokens = make_cache(owner_tokens_max=2)
    await tokens.use("c1", "a", NOW + 60, NOW)
    await tokens.use("c1", "b", NOW + 200, NOW)
    await tokens.use("c1", "c", NOW + 200, NOW + 80)
    with pytest.raises(ReplayedError, match="2 uses of a token"):
        await tokens.use("c1", "d", NOW + 200, NOW + 80)


async def test_what_was_used_while_the_clock_was_ahead_keeps_nothing_else(make_cache: MakeCache) -> None:
    tokens = make_cache(tokens_max=3, owner_tokens_max=3)
    ahead = NOW + 86_400
    await tokens.use("c1", "ahead", ahead + 60, ahead)
    for number in range(10):
        now = NOW + 80 * number
        await tokens.use("c1", str(number), now + 60, now)
    assert tokens._memory._owners == {"c1": 2}
    # It is good again a day later, and was used.
    with pytest.raises(ReplayedError, match="used before"):
        await tokens.use("c1", "ahead", ahead + 60, ahead)


async def test_an_owner_fills_its_own_share_and_no_other(make_cache: MakeCache) -> None:
    tokens = make_cache(owner_tokens_max=2)
    for jti in "ab":
        await tokens.use("greedy", jti, NOW + 60, NOW)
    with pytest.raises(ReplayedError, match="2 uses of a token"):
        await tokens.use("greedy", "c", NOW + 60, NOW)
    await tokens.use("modest", "c", NOW + 60, NOW)
    assert "nobody" not in tokens._memory._owners
