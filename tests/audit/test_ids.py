from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.ids import new_eid, uuid7


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_every_id_is_a_version_7_uuid_that_carries_its_time(now_ms: int, random10: bytes) -> None:
    parsed = uuid.UUID(uuid7(now_ms, random10))
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == now_ms


@given(st.lists(st.integers(0, (1 << 48) - 1), min_size=2, max_size=2, unique=True))
def test_ids_sort_by_time(times_ms: list[int]) -> None:
    early, late = sorted(times_ms)
    assert uuid7(early, b"\xff" * 10) < uuid7(late, b"\x00" * 10)


def test_the_example_of_the_rfc() -> None:
    # RFC 9562 appendix A.6: 2022-02-22 19:22:22 UTC, rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F.
    random10 = bytes.fromhex("0cc318c4dc0c0c07398f")
    assert uuid7(0x017F22E279B0, random10) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_wrong_ingredients_are_refused() -> None:
    with pytest.raises(ValueError, match="48 bits"):
        uuid7(1 << 48, bytes(10))
    with pytest.raises(ValueError, match="10 random bytes"):
        uuid7(0, bytes(9))


def test_new_ids_differ() -> None:
    assert len({new_eid() for _ in range(1000)}) == 1000
