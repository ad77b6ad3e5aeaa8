"""One verified request to the API server, and its answer back: the same for both modes.

This is the last place that can keep a request from running under the wrong name, so it takes nobody's word:
the target is parsed once more by the strict rules, the identity is checked again where its headers are made,
and the head is written afresh. What fails before anything was sent says so (`processed` is NO).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import attrs
import trio

from auth import requestinfo
from auth.impersonation import impersonation_headers
from auth.principal import USER_PREFIX, IdentityError
from auth.requestinfo import BadTarget, RequestInfo
from auth.tokens import RelayClaims
from proxy.exchange.forward import CloseReason, Tally, forward
from proxy.exchange.ports import Inbound
from proxy.exchange.server import ServerConnection
from proxy.exchange.tunnelled import TunnelInbound, group_of
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import (
    IdentityLines,
    RewriteError,
    identity_lines,
    is_tail,
    relay_response_head,
)
from proxy.process.drain import Drained
from proxy.relay.guardrails import Guardrails
from proxy.relay.pool import Exchange, Pool
from proxy.relay.verify import Refused, refusal
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

Drop = Callable[[Failure], Awaitable[None]]
"""Ends an answer that has begun, at once. It may be called again, and raises nothing."""


class Awaited(Protocol):
    """An answer that no task carries."""

    @property
    def moved_bytes(self) -> int:
        """What of it has been passed on so far."""
        ...

    def revoke(self, failure: Failure) -> None:
        """End it because it must not go on, and say so."""
        ...


class Upstream:
    """Carries verified requests to one API server, and knows which are under way."""

    def __init__(self, pool: Pool, guardrails: Guardrails | None = None) -> None:
        self._pool = pool
        self._guardrails = guardrails
        self._identity = lru_cache(IDENTITIES_REMEMBERED_MAX)(_identity)
        self.underway = Underway()
        self.refusals = LogLimit(log, TOLD_AT_ONCE)
        self.failures = LogLimit(log, TOLD_AT_ONCE)

    def prepare(self, request: RequestHead, claims: RelayClaims) -> Call:
        """Make ready what carries a request under the identity of `claims`; it is under way from now on.

        Raises Refused.
        """
        try:
            info = requestinfo.parse(request.method, request.target)
            long = info.long_running
            if request.fields.upgrade is not None:
                info, long = info.upgraded(), True
            if self._guardrails is not None:
                self._guardrails.check(claims, info)
            outbound = Exchange(self._pool, request, self._identity(claims), is_tail(info))
        except BadTarget as error:
            raise refusal(StreamCode.PROTOCOL, error.reason) from error
        except IdentityError as error:
            raise refusal(StreamCode.FORBIDDEN, str(error)) from error
        except RewriteError as error:
            raise refusal(StreamCode.INTERNAL, str(error)) from error
        call = Call(self, request, claims, info, outbound, long)
        self.underway.begin(call)
        return call

    def log_refusal(self, message: str) -> None:
        """Say that a request was refused."""
        self.refusals.line(logging.INFO, message, trio.current_time())

    @property
    def readiness(self) -> Readiness | None:
        """What notices the answers that no task awaits."""
        return self._pool.connections.readiness

    def pass_head(self, head: ResponseHead) -> ResponseHead:
        """The head of an answer as it leaves the relay."""
        return relay_response_head(head, self._pool.access.authority)

    def pass_bytes(self, head: ResponseHead) -> bytes:
        """The same in canonical form; nearly every answer `passes`."""
        return head.passes or relay_response_head(head, self._pool.access.authority).encode()


@attrs.define(eq=False)
class Call:
    """One request on its way; `carry` it to its end, or `end` it."""

    upstream: Upstream
    request: RequestHead
    claims: RelayClaims
    info: RequestInfo
    outbound: Exchange
    long: bool
    """A watch, a followed log or an upgrade."""
    _tally: Tally | None = None
    """What has crossed, while a task carries it."""
    revoked: Failure | None = None
    """Why it must not go on, if so."""
    awaited: Awaited | None = None
    """Its answer, while no task carries it."""
    _drop: Drop | None = None
    _inbound: Inbound | None = None

    @property
    def group(self) -> Hashable:
        """Its agent's, as the tunnel has it."""
        return False, group_of(self.claims.agent_id)

    @property
    def held_bytes(self) -> int:
        """What its connections take of memory, and the pieces that it has in hand."""
        held, inbound, tally = self.outbound.held_bytes, self._inbound, self._tally
        if isinstance(inbound, ServerConnection | TunnelInbound):
            held += inbound.held_bytes
        return held if tally is None else held + len(tally.ahead or b"")

    @property
    def evicted(self) -> bool:
        """Never told here: whoever writes to a stream that has made room is told by that."""
        return False

    @property
    def moved_bytes(self) -> int:
        """What has crossed so far, both ways."""
        if self.awaited is not None:
            return self.awaited.moved_bytes
        return 0 if self._tally is None else self._tally.bytes_in + self._tally.bytes_out

    def end(self) -> None:
        """It is not under way any more."""
        self.upstream.underway.end(self)

    async def revoke(self, failure: Failure) -> None:
        """End it, from any task, and have whoever carries it say so. Waits for nobody at the other ends."""
        if self.revoked is not None:
            return
        self.revoked = failure
        if self.awaited is not None:
            self.awaited.revoke(failure)
            return
        # First the hub, that it hears of our reason and not of what follows from it.
        await self._drop_answer()
        await self.outbound.abandon(failure)
        # The answer may have been about to begin.
        await self._drop_answer()

    async def _drop_answer(self) -> None:
        if self._drop is not None and self.revoked is not None and self._tally and self._tally.status:
            await self._drop(attrs.evolve(self.revoked, processed=Processed.YES))

    @property
    def only_asks(self) -> bool:
        """Whether there is a request and then an answer, and nothing else."""
        return self.request.fields.only_asks

    async def start(self, inbound: Inbound) -> None:
        """Send the request; raises Refused. Then, or when cancelled, it is not under way any more."""
        try:
            await self._start(inbound)
        except BaseException:
            self.end()
            raise

    async def carry(self, inbound: Inbound, drop: Drop) -> None:
        """Carry the exchange to its end, from wherever it has come.

        `drop` ends an answer that has begun. Raises Refused while nothing has been answered: saying so is the
        caller's, in the words of its mode. Cancelled: `inbound` is good for nothing but a cut.
        """
        self._drop, self._tally, self._inbound = drop, Tally(), inbound
        try:
            await self._carry(inbound)
        finally:
            # What it was answered on may carry somebody else's answer next.
            self._drop = self._inbound = None
            self.end()

    async def _carry(self, inbound: Inbound) -> None:
        outbound, request = self.outbound, self.request
        try:
            await self._start(inbound)
            on_head = self.upstream.pass_head
            outcome = await forward(inbound, outbound, request, on_head=on_head, tally=self._tally)
        finally:
            await outbound.aclose()
        failure = outcome.failure
        if failure is None:
            return
        gone = outcome.close_reason is CloseReason.CLIENT_GONE
        if self.revoked is not None:
            failure, gone = self.revoked, False
        self.log_failure(failure, gone=gone)
        if outcome.status == 0 and not gone:
            raise Refused(failure)

    async def _start(self, inbound: Inbound) -> None:
        """Send the request if it was not sent yet; raises Refused, also when nobody wants it any more."""
        outbound = self.outbound
        self._check_revoked(Processed.MAYBE if outbound.may_be_seen else Processed.NO)
        if outbound.started:
            return
        # It may take a dial of seconds, and what the hub takes back meanwhile must not be carried out.
        inbound.watch(outbound.abandon, body_is_read=self.request.body_length != 0)
        try:
            await outbound.start()
        except OutboundBroken as broken:
            self._check_revoked(broken.failure.processed)
            raise Refused(broken.failure) from broken
        finally:
            # Cancelled, it waits no longer than whoever watches needs to be cancelled as well.
            await inbound.unwatch()  # noqa: ASYNC102
        self._check_revoked(Processed.MAYBE)

    def _check_revoked(self, processed: Processed) -> None:
        if self.revoked is not None:
            raise Refused(attrs.evolve(self.revoked, processed=processed))

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
        self._ended()


def _identity(claims: RelayClaims) -> IdentityLines:
    """The lines of an identity; raises IdentityError or RewriteError."""
    return identity_lines(impersonation_headers(claims.user, claims.groups, claims.extra))


def describe(failure: Failure) -> str:
    """A failure in one line for the log."""
    return f"{failure.code.name.lower()}, processed: {failure.processed.name.lower()}: {failure.reason}"
