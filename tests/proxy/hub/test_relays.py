from __future__ import annotations

import pytest

from auth.tokens import HelloClaims
from proxy.hub import relays
from proxy.hub.relays import ReplayedHelloError, SeenHellos

NOW = 1_800_000_000.0


def claims(jti: str, *, cluster: str = "c1", expires_at: float = NOW + 60) -> HelloClaims:
    return HelloClaims(cluster, "relay-1", "kid", jti, int(NOW), int(expires_at))


def test_a_hello_opens_one_tunnel() -> None:
    seen = SeenHellos()
    seen.use(claims("a"), NOW)
    with pytest.raises(ReplayedHelloError, match="used before"):
        seen.use(claims("a"), NOW + 59)
    seen.use(claims("a", cluster="c2"), NOW)
    seen.use(claims("b"), NOW)


def test_a_hello_is_remembered_until_its_leeway_is_over_and_then_forgotten() -> None:
    seen = SeenHellos()
    seen.use(claims("a"), NOW)
    with pytest.raises(ReplayedHelloError):
        seen.use(claims("a"), NOW + 65)
    seen.use(claims("b", expires_at=NOW + 200), NOW + 80)
    assert len(seen._expiries) == 1


def test_the_memory_is_bounded_and_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "HELLOS_REMEMBERED_MAX", 3)
    seen = SeenHellos()
    for number in range(3):
        seen.use(claims(str(number)), NOW)
    with pytest.raises(ReplayedHelloError, match="within a minute"):
        seen.use(claims("one more"), NOW)
