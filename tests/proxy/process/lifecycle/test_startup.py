from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import trio

from proxy.process.lifecycle.startup import GC_THRESHOLD, SETTLE_AFTER_S, settle, settle_later


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


async def test_the_full_collection_comes_after_the_start(autojump_clock: trio.abc.Clock) -> None:
    before = gc.get_freeze_count()
    with trio.move_on_after(SETTLE_AFTER_S / 2):
        await settle_later()
    assert gc.get_freeze_count() == before
    await settle_later()
    assert gc.get_freeze_count() > before


def test_what_stays_is_collected_some_at_a_time() -> None:
    generations = gc.get_threshold()[2] > 0
    most = 0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal most
        if info["generation"] < 2:
            most = max(most, sum(len(gc.get_objects(number)) for number in range(info["generation"] + 1)))

    settle()
    gc.callbacks.append(note)
    try:
        kept = [[number] for number in range(20 * GC_THRESHOLD)]
    finally:
        gc.callbacks.remove(note)
    assert len(kept) == 20 * GC_THRESHOLD
    # Python 3.14 has no generation in between.
    assert 0 < most < 5 * GC_THRESHOLD or not generations
