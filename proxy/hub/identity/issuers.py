"""The keys of trusted token issuers: fetched, cached and expired.

Theory of operation. Keys are fresh for FRESH_S. If the issuer cannot be reached then, its keys stay valid
until STALE_MAX_S after the last success, so that its outage is not ours at once. After that its tokens are
refused. An unknown `kid` may be the result of a rotation, so the keys are fetched once more. Unauthenticated
senders choose the `kid`, so that happens at most once every REFETCH_S. Each issuer has one fetch at a time;
requests that arrive meanwhile wait for it and use its result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache

import attrs
import trio

from auth.federation import IssuerKey, parse_jwks
from auth.keys import KeyFormatError
from proxy.hub.identity.fetch import FetchFailed, fetch_jwks
from proxy.hub.store.entities import Issuer
from proxy.hub.store.federation import ISSUERS_MAX
from tunnel.net.loglimit import LogLimit

# How long a key may still be accepted here after its issuer has withdrawn it.
FRESH_S = 600.0
STALE_MAX_S = 3600.0
# Minimum interval between fetches for an unknown kid, and after a failed fetch.
REFETCH_S = 30.0
RETRY_S = 5.0
# Two round trips between continents, while a client waits.
FETCH_S = 10.0

_log = logging.getLogger("hawse.hub.issuers")


class IssuerUnavailable(Exception):
    """An issuer's keys cannot be fetched, and the cached ones are too old; the message says why."""


@attrs.define(eq=False)
class _State:
    issuer: Issuer
    keys: Mapping[str, IssuerKey] = attrs.Factory(dict)
    fetched_at: float = -math.inf
    tried_at: float = -math.inf
    failure: str = ""
    lock: trio.Lock = attrs.Factory(trio.Lock)


class IssuerKeys:
    """Finds issuers' keys. The cache holds as many issuers as the store may hold."""

    def __init__(self, fetch: Callable[[Issuer], Awaitable[bytes]] = fetch_jwks) -> None:
        self._fetch = fetch
        self._states: dict[str, _State] = {}
        self._told = LogLimit(_log)

    async def find(self, issuer: Issuer, kid: str) -> IssuerKey | None:
        """Return an issuer's key, or None if it has no such `kid`; raises IssuerUnavailable.

        A fetch that is cancelled counts as failed: the next one waits for RETRY_S.
        """
        if issuer.jwks is not None:
            return _given(issuer.jwks).get(kid)
        state = self._states.get(issuer.url)
        if state is None or state.issuer != issuer:
            while len(self._states) >= ISSUERS_MAX:
                # Evict the oldest. It was removed from the store since, or it is fetched again on its next
                # use.
                del self._states[next(iter(self._states))]
            state = self._states[issuer.url] = _State(issuer)
        now = trio.current_time()
        if kid in state.keys and now - state.fetched_at < FRESH_S:
            return state.keys[kid]
        async with state.lock:
            if self._is_due(state, kid):
                await self._refresh(state)
        if trio.current_time() - state.fetched_at >= STALE_MAX_S:
            raise IssuerUnavailable(f"the keys of {issuer.url} cannot be had: {state.failure}")
        return state.keys.get(kid)

    def _is_due(self, state: _State, kid: str) -> bool:
        now = trio.current_time()
        since = now - state.tried_at
        if state.failure:
            return since >= RETRY_S
        if now - state.fetched_at >= FRESH_S:
            return True
        return kid not in state.keys and since >= REFETCH_S

    async def _refresh(self, state: _State) -> None:
        state.tried_at = trio.current_time()
        state.failure = "the fetch was cancelled"
        try:
            with trio.fail_after(FETCH_S):
                keys = parse_jwks(await self._fetch(state.issuer))
        except trio.TooSlowError:
            state.failure = f"no answer within {FETCH_S:.0f} s"
        except (FetchFailed, KeyFormatError) as error:
            state.failure = str(error)
        else:
            state.keys, state.failure = keys, ""
            state.fetched_at = trio.current_time()
            return
        state.tried_at = trio.current_time()
        self._told.warning(
            f"cannot fetch the keys of {state.issuer.url}: {state.failure}", trio.current_time()
        )


@lru_cache(ISSUERS_MAX)
def _given(jwks: str) -> Mapping[str, IssuerKey]:
    return parse_jwks(jwks)
