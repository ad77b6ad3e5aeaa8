"""The keys of issuers whose tokens the hub believes: fetched, kept, and given up in time.

Theory of operation. Keys are good for FRESH_S. An issuer that cannot be reached then keeps its word for as
long as STALE_MAX_S after the last success, so that its outage is not ours at once; afterwards its tokens are
refused. A `kid` that is not known may be one of a rotation, so the keys are fetched once more, but not more
often than every REFETCH_S: strangers choose what stands in a token. One fetch at a time for each issuer;
whoever comes meanwhile waits for it and takes what it brought.
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

# How long a key that an issuer has taken back may still count here.
FRESH_S = 600.0
STALE_MAX_S = 3600.0
# Between two fetches for a kid that is not known, and after one that failed.
REFETCH_S = 30.0
RETRY_S = 5.0
# Two answers over a continent, and a client that waits for them.
FETCH_S = 10.0

_log = logging.getLogger("hawse.hub.issuers")


class IssuerUnavailable(Exception):
    """An issuer's keys cannot be had, and those that were are too old; the message says why."""


@attrs.define(eq=False)
class _State:
    issuer: Issuer
    keys: Mapping[str, IssuerKey] = attrs.Factory(dict)
    fetched_at: float = -math.inf
    tried_at: float = -math.inf
    failure: str = ""
    lock: trio.Lock = attrs.Factory(trio.Lock)


class IssuerKeys:
    """Finds issuers' keys, of as many as the store may hold."""

    def __init__(self, fetch: Callable[[Issuer], Awaitable[bytes]] = fetch_jwks) -> None:
        self._fetch = fetch
        self._states: dict[str, _State] = {}
        self._told = LogLimit(_log)

    async def find(self, issuer: Issuer, kid: str) -> IssuerKey | None:
        """Return an issuer's key, None when it has none of that `kid`; raises IssuerUnavailable.

        Cancelled within a fetch, the next one waits as after a failure.
        """
        if issuer.jwks is not None:
            return _given(issuer.jwks).get(kid)
        state = self._states.get(issuer.url)
        if state is None or state.issuer != issuer:
            while len(self._states) >= ISSUERS_MAX:
                # One that was removed since, or it is fetched again.
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
        state.failure = "the fetch was given up"
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
