"""What a long-running process sets once for itself, when all that it starts with stands."""

from __future__ import annotations

import gc

from tunnel.net.malloc import keep_large_buffers

# With what start-up made out of the way, a collection is rare and short (8-13 % of the CPU otherwise).
# Small requests bring none about, since what they make goes by itself; but what watches are made of stays.
# To collect so many new objects takes some 2 ms, and those that the last two times have left 5; with
# 50,000, and ten times that, it was 25 and 90.
GC_THRESHOLD = 5_000
GC_MIDDLE_THRESHOLD = 1
# Everything takes some 25 ms for each thousand of watches: after some million new objects, where those are
# a quarter of all.
GC_OLD_THRESHOLD = 500


def settle() -> None:
    """Leave what exists now out of every later garbage collection, collect seldom, and keep large buffers."""
    keep_large_buffers()
    gc.collect()
    gc.freeze()
    if gc.get_threshold()[2]:
        gc.set_threshold(GC_THRESHOLD, GC_MIDDLE_THRESHOLD, GC_OLD_THRESHOLD)
    else:
        # Python 3.14 collects what is old in steps, whose size the second number says.
        gc.set_threshold(GC_THRESHOLD)
