"""A replay cache: each signed token is accepted once, so that a leaked token is useless."""

from __future__ import annotations

import heapq
from collections import Counter

import attrs

from proxy.hub.identity.replay_store import ReplayStore

# A token stays valid for its leeway after its expiry. Five more seconds cost nothing.
KEPT_AFTER_EXPIRY_S = 10.0


class ReplayedError(Exception):
    """A token was used before, or a bound of the cache is reached."""


@attrs.define
class ReplayMemory:
    """Remembers each token's `jti` in this process: enough for tokens that no other process accepts.

    Each owner (a cluster, an agent, a hub) has a bound of its own, below the bound that all owners share. So
    a flooding owner is refused alone.
    """

    kind: str
    """The name of these tokens in error messages."""
    tokens_max: int
    """Unexpired tokens of all owners."""
    owner_tokens_max: int
    """Unexpired tokens of one owner."""
    _used: set[tuple[str, str]] = attrs.Factory(set)
    # A heap, since expiries may be out of order: a token from a fast clock expires after later ones.
    _expiries: list[tuple[float, tuple[str, str]]] = attrs.Factory(list)
    _owners: Counter[str] = attrs.Factory(Counter)

    def use(self, owner: str, jti: str, kept_until: float, now: float) -> None:
        """Record the use of a token; raises ReplayedError for a used one, or at a bound."""
        while self._expiries and self._expiries[0][0] <= now:
            _, over = heapq.heappop(self._expiries)
            self._forget(over)
        key = owner, jti
        if key in self._used:
            raise ReplayedError(f"the {self.kind} was used before")
        for count, limit in (
            (len(self._used), self.tokens_max),
            (self._owners.get(owner, 0), self.owner_tokens_max),
        ):
            if count >= limit:
                raise ReplayedError(f"{count} uses of a {self.kind} within a minute, the limit: try later")
        self._used.add(key)
        heapq.heappush(self._expiries, (kept_until, key))
        self._owners[owner] += 1

    def _forget(self, key: tuple[str, str]) -> None:
        self._used.remove(key)
        owner = key[0]
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]


class ReplayCache:
    """Remembers each token's `jti` until the token has expired, in memory and in the store for other hubs."""

    def __init__(self, kind: str, tokens_max: int, owner_tokens_max: int, store: ReplayStore) -> None:
        self._memory = ReplayMemory(kind, tokens_max, owner_tokens_max)
        self.store = store

    async def use(self, owner: str, jti: str, expires_at: float, now: float) -> None:
        """Record the use of a token; raises ReplayedError for a used one, or at a bound.

        Raises ReplayStoreUnavailableError. Then, and when cancelled, the token is used up at this hub: its
        sender has to sign another one.
        """
        kept_until = expires_at + KEPT_AFTER_EXPIRY_S
        # Memory first: a token that is refused here costs no write.
        self._memory.use(owner, jti, kept_until, now)
        if not await self.store.enter(self._memory.kind, owner, jti, kept_until, now):
            raise ReplayedError(f"the {self._memory.kind} was used before")
