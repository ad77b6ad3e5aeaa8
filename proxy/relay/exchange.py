"""One verified request to the API server, and its answer: the same for both modes.

A request is carried by an exchange of two ports. The upstream's port is the same in both modes. The client's
port is a stream of the tunnel (`tunnel_call`) or the hub's own connection (`direct_call`). Only a dial waits.
An attempt that fails before its answer has begun may be repeated (`Call._next_attempt`).

This is the last check before a request could run under a wrong identity, so it trusts no earlier one. The
target is parsed again by the strict rules. The identity is checked again while its headers are built, and the
head is encoded from its parsed parts. Failures before the request is sent have `processed` NO.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from auth import requestinfo
from auth.impersonation import impersonation_headers
from auth.principal import USER_PREFIX, IdentityError
from auth.requestinfo import BadTarget, RequestInfo
from auth.tokens import RelayClaims
from proxy.exchange.engine import OVER, Exchange
from proxy.exchange.groups import group_of
from proxy.exchange.pool import may_send_again
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import (
    IdentityLines,
    RewriteError,
    identity_lines,
    is_tail,
    relay_response_head,
)
from proxy.process.lifecycle.drain import Drained
from proxy.relay.metrics import Counts
from proxy.relay.pool import OWN_TOKEN_REFUSED, Pool
from proxy.relay.verify import refusal
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness

if TYPE_CHECKING:
    from proxy.relay.guardrails import Guardrails

log = logging.getLogger("hawse.relay")

# A path to a backend may have nearly 1 MiB. This is enough to identify the request in a log line.
LOGGED_PATH_BYTES = 200
# The burst of log lines about refused requests, and the same about failed ones; then one line a second. Each
# agent's denial by a guardrail is logged, and a hub that sends only denied requests cannot fill the disk.
TOLD_AT_ONCE = 60
# Cached identity lines, one entry per token: as many as a tunnel session may have contexts at once.
IDENTITIES_REMEMBERED_MAX = 4096


class Upstream:
    """Carries verified requests to one API server, and tracks the open ones."""

    def __init__(
        self, pool: Pool, guardrails: Guardrails | None = None, counts: Counts | None = None
    ) -> None:
        self.pool = pool
        self._guardrails = guardrails
        self._identity = lru_cache(IDENTITIES_REMEMBERED_MAX)(_identity)
        self.underway = Underway((counts or Counts()).answers)
        self.refusals = LogLimit(log, TOLD_AT_ONCE)
        self.failures = LogLimit(log, TOLD_AT_ONCE)

    def prepare(self, request: RequestHead, claims: RelayClaims, make: MakeCall[CallT]) -> CallT:
        """Make the call that carries a request under the identity of `claims`. The call is open from now on.

        Raises Refused.
        """
        try:
            info = requestinfo.parse(request.method, request.target)
            long = info.long_running
            if request.fields.upgrade is not None:
                if request.fields.body_length != 0:
                    raise refusal(StreamCode.PROTOCOL, "an upgrade cannot have a body")
                info, long = info.upgraded(), True
            if self._guardrails is not None:
                self._guardrails.check(claims, info)
            call = make(self, request, claims, info, long, self._identity(claims))
        except BadTarget as error:
            raise refusal(StreamCode.PROTOCOL, error.reason) from error
        except IdentityError as error:
            raise refusal(StreamCode.FORBIDDEN, str(error)) from error
        except RewriteError as error:
            raise refusal(StreamCode.INTERNAL, str(error)) from error
        self.underway.begin(call)
        return call

    def log_refusal(self, message: str) -> None:
        """Log that a request was refused."""
        self.refusals.line(logging.INFO, message, trio.current_time())

    @property
    def readiness(self) -> Readiness:
        """Watches the connections of exchanges without a task."""
        return self.pool.readiness

    def pass_head(self, head: ResponseHead) -> ResponseHead:
        """The head of an answer as the relay sends it."""
        return relay_response_head(head, self.pool.access.authority)

    def pass_bytes(self, head: ResponseHead) -> bytes:
        """The same, encoded in canonical form, for a head that does not pass unchanged."""
        return relay_response_head(head, self.pool.access.authority).encode()


class Call(ABC):
    """One open request. Each mode has its own subclass, with the client's port."""

    __slots__ = (
        "_exchange",
        "_identity",
        "_port",
        "_processed",
        "_rewrite",
        "_token",
        "_token_renewed",
        "claims",
        "info",
        "long",
        "request",
        "revoked",
        "upstream",
    )

    def __init__(
        self,
        upstream: Upstream,
        request: RequestHead,
        claims: RelayClaims,
        info: RequestInfo,
        long: bool,
        identity: IdentityLines,
        rewrite: Callable[[ResponseHead], ResponseHead] | None = None,
    ) -> None:
        """`rewrite` is applied to the head of an answer. Raises RewriteError."""
        self.upstream = upstream
        self.request = request
        self.claims = claims
        self.info = info
        self.long = long
        """A watch, a followed log or an upgrade."""
        self.revoked: Failure | None = None
        """The reason why the call must end; None if it may continue."""
        self._identity = identity
        self._rewrite = rewrite
        # The current attempt, or the last one.
        self._exchange: Exchange = OVER
        # Whether the API server may have seen the request in an earlier attempt.
        self._processed = Processed.NO
        self._token_renewed = False
        self._port, self._token = upstream.pool.port(request, identity, is_tail(info), long, rewrite)

    @property
    def group(self) -> Hashable:
        """Its agent's group, the same as in the tunnel."""
        return False, group_of(self.claims.agent_id)

    @property
    def held_bytes(self) -> int:
        """The memory that its connections and their unsent bytes use, unless the tunnel counts it."""
        return self._port.held_bytes

    @property
    def evicted(self) -> bool:
        """Always False: an evicted stream ends its call directly."""
        return False

    @property
    @abstractmethod
    def moved_bytes(self) -> int:
        """The bytes transferred so far, in both directions."""

    def revoke(self, failure: Failure) -> None:
        """End the call with a reason; the first one counts."""
        if self.revoked is None:
            self.revoked = failure
            if not (self._port.may_be_seen or self._processed):
                failure = attrs.evolve(failure, processed=Processed.NO)
            self._exchange.end(failure)

    async def _connect(self, *, fresh: bool) -> bool:
        """Dial for the current exchange; returns whether it may start. Otherwise it is over."""
        exchange, port = self._exchange, self._port
        try:
            return await port.dial(fresh=fresh)
        except OutboundBroken as broken:
            exchange.broken(port, attrs.evolve(broken.failure, processed=self._processed))
        except Exception as error:
            exchange.crash(error)
        return False

    def _next_attempt(self, failure: Failure) -> bool:
        """Whether to send the request again, on a fresh connection; its port is made then.

        The exchange has failed. The request must not have had an effect, and its answer must not have begun.
        """
        port, request, pool = self._port, self.request, self.upstream.pool
        if self._exchange.status or self.revoked is not None:
            return False
        if failure is OWN_TOKEN_REFUSED:
            if self._token_renewed or not pool.renew_token(self._token, request):
                pool.log_own_token_refused()
                return False
            self._token_renewed = True
        elif not (port.reused and may_send_again(request, failure)):
            return False
        self._processed = max(self._processed, failure.processed)
        port.close()
        self._port, self._token = pool.port(
            request, self._identity, is_tail(self.info), self.long, self._rewrite
        )
        return True

    def log_failure(self, failure: Failure, *, gone: bool) -> None:
        """Log why the call failed."""
        # Agents leave watches and logs all the time: no reason for a line outside of debugging.
        if gone and not log.isEnabledFor(logging.DEBUG):
            return
        method = self.request.method.decode("ascii")
        path = self.request.target.partition(b"?")[0][:LOGGED_PATH_BYTES].decode("ascii")
        message = f"{method} {path} of {self.claims.user}: {describe(failure)}"
        ids = {"agent": self.claims.user.removeprefix(USER_PREFIX)}
        if gone:
            log.debug("%s", message, extra=ids)
        else:
            self.upstream.failures.line(logging.INFO, message, trio.current_time(), ids)


