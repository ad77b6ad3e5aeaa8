"""Tokens for a process that runs on: in memory, renewed before they end, one at a time for each cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import trio

from proxy.agent.account import Account, NotLoggedInError, find_account, logins_path
from proxy.agent.answers import SET_MAX_S
from proxy.agent.credential import Cached, cached_token, lasts
from proxy.agent.errors import AgentError

# A token that was refused when it was new is refused for another reason, and so will be its successor; and a
# backend behind services/proxy may answer every request with a 401 of its own.
REPLACED_AFTER_S = 5.0


class _Held(NamedTuple):
    cached: Cached
    since: float
    origin_s: float
    """As `_origin_s` was then."""


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
                # Before: the clock may be set meanwhile.
                origin_s = _origin_s()
                fetch = partial(self._fetch, cluster, refused)
                # Waits for the hub or for the file's lock, each within their own bounds.
                cached = await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)
                self._held[cluster] = _Held(cached, trio.current_time(), origin_s)
            return self._held[cluster].cached.token

    def _fetch(self, cluster: str, refused: str) -> Cached:
        # The agent has logged in anew when its key was replaced, and the old one may be revoked by now.
        try:
            account = find_account(self._environment, self._account.hub)
        except NotLoggedInError:
            # A file without this login: the agent has logged out, and what was forgotten is used no more.
            # No file at all, as where a folder is away for a while, ends nothing.
            if os.path.exists(logins_path(self._environment)):
                raise
        except AgentError:
            pass
        else:
            # Another one's name would be on what this process began.
            if account.agent == self._account.agent:
                self._account = account
        return cached_token(self._environment, self._account, cluster, refused=refused)

    def _is_good(self, cluster: str, refused: str) -> bool:
        held = self._held.get(cluster)
        if held is None or not lasts(held.cached) or abs(_origin_s() - held.origin_s) > SET_MAX_S:
            return False
        return held.cached.token != refused or trio.current_time() - held.since < REPLACED_AFTER_S


def _origin_s() -> float:
    """When a clock that nobody sets began, by the one that is set: another time after that, or after a sleep.

    The cache goes by what only a file tells, and each request asks. So this is asked instead, and the cache
    when it has changed: that knows a sleep from a clock that was set.
    """
    return time.time() - time.monotonic()
