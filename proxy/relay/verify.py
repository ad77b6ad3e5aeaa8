"""Verifies the hub's tokens, which state the acting agent, and caches the claims until they expire.

A token must be signed by a key that was pinned at the cluster's enrolment, or by a successor that such a key
has named (auth/key_rotation.py). Keys are never fetched.

In tunnel mode the hub sends a token once, as a CONTEXT of the session, and each request names it. The
verified claims are stored on the context. The token is valid in the session with its nonce alone, by the
hub's clock (auth/hubclock.py). In direct mode each request carries the token, and a cache by its hash saves
the 130 µs of a verification. Such a token has no nonce, and is valid by the relay's own clock.
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

# For both clocks of direct mode, and for the delay of the hub's time in a tunnel.
LEEWAY_S = DEFAULT_LEEWAY_S
# One entry per agent and minute; the hub allows half as many agents per session.
CACHED_TOKENS_MAX = 4096


class Refused(Exception):
    """The request is refused before anything was sent to the API server."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def refusal(code: StreamCode, reason: str) -> Refused:
    """A refusal which states that the API server saw nothing."""
    return Refused(Failure(code, Processed.NO, reason))


@attrs.define(eq=False)
class Verifier:
    """Verifies the hub's tokens for this cluster.

    `hub_clock` returns the time to check them by; it raises TokenError while no trusted time is known.
    """

    keys: TrustedKeys
    issuer: str
    cluster_id: str
    hub_clock: Callable[[], float]
    nonce: str = ""
    """The session's nonce; "" in direct mode."""
    _doubts: LogLimit = attrs.field(factory=lambda: LogLimit(log), init=False, repr=False)
    _cache: OrderedDict[bytes, RelayClaims] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def learn(self, statements: Iterable[str]) -> None:
        """Process statements about the hub's keys, up to the first one that is not trusted.

        That one is logged and has no other effect: known keys stay valid.
        """
        try:
            for statement in statements:
                if self.keys.learn(statement):
                    log.warning("the hub has changed its signing key; a trusted key signed the change")
        except TokenError as error:
            self.doubt(f"a change of the hub's signing key is not trusted: {error.reason}")

    def doubt(self, message: str) -> None:
        """Log a statement of the hub that is not trusted."""
        self._doubts.warning(message, trio.current_time())

    def of_context(self, context: Context) -> RelayClaims:
        """The claims of a tunnel's context; raises Refused(UNAUTHENTICATED).

        A refused context is verified again on its next use: the hub's time may be known by then.
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
        """Raise Refused(UNAUTHENTICATED) unless a direct request's token is for the relay's statement."""
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
            raise refusal(StreamCode.UNAUTHENTICATED, self._explain(error)) from error

    def _explain(self, error: TokenError) -> str:
        """Why the hub's token is not accepted, and the next step."""
        if isinstance(error, UnknownKeyError):
            return UNTRUSTED_HUB
        # In a tunnel the hub's own clock counts, in direct mode this machine's.
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
            raise refusal(StreamCode.UNAUTHENTICATED, self._explain(error)) from error

    def _fresh(self, claims: RelayClaims) -> RelayClaims:
        try:
            late = self.hub_clock() - claims.expires_at
        except TokenError as error:
            raise refusal(StreamCode.UNAUTHENTICATED, error.reason) from error
        if late >= LEEWAY_S:
            raise refusal(StreamCode.UNAUTHENTICATED, f"the token expired {late:.0f} s ago")
        return claims
