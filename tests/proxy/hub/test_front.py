from __future__ import annotations

import pytest
import trio

from proxy.hub import front
from proxy.hub.front import Gate, TooManyStrangersError


def test_the_gate_counts_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "STRANGERS_PER_ADDRESS_MAX", 2)
    monkeypatch.setattr(front, "STRANGERS_MAX", 3)
    gate = Gate()
    first, _ = gate.enter("192.0.2.1"), gate.enter("192.0.2.1")
    with pytest.raises(TooManyStrangersError, match=r"192\.0\.2\.1"):
        gate.enter("192.0.2.1")
    gate.enter("192.0.2.2")
    with pytest.raises(TooManyStrangersError, match="wait to authenticate"):
        gate.enter("192.0.2.3")
    first.leave()
    gate.enter("192.0.2.1")


def test_leaving_twice_gives_back_once() -> None:
    gate = Gate()
    one, other = gate.enter("192.0.2.1"), gate.enter("192.0.2.1")
    one.count(100)
    one.leave()
    one.leave()
    assert (gate.connections, gate.bytes_held) == (1, 0)
    other.leave()
    assert (gate.connections, dict(gate.addresses)) == (0, {})


def test_strangers_bytes_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "STRANGERS_BYTES_MAX", 100)
    gate = Gate()
    one, other = gate.enter("192.0.2.1"), gate.enter("192.0.2.2")
    one.count(60)
    with pytest.raises(trio.BrokenResourceError, match="too many bytes"):
        other.count(60)
    one.leave()
    other.leave()
    assert gate.bytes_held == 0
