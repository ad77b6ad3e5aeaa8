"""Which signed tokens were used already: each is good once, so that one that leaks opens nothing."""

from __future__ import annotations

from collections import Counter, OrderedDict

import attrs

from proxy.hub.seenstore import SeenStore

# A token's leeway is over a little after its expiry; five seconds more cost nothing.
KEPT_AFTER_EXPIRY_S = 10.0


class ReplayedError(Exception):
    """A token that was used before, or that cannot be remembered."""


@attrs.define
class SeenTokens:
    """Remembers each token's `jti` until it has expired, in memory and for the hubs that come after this one.

    An owner (a cluster, an agent) that sends too many is refused alone, before it can fill what all share.
    """

    what: str
    """What an error calls them."""
    tokens_max: int
    """In all, at once."""
    owner_tokens_max: int
    """Of one owner, at once."""
    store: SeenStore
    _expiries: OrderedDict[tuple[str, str], float] = attrs.Factory(OrderedDict)
    _owners: Counter[str] = attrs.Factory(Counter)

    async def use(self, owner: str, jti: str, expires_at: float, now: float) -> None:
        """Note the use of a token; raises ReplayedError for a used one, or at a bound.

        When cancelled, the token is used up.
        """
        kept_until = expires_at + KEPT_AFTER_EXPIRY_S
        # The memory first: what is refused by it costs no write.
        self._use_here(owner, jti, kept_until, now)
        if not await self.store.enter(self.what, owner, jti, kept_until, now):
            raise ReplayedError(f"the {self.what} was used before")

    def _use_here(self, owner: str, jti: str, kept_until: float, now: float) -> None:
        # Entries are in the order of their use and live about equally long, so the expired ones come first.
        while self._expiries:
            oldest = next(iter(self._expiries))
            if self._expiries[oldest] > now:
                break
            self._forget(oldest)
        key = owner, jti
        if key in self._expiries:
            raise ReplayedError(f"the {self.what} was used before")
        for count, limit in (
            (len(self._expiries), self.tokens_max),
            (self._owners.get(owner, 0), self.owner_tokens_max),
        ):
            if count >= limit:
                raise ReplayedError(f"{count} uses of a {self.what} within a minute, the limit: try later")
        self._expiries[key] = kept_until
        self._owners[owner] += 1

    def _forget(self, key: tuple[str, str]) -> None:
        del self._expiries[key]
        owner = key[0]
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
