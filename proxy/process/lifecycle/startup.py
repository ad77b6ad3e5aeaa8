"""Settings of a long-running process, applied once its start-up is complete."""

from __future__ import annotations

import gc

import trio

from tunnel.net.malloc import keep_large_buffers

# With start-up objects frozen, collections are rare and short (8-13 % of the CPU otherwise). Small requests
# cause none, since their objects are freed by reference counting; those of watches stay. Collecting this many
# new objects takes some 2 ms, and the survivors of the last two collections 5 ms. With 50,000, and ten times
# that, it took 25 and 90 ms.
GC_THRESHOLD = 5_000
GC_MIDDLE_THRESHOLD = 1
# A full collection takes some 25 ms per thousand watches. It runs after some million new objects, if those
# are a quarter of all.
GC_OLD_THRESHOLD = 500
# A full collection of the objects of a start takes 25 ms in a relay. It runs after the start, when no client
# waits for the process to listen.
SETTLE_AFTER_S = 1.0


async def settle_later() -> None:
    """Settle once the process has started."""
    await trio.sleep(SETTLE_AFTER_S)
    settle()


def settle() -> None:
    """Exclude existing objects from later collections, collect seldom, and keep large buffers."""
    keep_large_buffers()
    # Connections may have come and gone since the start. What is garbage by now is freed here, so it is not
    # frozen. A connection that is open is frozen, but reference counting still frees it at its end. Only
    # reference cycles within it would stay, once for the connections of one second.
    gc.collect()
    gc.freeze()
    if gc.get_threshold()[2]:
        gc.set_threshold(GC_THRESHOLD, GC_MIDDLE_THRESHOLD, GC_OLD_THRESHOLD)
    else:
        # Python 3.14 collects old objects in steps; the second number sets their size.
        gc.set_threshold(GC_THRESHOLD)
