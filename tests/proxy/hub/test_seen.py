from __future__ import annotations

import pytest

from proxy.hub.seen import ReplayedError, SeenTokens

NOW = 1_800_000_000.0


def seen(tokens_max: int = 100, owner_tokens_max: int = 100) -> SeenTokens:
    return SeenTokens("token", tokens_max, owner_tokens_max)


def test_a_token_is_good_once() -> None:
    tokens = seen()
    tokens.use("c1", "a", NOW + 60, NOW)
    with pytest.raises(ReplayedError, match="used before"):
        tokens.use("c1", "a", NOW + 60, NOW + 59)
    tokens.use("c2", "a", NOW + 60, NOW)
    tokens.use("c1", "b", NOW + 60, NOW)


def test_a_token_is_remembered_until_its_leeway_is_over_and_then_forgotten() -> None:
    tokens = seen()
    tokens.use("c1", "a", NOW + 60, NOW)
    with pytest.raises(ReplayedError):
        tokens.use("c1", "a", NOW + 60, NOW + 65)
    tokens.use("c1", "b", NOW + 200, NOW + 80)
    assert len(tokens._expiries) == 1
    assert tokens._owners == {"c1": 1}


def test_the_memory_is_bounded_and_fails_closed() -> None:
    tokens = seen(tokens_max=3)
    for number in range(3):
        tokens.use(f"c{number}", "a", NOW + 60, NOW)
    with pytest.raises(ReplayedError, match="3 uses of a token within a minute, the limit"):
        tokens.use("c3", "a", NOW + 60, NOW)
    tokens.use("c3", "a", NOW + 200, NOW + 80)


def test_an_owner_fills_its_own_share_and_no_other() -> None:
    tokens = seen(owner_tokens_max=2)
    for jti in "ab":
        tokens.use("greedy", jti, NOW + 60, NOW)
    with pytest.raises(ReplayedError, match="2 uses of a token"):
        tokens.use("greedy", "c", NOW + 60, NOW)
    tokens.use("modest", "c", NOW + 60, NOW)
    assert "nobody" not in tokens._owners
