"""Settings of glibc's malloc for a process that moves megabytes through short-lived buffers.

glibc takes a buffer of 128 KiB or more from mmap and gives it back at once, and gives the top of the heap
back whenever some 128 KiB of it are free. Each page of the next buffer is then a fault that the kernel
answers with zeroes: 0.7 s of CPU for every gigabyte in messages of 256 KiB, more than their encryption.

So large buffers stay in the heap, among what lives long, and when they are gone it is full of holes: half of
it after some thousand connections. By itself malloc gives back nothing but its top; hence `give_back_holes`,
for when there is time.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["give_back_holes", "keep_large_buffers"]

# mallopt(3), /usr/include/malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

# The largest WebSocket message, with room for its frame and its encryption, is still a buffer of the heap.
MMAP_THRESHOLD_BYTES: Final = 2 * 1024 * 1024

# What may lie free at the top of the heap. It is the price: so much more memory at most than without.
TRIM_THRESHOLD_BYTES: Final = 16 * 1024 * 1024


def keep_large_buffers() -> bool:
    """Have malloc keep buffers of up to MMAP_THRESHOLD_BYTES for the next one; returns whether it does.

    Called once, when a process starts. Where the C library is not glibc it does nothing: musl has no such
    setting, and other systems' allocators no such habit.
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


def give_back_holes() -> bool:
    """Give every free page of the heap back to the kernel; returns whether there were any.

    It takes 0.5 ms for each MiB that it gives back, and a tenth of that for each that is free and was given
    back before; the whole process waits for it. Where the C library is not glibc it does nothing.
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
