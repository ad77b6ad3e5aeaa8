"""Turns off the caches of a request, to show that the gate catches it: `benchmarks.gate --seed uncached`.

Each request's token is then verified, its line and head parsed, and its grant looked up. Python imports a
module of this name at its start, from a folder that PYTHONPATH names. So the product needs no hook.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def _uncached(maxsize: int | Callable[..., Any] | None = 128, typed: bool = False) -> Any:
    """Stand in for lru_cache, and remember nothing."""
    return lru_cache(0)(maxsize) if callable(maxsize) else lru_cache(0, typed)


# Before the product's modules import it.
functools.lru_cache = _uncached

try:
    from auth import memo

    memo.is_cacheable = lambda target: False
    from auth.tokens import AccessClaims
    from proxy.hub.authorize.access import AccessTokens
except ImportError as error:
    # Python goes on after an exception here, and the program would run without the seed.
    sys.exit(f"the seed does not fit the product: {error}")

_verify = AccessTokens.verify


def _unremembered(self: AccessTokens, token: bytes, cluster: str, now: float) -> AccessClaims:
    self._verified.clear()
    return _verify(self, token, cluster, now)


AccessTokens.verify = _unremembered  # type: ignore[method-assign]
