"""Tokens for a long-running process: kept in memory, renewed before they expire, one request per cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import trio

from proxy.agent.local.account import Account, NotLoggedInError, find_account, logins_path
from proxy.agent.local.errors import AgentError
from proxy.agent.token.answers import CLOCK_DRIFT_MAX_S
from proxy.agent.token.credential import Cached, cached_token, has_life_left

# A new token that is refused is refused for another reason, and so would be the next one. A backend behind
# services/proxy may also answer each request with its own 401.
REPLACED_AFTER_S = 5.0


class _Held(NamedTuple):
    cached: Cached
    since: float
    origin_s: float
    """The value of `_origin_s` at that time."""


class Tokens:
    """One agent's access tokens for some clusters. Shares the cache of `hawse credential`."""

    def __init__(self, environment: Mapping[str, str], account: Account) -> None:
        self._environment = environment
        self._account = account
        self._held: dict[str, _Held] = {}
        self._locks: dict[str, trio.Lock] = {}

    async def token(self, cluster: str, *, refused: str = "") -> str:
        """Return a token with some life left; raises AgentError.

        A `refused` token is replaced unless it is new.

        `cluster` is one of the caller's clusters, which bounds the number of tokens.
        """
        if self._is_good(cluster, refused):
            return self._held[cluster].cached.token
        async with self._locks.setdefault(cluster, trio.Lock()):
            if not self._is_good(cluster, refused):
                # Read before the fetch: the clock may be changed meanwhile.
                origin_s = _origin_s()
                fetch = partial(self._fetch, cluster, refused)
                # Waits for the hub or for the file lock, each with its own bound.
                cached = await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)
                self._held[cluster] = _Held(cached, trio.current_time(), origin_s)
            return self._held[cluster].cached.token

    def replaces(self, cluster: str, refused: str) -> bool:
        """Whether `token` would now return another token than the refused one."""
        return not self._is_good(cluster, refused) or self._held[cluster].cached.token != refused

    def _fetch(self, cluster: str, refused: str) -> Cached:
        # A new login may have replaced the key, and the old one may be revoked.
        try:
            account = find_account(self._environment, self._account.hub)
        except NotLoggedInError:
            # The file exists without this login, so the agent has logged out: stop using its key.
            # A missing file, as when a folder is unmounted for a while, changes nothing.
            if os.path.exists(logins_path(self._environment)):
                raise
        except AgentError:
            pass
        else:
            # Never continue under another agent's name.
            if account.agent == self._account.agent:
                self._account = account
        return cached_token(self._environment, self._account, cluster, refused=refused)

    def _is_good(self, cluster: str, refused: str) -> bool:
        held = self._held.get(cluster)
        if (
            held is None
            or not has_life_left(held.cached)
            or abs(_origin_s() - held.origin_s) > CLOCK_DRIFT_MAX_S
        ):
            return False
        return held.cached.token != refused or trio.current_time() - held.since < REPLACED_AFTER_S


def _origin_s() -> float:
    """Return the wall clock's time at the monotonic clock's zero. Setting the clock or a sleep changes it.

    The cache's check reads a file, which is too dear for each request. A change here triggers that check,
    which tells a sleep from a changed clock.
    """
    return time.time() - time.monotonic()
