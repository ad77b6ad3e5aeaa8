"""What a long-running process sets once for itself, when all that it starts with stands."""

from __future__ import annotations

import gc

# With what start-up made out of the way, a collection is rare and short (8-13 % of the CPU otherwise). Each
# request leaves a few cycles at most, so that many allocations hold some megabytes between two looks.
GC_THRESHOLD = 50_000


def settle() -> None:
    """Leave what exists now out of every later garbage collection, and collect seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
