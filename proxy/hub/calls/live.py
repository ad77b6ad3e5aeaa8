"""The live calls, and how the hub ends a call that must not continue.

Theory of operation. A call is entered in the same step as its authorization, before its first wait, and
leaves when its closing event is made. So every later change finds it: after a change of the directory or the
policies (`reconsider`), every call is judged again as a new one would be.

To end a call, the hub ends its exchange: a RESET with the reason in the tunnel, or a cut connection in direct
mode. The client is cut if its answer has begun. Nothing is inserted into a stream: a chunked answer lacks its
last chunk, a raw stream breaks. Then the call's task answers the client if no answer has begun, and records
the hub's reason.

Calls need no timer each: one task checks all of them when the first may be due.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import attrs
import trio

from audit.record import Decision, Impersonated
from audit.record import Relay as RecordedRelay
from proxy.exchange.client_port import ClientPort
from proxy.exchange.engine import Exchange
from proxy.exchange.groups import group_of
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.admission import Call
from proxy.hub.calls.outcome import CloseReason, Tally
from proxy.hub.calls.relay_port import RelaySide
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.process.lifecycle.drain import Drained
from tunnel import Interruptions, Session
from tunnel.net.fairness import Chunks

# The interval of checks for due calls, and so the longest delay.
SWEEP_S = 0.25
# The interval of checks for conditions that depend on the time.
TIMED_EVERY_S = 10.0
# Ending a call takes some 200 µs over several passes, including TLS and its record.
ENDED_PER_PASS = 32
# If passes are long for other reasons, more calls are ended in each: one for each END_S of the last pass.
# Otherwise the last of thousands would outlive the two seconds within which a change takes effect. END_S is
# twice the cost of an end, so that ends alone do not lengthen the passes.
END_S = 0.0004
ENDED_PER_PASS_MAX = 256


_CODES = {CloseReason.DEADLINE: StreamCode.DEADLINE, CloseReason.OVERLOADED: StreamCode.OVERLOADED}
_MEMORY = "memory is full, and this agent's calls hold the most of it"


@attrs.define(eq=False)
class Approved:
    """The approval by which an asked call goes on."""

    request_id: str
    recorded: Decision
    """The decision as the trail records it."""
    on_settled: Callable[[bool], None]
    """Called once, with whether the API server took the call."""
    settled: bool = False

    def settle(self, *, taken: bool) -> None:
        """Note whether the API server took the call. Only the first time counts."""
        if not self.settled:
            self.settled = True
            self.on_settled(taken)


@attrs.frozen
class Ending:
    """Why the hub ends a call: for the relay, for the record, and for a client without an answer."""

    close_reason: CloseReason
    reason: str
    unavailable: bool = False
    """The reason is the hub's state: a client without an answer gets a 503 or 504, and no 403."""

    @property
    def code(self) -> StreamCode:
        return _CODES.get(self.close_reason, StreamCode.REVOKED)


