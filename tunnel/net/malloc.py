"""Settings of glibc's malloc for a process that moves megabytes through short-lived buffers.

glibc takes a buffer of 128 KiB or more from mmap and returns it at once, and returns the top of the heap
whenever some 128 KiB of it are free. Each page of the next buffer is then a page fault that the kernel fills
with zeroes: 0.7 s of CPU for every gigabyte in messages of 256 KiB, more than their encryption.

So large buffers stay in the heap, among long-lived objects, and leave holes: half of the heap after some
thousand connections. malloc itself returns only the top of the heap; hence `trim_heap`, for idle times.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["keep_large_buffers", "trim_heap"]

# mallopt(3), /usr/include/malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

# The largest WebSocket message, with room for its frame and its encryption, is still a buffer of the heap.
MMAP_THRESHOLD_BYTES: Final = 2 * 1024 * 1024

# The free bytes that may stay at the top of the heap: the most memory that this costs.
TRIM_THRESHOLD_BYTES: Final = 16 * 1024 * 1024


def keep_large_buffers() -> bool:
    """Make malloc keep freed buffers of up to MMAP_THRESHOLD_BYTES; returns whether it does.

    Called once, when a process starts. With another C library than glibc it does nothing: musl has no such
    setting, and the allocators of other systems do not return buffers at once.
    """
    libc = _glibc()
    if libc is None:
        return False
    mallopt = libc.mallopt
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    # Either one ends glibc's own adjustment of both.
    return bool(
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    )


def trim_heap() -> bool:
    """Return every free page of the heap to the kernel; returns whether there were any.

    It takes 0.5 ms for each MiB that it returns, and a tenth of that for each free MiB that was returned
    before. The whole process waits for it. With another C library than glibc it does nothing.
    """
    libc = _glibc()
    if libc is None:
        return False
    malloc_trim = libc.malloc_trim
    malloc_trim.argtypes = (ctypes.c_size_t,)
    malloc_trim.restype = ctypes.c_int
    return bool(malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError, AttributeError):
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