CallT = TypeVar("CallT", bound=Call)

MakeCall = Callable[[Upstream, RequestHead, RelayClaims, RequestInfo, bool, IdentityLines], CallT]
"""Makes a call from a parsed request and the lines of its identity; raises RewriteError."""


_MEMORY = Failure(
    StreamCode.OVERLOADED,
    Processed.MAYBE,
    "the relay's memory is full, and this agent's calls hold the most of it",
)


class Underway(Drained):
    """The open calls. The limits on the hub's streams and connections bound their number."""

    def __init__(self, answers: dict[int, int]) -> None:
        """`answers` counts the calls that have ended, by the status of their answer (metrics.Counts)."""
        self._calls: set[Call] = set()
        self._answers = answers

    @property
    def count(self) -> int:
        """The number of open calls."""
        return len(self._calls)

    @property
    def long(self) -> int:
        """The number of watches, followed logs and upgrades among them."""
        return sum(call.long for call in self._calls)

    @property
    def any_long(self) -> bool:
        """Whether a watch, a followed log or an upgrade is open."""
        return any(call.long for call in self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls))

    def of_agent(self, agent_id: str) -> int:
        """The number of an agent's open calls."""
        return sum(call.claims.agent_id == agent_id for call in self._calls)

    async def end_for_memory(self, doomed: Sequence[Call]) -> None:
        """End calls because their memory is needed. Other tasks run afterwards."""
        for call in doomed:
            if call in self._calls:
                call.revoke(_MEMORY)
        await trio.lowlevel.checkpoint()

    def begin(self, call: Call) -> None:
        """Add a call."""
        self._calls.add(call)

    def end(self, call: Call, status: int) -> None:
        """Remove a call, with the status of its answer, or 0."""
        self._calls.discard(call)
        self._answers[status] += 1
        if self._waiter is not None:
            self._ended()


def _identity(claims: RelayClaims) -> IdentityLines:
    """The header lines of an identity; raises IdentityError or RewriteError."""
    return identity_lines(impersonation_headers(claims.user, claims.groups, claims.extra))


def describe(failure: Failure) -> str:
    """A failure in one line, for the log."""
    return f"{failure.code.name.lower()}, processed: {failure.processed.name.lower()}: {failure.reason}"
