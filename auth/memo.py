"""A memo for functions of a request line, since agents repeat their requests.

The memo lives in the process until other entries evict it, so it must hold no credentials. A request with one
in its query is not memoized.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar
from urllib.parse import unquote_to_bytes

# Maximum entries per memoized function, at most some 4 MiB: more kinds of calls than a hub's agents make in a
# minute. A longer target is an exec's script or a path of a proxied backend, and seldom repeats.
TARGETS_MAX = 1024
TARGET_LENGTH_MAX = 1024

T = TypeVar("T")


class _NotCacheable(Exception):
    """A target that must not be memoized."""


def memoized(function: Callable[[bytes, bytes], T]) -> Callable[[bytes, bytes], T]:
    """Memoize a function of a method and a target. Exceptions are not memoized."""

    @lru_cache(TARGETS_MAX)
    def cached(method: bytes, target: bytes) -> T:
        # Checked on a miss only. An exception leaves no entry in lru_cache, not even the key.
        if not is_cacheable(target):
            raise _NotCacheable
        return function(method, target)

    @wraps(function)
    def wrapper(method: bytes, target: bytes) -> T:
        try:
            return cached(method, target)
        except _NotCacheable:
            pass
        return function(method, target)

    return wrapper


def is_cacheable(target: bytes) -> bool:
    """Whether a target is short and nowhere contains "token", in any case or escaping."""
    return len(target) <= TARGET_LENGTH_MAX and b"token" not in unquote_to_bytes(target).lower()
