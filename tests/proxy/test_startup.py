from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from proxy.startup import GC_THRESHOLD, settle


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_what_stands_is_looked_at_no_more() -> None:
    settle()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] == GC_THRESHOLD
