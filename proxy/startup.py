"""What a long-running process sets once for itself, when all that it starts with stands."""

from __future__ import annotations

import gc

from tunnel.allocator import keep_large_buffers

# With what start-up made out of the way, a collection is rare and short (8-13 % of the CPU otherwise). Each
# request leaves a few cycles at most, so that many allocations hold some megabytes between two looks.
GC_THRESHOLD = 50_000


def settle() -> None:
    """Leave what exists now out of every later garbage collection, collect seldom, and keep large buffers."""
    keep_large_buffers()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