class LiveCall:
    """A live call, and the known facts about it, even if it is cancelled."""

    exchange: Exchange | None = None
    """The current attempt, while ports carry one."""
    ports: tuple[ClientPort, RelaySide] | None = None
    """The client's and the relay's port of that attempt."""
    ended: Ending | None = None
    """Set when the hub has ended it."""
    over: bool = False
    """The call is no longer live."""
    relay: RecordedRelay | None = None
    impersonated: Impersonated | None = None
    """The identity in the relay's token."""
    session: Session | None = None
    """The tunnel session of the last attempt; and the interruptions that it had before."""
    before: Interruptions = Interruptions()
    failure: Failure | None = None
    """How the last attempt failed, set before the client gets the answer."""
    leaves: bool = False
    """Its stream was reset because the tunnel is doubtful, and another relay takes the call."""
    moved_from: str = ""
    """The instance of the relay that it was moved from."""
    guardrail: str = ""
    """The guardrail by which the relay answered instead of the API server."""
    approved: Approved | None = None
    """The approval by which it goes on, if a rule asks for one."""
    forwarded_s: float | None = None
    """When it was forwarded, in monotonic seconds, if a rule asks for an approval."""
    body: bytes = b""
    """Its whole body, from its end until the client's port has it, if a rule asks for an approval."""
    _waiting: trio.CancelScope | None = None

    # Attributes that few calls need are class attributes above, since one object is made for each call.
    # Attributes that many calls set later must exist from the start: adding one would cost a dict of 800
    # bytes.
    def __init__(
        self, call: Call, eid: str, connection: ServerConnection, began_at: float, began_s: float
    ) -> None:
        self.call = call
        self.eid = eid
        """The id of its audit events."""
        self.began_at = began_at
        """In epoch seconds."""
        self.began_s = began_s
        """The same in monotonic seconds."""
        self.connection = connection
        """The client's connection."""
        self.started = False
        """The trail has its `start` row (proxy.hub.calls.starts)."""
        self.tally = Tally()
        """The bytes forwarded so far; while ports carry the call, as of the last `counted`."""
        self.due_at = math.inf
        """When it must end, on trio's clock, and why; set by `LiveCalls.limit`."""
        self.why_due = ""

    @property
    def counted(self) -> Tally:
        """The tally, with the bytes that the ports have carried so far."""
        tally = self.tally
        if self.ports is not None:
            client, relay = self.ports
            tally.bytes_in = client.bytes_delivered - relay.bytes_dropped
            tally.bytes_out = relay.bytes_passed
        return tally

    def leave_exchange(self) -> None:
        """Note that the attempt is over. Its bytes stay in the tally."""
        _ = self.counted
        self.exchange = self.ports = None

    @contextmanager
    def interruptible(self) -> Iterator[trio.CancelScope]:
        """A scope for waiting on anything but the two sides; cancelled when the call is ended."""
        with trio.CancelScope() as self._waiting:
            if self.ended is not None:
                self._waiting.cancel()
            try:
                yield self._waiting
            finally:
                self._waiting = None

    @property
    def group(self) -> Hashable:
        """Its agent's fairness key in the tunnels."""
        return True, group_of(self.call.agent.id)

    @property
    def held_bytes(self) -> int:
        """The memory of its connections, of the data in transit, and of a body that waits."""
        held = self.connection.held_bytes + len(self.body)
        return held if self.ports is None else held + self.ports[1].held_bytes

    @property
    def evicted(self) -> bool:
        """Whether its stream was evicted for memory, while its task may be waiting for the client.

        Before the answer begins this is False: the task notices, and may use another relay.
        """
        return self.tally.status != 0 and self.ports is not None and self.ports[1].evicted

    @property
    def moved_bytes(self) -> int:
        """The bytes forwarded so far, in both directions."""
        tally = self.counted
        return tally.bytes_in + tally.bytes_out

    @property
    def held(self) -> bool:
        """Whether it is paused."""
        return self.tally.held

    def hold(self) -> None:
        """Pause the call until `release`: its ports deliver nothing meanwhile."""
        if not self.tally.held and self.ended is None:
            self.tally.held = True
            if self.exchange is not None:
                self.exchange.hold()

    def release(self) -> None:
        """Resume the call."""
        if self.tally.held:
            self.tally.held = False
            if self.exchange is not None:
                self.exchange.release()

    def show(self) -> None:
        """Set `relay` and `impersonated` if they are known by now and not set yet."""

    def end(self, ending: Ending) -> None:
        """End the call, once. Its task finds `ended` set, and answers a client without an answer."""
        if self.ended is not None:
            return
        self.ended = ending
        begun = self.tally.status != 0
        failure = Failure(ending.code, Processed.YES if begun else Processed.MAYBE, ending.reason)
        if self._waiting is not None:
            self._waiting.cancel()
        exchange, ports = self.exchange, self.ports
        if exchange is not None and ports is not None:
            # Before the release, which would move bytes at once.
            exchange.end(failure)
            if ports[0].cutting:
                # The attempt has failed by itself, and earlier bytes are still queued for the client.
                ports[0].cut(failure, drop=True)
        self.release()


Judge = Callable[[LiveCall], Ending | None]
"""Returns why a live call must end now, or None. It must neither wait nor raise."""


