"""Tokens for a process that runs on: in memory, renewed before they end, one at a time for each cluster."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import trio

from proxy.agent.account import Account
from proxy.agent.credential import Cached, cached_token, usable

# A token that was refused when it was new is refused for another reason, and so will be its successor; and a
# backend behind services/proxy may answer every request with a 401 of its own.
REPLACED_AFTER_S = 5.0


class _Held(NamedTuple):
    cached: Cached
    since: float


class Tokens:
    """The access tokens of one agent for some clusters; shares the cache of `hawse credential`."""

    def __init__(self, environment: Mapping[str, str], account: Account) -> None:
        self._environment = environment
        self._account = account
        self._held: dict[str, _Held] = {}
        self._locks: dict[str, trio.Lock] = {}

    async def token(self, cluster: str, *, refused: str = "") -> str:
        """Return a token with some life left; raises AgentError.

        One that was `refused` is replaced unless it is new.

        `cluster` is one of those that the caller serves: what is kept is bounded by them.
        """
        if self._is_good(cluster, refused):
            return self._held[cluster].cached.token
        async with self._locks.setdefault(cluster, trio.Lock()):
            if not self._is_good(cluster, refused):
                fetch = partial(cached_token, self._environment, self._account, cluster, refused=refused)
                # Waits for the hub or for the file's lock, each within their own bounds.
                cached = await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)
                self._held[cluster] = _Held(cached, trio.current_time())
            return self._held[cluster].cached.token

    def _is_good(self, cluster: str, refused: str) -> bool:
        held = self._held.get(cluster)
        if held is None or not usable(held.cached):
            return False
        return held.cached.token != refused or trio.current_time() - held.since < REPLACED_AFTER_S
