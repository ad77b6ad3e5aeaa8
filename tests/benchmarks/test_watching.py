from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.watching import slices


@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_slices_are_the_whole_and_none_is_too_large(count: int, most: int) -> None:
    found = list(slices(count, most))
    assert sum(found) == count
    assert all(0 < size <= most for size in found)
