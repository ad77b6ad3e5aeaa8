"""One verified request to the API server, and its answer: the same for both modes.

This is the last check before a request could run under a wrong identity, so it trusts no earlier one. The
target is parsed again by the strict rules. The identity is checked again while its headers are built, and the
head is encoded from its parsed parts. Failures before the request is sent have `processed` NO.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

import trio

from auth import requestinfo
from auth.impersonation import impersonation_headers
from auth.principal import USER_PREFIX, IdentityError
from auth.requestinfo import BadTarget, RequestInfo
from auth.tokens import RelayClaims
from proxy.exchange.tunnelled import group_of
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import (
    IdentityLines,
    RewriteError,
    identity_lines,
    relay_response_head,
)
from proxy.process.drain import Drained
from proxy.relay.guardrails import Guardrails
from proxy.relay.pool import Pool
from proxy.relay.verify import refusal
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness

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

    def __init__(self, pool: Pool, guardrails: Guardrails | None = None) -> None:
        self.pool = pool
        self._guardrails = guardrails
        self._identity = lru_cache(IDENTITIES_REMEMBERED_MAX)(_identity)
        self.underway = Underway()
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
    """One open request. Each mode has its own subclass."""

    __slots__ = ("claims", "info", "long", "request", "revoked", "upstream")

    upstream: Upstream
    request: RequestHead
    claims: RelayClaims
    info: RequestInfo
    long: bool
    """A watch, a followed log or an upgrade."""
    revoked: Failure | None
    """The reason why the call must end; None if it may continue."""

    @property
    def group(self) -> Hashable:
        """Its agent's group, the same as in the tunnel."""
        return False, group_of(self.claims.agent_id)

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """The memory that its connections and its unsent pieces use."""

    @property
    def evicted(self) -> bool:
        """Always False: an evicted stream ends its call directly."""
        return False

    @property
    @abstractmethod
    def moved_bytes(self) -> int:
        """The bytes transferred so far, in both directions."""

    @abstractmethod
    async def revoke(self, failure: Failure) -> None:
        """End the call with a reason, from any task. Waits for no peer."""

    def end(self) -> None:
        """Remove the call from the open ones."""
        self.upstream.underway.end(self)

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

    def __init__(self) -> None:
        self._calls: set[Call] = set()

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
        """End calls because their memory is needed."""
        async with trio.open_nursery() as nursery:
            for call in doomed:
                if call in self._calls:
                    nursery.start_soon(call.revoke, _MEMORY)

    def begin(self, call: Call) -> None:
        """Add a call."""
        self._calls.add(call)

    def end(self, call: Call) -> None:
        """Remove a call, with any outcome."""
        self._calls.discard(call)
        if self._waiter is not None:
            self._ended()


def _identity(claims: RelayClaims) -> IdentityLines:
    """The header lines of an identity; raises IdentityError or RewriteError."""
    return identity_lines(impersonation_headers(claims.user, claims.groups, claims.extra))


def describe(failure: Failure) -> str:
    """A failure in one line, for the log."""
    return f"{failure.code.name.lower()}, processed: {failure.processed.name.lower()}: {failure.reason}"
