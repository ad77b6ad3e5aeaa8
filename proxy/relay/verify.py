"""Who acts, by the hub's signed word: verified once, kept with its expiry, never served beyond it.

The hub's word counts by the keys that were pinned when the cluster was enrolled, and by those that they have
named as their successors (auth/key_rotation.py). No key is ever fetched.

In tunnel mode the hub says a token once as a CONTEXT of the session and each request names it, so the
verified claims stay in the context's own slot. It counts in the session of its nonce alone, by the hub's
clock (auth/hubclock.py). In direct mode each request carries the token, and a table by its hash keeps the
130 µs of a verification from being paid a hundred times a second. It has no nonce, and counts by the relay's
own clock.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable

import attrs
import trio

from auth import tokens
from auth.hubclock import UNTRUSTED_HUB
from auth.jws import TokenError, UnknownKeyError
from auth.key_rotation import TrustedKeys
from auth.signed import DEFAULT_LEEWAY_S
from auth.tokens import RelayClaims
from proxy.message.failure import Failure, Processed, StreamCode
from tunnel import Context
from tunnel.net.loglimit import LogLimit

log = logging.getLogger("hawse.relay")

# Both clocks of direct mode, and what the hub's clock as a tunnel tells it may be late by.
LEEWAY_S = DEFAULT_LEEWAY_S
# One entry an agent and minute; the hub's own limit of agents on a session is half of it.
CACHED_TOKENS_MAX = 4096


class Refused(Exception):
    """The request is refused before anything was sent to the API server."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def refusal(code: StreamCode, reason: str) -> Refused:
    """A refusal that promises that the API server saw nothing."""
    return Refused(Failure(code, Processed.NO, reason))


@attrs.define(eq=False)
class Verifier:
    """Verifies the hub's tokens for this cluster.

    `hub_clock` is the time that they count by, and raises TokenError where no time is known that may count.
    """

    keys: TrustedKeys
    issuer: str
    cluster_id: str
    hub_clock: Callable[[], float]
    nonce: str = ""
    """The session's; "" in direct mode."""
    _doubts: LogLimit = attrs.field(factory=lambda: LogLimit(log), init=False, repr=False)
    _cache: OrderedDict[bytes, RelayClaims] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def learn(self, statements: Iterable[str]) -> None:
        """Take in how the hub's keys have changed, up to the first statement that is not to be believed.

        That one is logged and costs nothing else: the keys that are known stay good.
        """
        try:
            for statement in statements:
                if self.keys.learn(statement):
                    log.warning("the hub has changed its signing key, as a key that is trusted here says")
        except TokenError as error:
            self.doubt(f"a change of the hub's signing key is not believed: {error.reason}")

    def doubt(self, message: str) -> None:
        """Log what the hub has said and is not believed."""
        self._doubts.warning(message, trio.current_time())

    def of_context(self, context: Context) -> RelayClaims:
        """The claims of a tunnel's context; raises Refused(UNAUTHENTICATED).

        A context that was refused is verified again when it is named again: by then the clock may be known.
        """
        claims = context.note
        if not isinstance(claims, RelayClaims):
            claims = self._verify(context.payload.decode("ascii", "replace"))
            context.note = claims
        return self._fresh(claims)

    def of_token(self, token: bytes) -> RelayClaims:
        """The claims of a direct request's bearer token; raises Refused(UNAUTHENTICATED)."""
        digest = hashlib.sha256(token).digest()
        claims = self._cache.get(digest)
        if claims is None:
            claims = self._verify(token.decode("ascii", "replace"))
            self._cache[digest] = claims
            if len(self._cache) > CACHED_TOKENS_MAX:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(digest)
        return self._fresh(claims)

    def check_inquiry(self, token: bytes) -> None:
        """Raise Refused(UNAUTHENTICATED) unless a direct request's token has the hub ask about this relay."""
        now = self.hub_clock()
        try:
            tokens.verify_inquiry(
                token.decode("ascii", "replace"),
                self.keys.at(now),
                issuer=self.issuer,
                cluster_id=self.cluster_id,
                now=now,
                leeway_s=LEEWAY_S,
            )
        except TokenError as error:
            raise refusal(StreamCode.UNAUTHENTICATED, self._told(error)) from error

    def _told(self, error: TokenError) -> str:
        """Why the hub's token is not accepted, and what to do about it."""
        if isinstance(error, UnknownKeyError):
            return UNTRUSTED_HUB
        # In a tunnel the hub's own clock counts, and here this machine's.
        clock = "" if self.nonce or error.skew_s is None else ": set the relay's clock, or the hub's"
        return f"{error.reason}{clock}"

    def _verify(self, token: str) -> RelayClaims:
        try:
            now = self.hub_clock()
            return tokens.verify_relay(
                token,
                self.keys.at(now),
                issuer=self.issuer,
                cluster_id=self.cluster_id,
                now=now,
                nonce=self.nonce,
                leeway_s=LEEWAY_S,
            )
        except TokenError as error:
            raise refusal(StreamCode.UNAUTHENTICATED, self._told(error)) from error

    def _fresh(self, claims: RelayClaims) -> RelayClaims:
        try:
            late = self.hub_clock() - claims.expires_at
        except TokenError as error:
            raise refusal(StreamCode.UNAUTHENTICATED, error.reason) from error
        if late >= LEEWAY_S:
            raise refusal(StreamCode.UNAUTHENTICATED, f"the token expired {late:.0f} s ago")
        return claims
