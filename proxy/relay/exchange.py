"""One verified request to the API server, and its answer back: the same for both modes.

This is the last place that can keep a request from running under the wrong name, so it takes nobody's word:
the target is parsed once more by the strict rules, the identity is checked again where its headers are made,
and the head is written afresh. What fails before anything was sent says so (`processed` is NO).
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

# A path may be nearly 1 MiB of a backend's own; a log line says which request it was.
LOGGED_PATH_BYTES = 200
# Lines about refused requests that are logged at once, and as many about failed ones, before there is one a
# second: of agents that meet a guardrail each is told of, and a hub that asks for nothing else fills no disk.
TOLD_AT_ONCE = 60
# They are made once for all requests under one token: as many as a session of the tunnel may name at once.
IDENTITIES_REMEMBERED_MAX = 4096


class Upstream:
    """Carries verified requests to one API server, and knows which are under way."""

    def __init__(self, pool: Pool, guardrails: Guardrails | None = None) -> None:
        self.pool = pool
        self._guardrails = guardrails
        self._identity = lru_cache(IDENTITIES_REMEMBERED_MAX)(_identity)
        self.underway = Underway()
        self.refusals = LogLimit(log, TOLD_AT_ONCE)
        self.failures = LogLimit(log, TOLD_AT_ONCE)

    def prepare(self, request: RequestHead, claims: RelayClaims, make: MakeCall[CallT]) -> CallT:
        """Make what carries a request under the identity of `claims`; it is under way from now on.

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
        """Say that a request was refused."""
        self.refusals.line(logging.INFO, message, trio.current_time())

    @property
    def readiness(self) -> Readiness | None:
        """What notices the answers that no task awaits."""
        return self.pool.connections.readiness

    def pass_head(self, head: ResponseHead) -> ResponseHead:
        """The head of an answer as it leaves the relay."""
        return relay_response_head(head, self.pool.access.authority)

    def pass_bytes(self, head: ResponseHead) -> bytes:
        """The same in canonical form, for one that does not pass as it is."""
        return relay_response_head(head, self.pool.access.authority).encode()


class Call(ABC):
    """One request on its way. Each mode has its own kind, which ends it."""

    __slots__ = ("claims", "info", "long", "request", "revoked", "upstream")

    upstream: Upstream
    request: RequestHead
    claims: RelayClaims
    info: RequestInfo
    long: bool
    """A watch, a followed log or an upgrade."""
    revoked: Failure | None
    """Why it must not go on, if so."""

    @property
    def group(self) -> Hashable:
        """Its agent's, as the tunnel has it."""
        return False, group_of(self.claims.agent_id)

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """What its connections take of memory, and the pieces that it has in hand."""

    @property
    def evicted(self) -> bool:
        """Never told here: a stream that has made room tells its call."""
        return False

    @property
    @abstractmethod
    def moved_bytes(self) -> int:
        """What has crossed so far, both ways."""

    @abstractmethod
    async def revoke(self, failure: Failure) -> None:
        """End it, from any task, and say why. Waits for nobody at the other ends."""

    def end(self) -> None:
        """It is not under way any more."""
        self.upstream.underway.end(self)

    def log_failure(self, failure: Failure, *, gone: bool) -> None:
        """Say why it did not end well."""
        # Agents leave watches and logs all the time; that is nobody's concern.
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
"""Makes a call of a request whose target was read, and of the lines of its identity; raises RewriteError."""


_MEMORY = Failure(
    StreamCode.OVERLOADED,
    Processed.MAYBE,
    "the relay's memory is full, and this agent's calls hold the most of it",
)


class Underway(Drained):
    """The calls under way. The streams and connections that the hub may open bound them."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._calls)

    @property
    def long(self) -> int:
        """Those of them that are watches, followed logs or upgrades."""
        return sum(call.long for call in self._calls)

    @property
    def any_long(self) -> bool:
        """Whether there is one of those."""
        return any(call.long for call in self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls))

    def of_agent(self, agent_id: str) -> int:
        """How many there are of an agent."""
        return sum(call.claims.agent_id == agent_id for call in self._calls)

    async def end_for_memory(self, doomed: Sequence[Call]) -> None:
        """End calls because what they hold is needed."""
        async with trio.open_nursery() as nursery:
            for call in doomed:
                if call in self._calls:
                    nursery.start_soon(call.revoke, _MEMORY)

    def begin(self, call: Call) -> None:
        """A call begins."""
        self._calls.add(call)

    def end(self, call: Call) -> None:
        """It is over, whatever became of it."""
        self._calls.discard(call)
        if self._waiter is not None:
            self._ended()


def _identity(claims: RelayClaims) -> IdentityLines:
    """The lines of an identity; raises IdentityError or RewriteError."""
    return identity_lines(impersonation_headers(claims.user, claims.groups, claims.extra))


def describe(failure: Failure) -> str:
    """A failure in one line for the log."""
    return f"{failure.code.name.lower()}, processed: {failure.processed.name.lower()}: {failure.reason}"
