from __future__ import annotations

from proxy.process.plural import counted


def test_one_is_counted_as_one() -> None:
    assert [counted(number, "call") for number in (0, 1, 2)] == ["0 calls", "1 call", "2 calls"]
    assert [counted(number, "policy", "policies") for number in (1, 12)] == ["1 policy", "12 policies"]
