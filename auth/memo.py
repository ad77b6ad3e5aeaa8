"""What was made of a request line lately, for those who are asked for the same again and again.

The memory is in the process for as long as others push nothing out of it, so a credential has no place in it:
a request that has one in its query is refused or forwarded, and nothing of it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar
from urllib.parse import unquote_to_bytes

# For each function, so at most some 4 MiB: more kinds of calls than the agents of a hub make in a minute. A
# longer target is an exec's script or somebody's backend, and seldom comes twice.
TARGETS_MAX = 1024
TARGET_LENGTH_MAX = 1024

T = TypeVar("T")


class _NotKept(Exception):
    """A target that is not to be remembered."""


def remembered(function: Callable[[bytes, bytes], T]) -> Callable[[bytes, bytes], T]:
    """Have a function of a method and a target remember what it returned; what it raises it does anew."""

    @lru_cache(TARGETS_MAX)
    def kept(method: bytes, target: bytes) -> T:
        # Only here, where nothing is remembered yet: of what raises nothing is kept, the key neither.
        if not may_be_kept(target):
            raise _NotKept
        return function(method, target)

    @wraps(function)
    def recall(method: bytes, target: bytes) -> T:
        try:
            return kept(method, target)
        except _NotKept:
            pass
        return function(method, target)

    return recall


def may_be_kept(target: bytes) -> bool:
    """Whether a target is short, and no part of it is called a token, however that is spelled."""
    return len(target) <= TARGET_LENGTH_MAX and b"token" not in unquote_to_bytes(target).lower()