class LiveCalls(Drained):
    """All live calls; each holds a connection, so the number of connections bounds them."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        # By audit id, oldest first.
        self._calls: dict[str, LiveCall] = {}
        self._changed = False
        self._sleep_scope = trio.CancelScope()
        self._wakes_at = math.inf

    @property
    def count(self) -> int:
        """The number of live calls."""
        return len(self._calls)

    @property
    def mark(self) -> tuple[int, str]:
        """Differs after a call has begun or ended, unless all that began since have ended."""
        return len(self._calls), next(reversed(self._calls), "")

    @property
    def long(self) -> int:
        """How many of them are watches, followed logs or upgrades."""
        return sum(live.call.long for live in self._calls.values())

    @property
    def any_long(self) -> bool:
        """Whether there is one of those."""
        return any(live.call.long for live in self._calls.values())

    def __iter__(self) -> Iterator[LiveCall]:
        lives = list(self._calls.values())
        lives.reverse()
        # Ended calls are freed one by one during the iteration: freeing 10,000 at once takes 70 ms.
        while lives:
            yield lives.pop()

    def unstarted(self, before_s: float) -> list[LiveCall]:
        """Calls that began before this time (monotonic) and are not `started` yet.

        Oldest first. Every call older than a started one is started too, so the search stops there.
        """
        found = []
        for live in reversed(self._calls.values()):
            if live.started:
                break
            if live.began_s <= before_s:
                found.append(live)
        found.reverse()
        return found

    def enter(self, live: LiveCall) -> None:
        """Add a call that begins."""
        self._calls[live.eid] = live

    def leave(self, live: LiveCall) -> None:
        """Remove a call that is over, with any outcome."""
        del self._calls[live.eid]
        live.over = True
        self._ended()

    def limit(self, live: LiveCall, seconds: float, why: str) -> None:
        """End a call this long from now, with this reason, unless another ending comes first."""
        due_at = trio.current_time() + seconds
        if due_at < live.due_at:
            live.due_at, live.why_due = due_at, why
            if due_at < self._wakes_at:
                self._wake_by(due_at)

    def reconsider(self) -> None:
        """Judge every call again, in the task of `run`; called after a change of the rules."""
        self._changed = True
        self._wake_by(trio.current_time())

    async def end(self, doomed: Sequence[tuple[LiveCall, Ending]]) -> list[LiveCall]:
        """End calls, and return those that were still live. See LiveCall.

        Each pass ends a bounded number, so that other tasks run meanwhile.
        """
        ended: list[LiveCall] = []
        ends = _Ends()
        for live, ending in doomed:
            if ends.full:
                await trio.lowlevel.checkpoint()
                ends.renew()
            if self._calls.get(live.eid) is live and live.ended is None:
                ends.end(live, ending)
                ended.append(live)
        return ended

    async def end_for_memory(self, doomed: Sequence[LiveCall]) -> None:
        """End calls to free their memory."""
        await self.end([(live, Ending(CloseReason.OVERLOADED, _MEMORY)) for live in doomed])

    async def run(self) -> NoReturn:
        """End calls that are due, and after a change those that are denied now; never returns."""
        while True:
            with trio.CancelScope(deadline=self._wakes_at) as self._sleep_scope:
                await trio.sleep_forever()
            now = trio.current_time()
            self._wakes_at = math.inf
            if self._changed:
                self._changed = False
                await self._judge_all()
            await self._end_due(now)

    async def run_timed(self, timed: Callable[[], bool]) -> NoReturn:
        """Judge every call again periodically, while a rule depends on the time; never returns."""
        while True:
            await trio.sleep(TIMED_EVERY_S)
            if timed():
                self.reconsider()

    async def _judge_all(self) -> None:
        slices = Chunks()
        ends = _Ends()
        for live in self:
            if slices.over or ends.full:
                await slices.next()
                ends.renew()
            if live.ended is None and not live.over and (ending := self._judge(live)) is not None:
                ends.end(live, ending)

    async def _end_due(self, now: float) -> None:
        lives = [live for live in self if live.ended is None]
        due = [live for live in lives if live.due_at <= now]
        await self.end([(live, Ending(CloseReason.DEADLINE, live.why_due)) for live in due])
        first_due = min((live.due_at for live in lives if live.due_at > now), default=math.inf)
        if first_due < self._wakes_at:
            self._wake_by(max(first_due, now + SWEEP_S))

    def _wake_by(self, time: float) -> None:
        self._wakes_at = self._sleep_scope.deadline = time


class _Ends:
    """Ends calls, a bounded number per pass; the caller calls `renew` in each."""

    def __init__(self) -> None:
        self._left = ENDED_PER_PASS
        self._renewed_at = trio.current_time()

    @property
    def full(self) -> bool:
        """Whether this pass has reached its bound."""
        return not self._left

    def end(self, live: LiveCall, ending: Ending) -> None:
        self._left -= 1
        live.end(ending)

    def renew(self) -> None:
        """Begin another pass."""
        now = trio.current_time()
        self._left = max(ENDED_PER_PASS, min(ENDED_PER_PASS_MAX, int((now - self._renewed_at) / END_S)))
        self._renewed_at = now
