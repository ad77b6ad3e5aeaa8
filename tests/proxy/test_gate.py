from __future__ import annotations

import pytest
import trio

from proxy import gate as module
from proxy.gate import STRANGER_BYTES_FREE, Gate, TooManyStrangersError


def test_the_gate_counts_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRANGERS_PER_ADDRESS_MAX", 2)
    monkeypatch.setattr(module, "STRANGERS_MAX", 3)
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
    monkeypatch.setattr(module, "STRANGERS_BYTES_MAX", 4 * STRANGER_BYTES_FREE)
    gate = Gate()
    one, other = gate.enter("192.0.2.1"), gate.enter("192.0.2.2")
    one.count(3 * STRANGER_BYTES_FREE)
    other.count(STRANGER_BYTES_FREE)
    with pytest.raises(trio.BrokenResourceError, match="too many bytes"):
        one.count(1)
    one.leave()
    other.leave()
    assert gate.bytes_held == 0


def test_a_crowd_of_large_heads_does_not_cost_an_ordinary_one_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STRANGERS_BYTES_MAX", STRANGER_BYTES_FREE)
    gate = Gate()
    crowd, ordinary = gate.enter("192.0.2.1"), gate.enter("192.0.2.2")
    crowd.count(STRANGER_BYTES_FREE)
    ordinary.count(STRANGER_BYTES_FREE)


def test_what_was_answered_is_held_no_more() -> None:
    gate = Gate()
    one = gate.enter("192.0.2.1")
    one.count(1000)
    one.settle()
    one.count(10)
    assert gate.bytes_held == 10
    one.leave()
    one.settle()
    assert gate.bytes_held == 0
