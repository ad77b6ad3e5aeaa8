"""The calls that are under way, and how the hub ends one that must not go on.

Theory of operation. A call is entered here in the same step in which it was decided, before its first wait,
and leaves when its closing event is made. So whatever changes afterwards finds it: the directory and the
policies say that they changed (`reconsider`), and every call is judged again as a new one would be.

To end a call is to give up the side that answers (a RESET with the reason in the tunnel, a cut connection in
direct mode) and to cut the client if its answer was begun. Neither waits for the other end, and nothing is
put into a stream: a chunked answer lacks its last chunk, a spliced stream just breaks. The task that carries
the call finds its streams dead, tells a client whose answer was not begun, and records our reason instead of
what it saw.

What lives on needs no timer of its own: one task looks at all of them, when the first may be due.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import attrs
import trio

from audit.record import Impersonated
from audit.record import Relay as RecordedRelay
from proxy.exchange.forward import CloseReason, Tally
from proxy.exchange.pooled import PooledOutbound
from proxy.exchange.ports import Inbound, Outbound
from proxy.exchange.server import ServerConnection
from proxy.exchange.tunnelled import TunnelOutbound, group_of
from proxy.hub.authorize.admission import Call
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.process.drain import Drained
from tunnel import Interruptions, Session
from tunnel.net.fairness import Chunks

# Between two looks at calls that may be due; what is due is late by no more.
SWEEP_S = 0.25
# Between two looks at what the time alone may have ended, by a condition of a policy.
TIMED_EVERY_S = 10.0
# Each end takes some 200 µs in several passes, TLS and the record of it included.
ENDED_PER_PASS = 32
# Where passes are long for other reasons more begin to end in each, or the last of thousands would outlive
# the two seconds within which a change ends what it denies: one for each END_S of the pass before. That is
# twice what an end takes, so that ends alone make no pass longer than the one before.
END_S = 0.0004
ENDED_PER_PASS_MAX = 256


_CODES = {CloseReason.DEADLINE: StreamCode.DEADLINE, CloseReason.OVERLOADED: StreamCode.OVERLOADED}
_MEMORY = "memory is full, and this agent's calls hold the most of it"


@attrs.frozen
class Ending:
    """Why the hub ends a call: for the relay, for the record, and for a client that had no answer yet."""

    close_reason: CloseReason
    reason: str

    @property
    def code(self) -> StreamCode:
        return _CODES.get(self.close_reason, StreamCode.REVOKED)


class LiveCall:
    """A call under way, and what is known of it, also when it is cancelled."""

    outbound: Outbound | None = None
    """While there is one: where the call is now."""
    ended: Ending | None = None
    """By the hub, while it was under way."""
    over: bool = False
    """It is not under way any more."""
    relay: RecordedRelay | None = None
    impersonated: Impersonated | None = None
    """What the relay's token says."""
    session: Session | None = None
    """The tunnel's, of the last attempt; and what it had gone through before."""
    before: Interruptions = Interruptions()
    failure: Failure | None = None
    """How the last attempt failed, known before the client has been told."""
    leaves: bool = False
    """Its stream was reset because the tunnel is in doubt, and it goes on at another relay."""
    moved_from: str = ""
    """The relay, by its instance, where that happened."""
    guardrail: str = ""
    """The rule of the cluster's owner by which the relay answered in the API server's stead."""
    _waiting: trio.CancelScope | None = None

    # What a call rarely has stands above, in the class: one is made for each call. But an attribute that many
    # calls get late has to be there from the beginning: it would cost each of them a dict, of 800 bytes.
    def __init__(self, call: Call, eid: str, inbound: Inbound, began_at: float) -> None:
        self.call = call
        self.eid = eid
        """Its audit id."""
        self.began_at = began_at
        """In epoch seconds."""
        self.began_s = time.monotonic()
        """The same on the clock that nobody sets."""
        self.inbound = inbound
        self.started = False
        """The trail has its `start` row (proxy.hub.calls.starts)."""
        self.tally = Tally()
        self.due_at = math.inf
        """When it must end, on trio's clock, and why: for `LiveCalls.limit` to say."""
        self.why_due = ""

    @contextmanager
    def interruptible(self) -> Iterator[trio.CancelScope]:
        """Wait for something that is neither side of the exchange; cancelled when the call is ended."""
        with trio.CancelScope() as self._waiting:
            if self.ended is not None:
                self._waiting.cancel()
            try:
                yield self._waiting
            finally:
                self._waiting = None

    @property
    def group(self) -> Hashable:
        """Its agent's, as the tunnels have it."""
        return True, group_of(self.call.agent.id)

    @property
    def held_bytes(self) -> int:
        """What its connections take of memory, and the pieces that it has in hand."""
        inbound, outbound = self.inbound, self.outbound
        held = inbound.held_bytes if isinstance(inbound, ServerConnection) else 0
        if isinstance(outbound, PooledOutbound | TunnelOutbound):
            held += outbound.held_bytes
        return held + len(self.tally.ahead or b"")

    @property
    def evicted(self) -> bool:
        """Whether its stream has made room in memory; whoever waits for the client does not see that.

        One that has no answer yet sees it, and may go to another relay.
        """
        outbound = self.outbound
        return self.tally.status != 0 and isinstance(outbound, TunnelOutbound) and outbound.evicted

    @property
    def moved_bytes(self) -> int:
        """What has crossed so far, both ways."""
        return self.tally.bytes_in + self.tally.bytes_out

    @property
    def held(self) -> bool:
        """Whether it is paused."""
        return self.tally.held is not None

    def hold(self) -> None:
        """Pause it until `release`: from neither side more bytes are received than the piece at hand."""
        if self.tally.held is None and self.ended is None:
            self.tally.held = trio.Event()

    def release(self) -> None:
        """Let it go on."""
        held, self.tally.held = self.tally.held, None
        if held is not None:
            held.set()

    def show(self) -> None:
        """Have `relay` and `impersonated` say where it is, if that is known and they do not yet."""

    async def end(self, ending: Ending) -> None:
        """End it, once; whoever carries it finds `ended` set. Waits for nobody at the other ends."""
        if self.ended is not None:
            return
        self.ended = ending
        begun = self.tally.status != 0
        failure = Failure(ending.code, Processed.YES if begun else Processed.MAYBE, ending.reason)
        if self._waiting is not None:
            self._waiting.cancel()
        self.release()
        if self.outbound is not None:
            await self.outbound.abandon(failure)
        # It may have ended by itself meanwhile, and its client's connection carry the next one.
        if begun and not self.over:
            await self.inbound.cut(failure)


Judge = Callable[[LiveCall], Ending | None]
"""Whether a call that is under way must end now, as things stand. It must neither wait nor raise."""


class LiveCalls(Drained):
    """All calls under way; each holds a connection of its own, which bounds them."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        # By their audit id, the oldest first.
        self._calls: dict[str, LiveCall] = {}
        self._changed = False
        self._nap = trio.CancelScope()
        self._looks_at = math.inf

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._calls)

    @property
    def long(self) -> int:
        """Those of them that are watches, followed logs or upgrades."""
        return sum(live.call.long for live in self._calls.values())

    @property
    def any_long(self) -> bool:
        """Whether there is one of those."""
        return any(live.call.long for live in self._calls.values())

    def __iter__(self) -> Iterator[LiveCall]:
        lives = list(self._calls.values())
        lives.reverse()
        # Those that have ended go one by one, as whoever goes over them does: 10,000 at once take 70 ms.
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
        """A call begins."""
        self._calls[live.eid] = live

    def leave(self, live: LiveCall) -> None:
        """It is over, whatever became of it."""
        del self._calls[live.eid]
        live.over = True
        self._ended()

    def limit(self, live: LiveCall, seconds: float, why: str) -> None:
        """End a call this long from now, with this reason, unless something else ends it sooner."""
        due_at = trio.current_time() + seconds
        if due_at < live.due_at:
            live.due_at, live.why_due = due_at, why
            if due_at < self._looks_at:
                self._look_by(due_at)

    def reconsider(self) -> None:
        """Have every call judged again, in the task of `run`; for whoever changed what is judged by."""
        self._changed = True
        self._look_by(trio.current_time())

    async def end(self, doomed: Sequence[tuple[LiveCall, Ending]]) -> list[LiveCall]:
        """End calls, and return those that were still under way. See LiveCall.

        Some begin to end in each pass: to wait for each would take as many passes as there are calls, and
        all of them in one would keep everybody else waiting.
        """
        ended: list[LiveCall] = []
        async with trio.open_nursery() as nursery:
            ends = _Ends(nursery)
            for live, ending in doomed:
                if ends.full:
                    await trio.lowlevel.checkpoint()
                    ends.renew()
                if self._calls.get(live.eid) is live and live.ended is None:
                    ends.begin(live, ending)
                    ended.append(live)
        return ended

    async def end_for_memory(self, doomed: Sequence[LiveCall]) -> None:
        """End calls because what they hold is needed."""
        await self.end([(live, Ending(CloseReason.OVERLOADED, _MEMORY)) for live in doomed])

    async def run(self) -> NoReturn:
        """End what is due, and after a change what may not go on; never returns."""
        while True:
            with trio.CancelScope(deadline=self._looks_at) as self._nap:
                await trio.sleep_forever()
            now = trio.current_time()
            self._looks_at = math.inf
            if self._changed:
                self._changed = False
                await self._judge_all()
            await self._end_due(now)

    async def run_timed(self, timed: Callable[[], bool]) -> NoReturn:
        """Have every call judged again from time to time, while what is judged by looks at the time."""
        while True:
            await trio.sleep(TIMED_EVERY_S)
            if timed():
                self.reconsider()

    async def _judge_all(self) -> None:
        slices = Chunks()
        async with trio.open_nursery() as nursery:
            ends = _Ends(nursery)
            for live in self:
                if slices.over or ends.full:
                    await slices.next()
                    ends.renew()
                if live.ended is None and not live.over and (ending := self._judge(live)) is not None:
                    ends.begin(live, ending)

    async def _end_due(self, now: float) -> None:
        lives = [live for live in self if live.ended is None]
        due = [live for live in lives if live.due_at <= now]
        await self.end([(live, Ending(CloseReason.DEADLINE, live.why_due)) for live in due])
        first_due = min((live.due_at for live in lives if live.due_at > now), default=math.inf)
        if first_due < self._looks_at:
            self._look_by(max(first_due, now + SWEEP_S))

    def _look_by(self, time: float) -> None:
        self._looks_at = self._nap.deadline = time


class _Ends:
    """Begins to end calls, so many in a pass; whoever does so renews the room in each."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._room = ENDED_PER_PASS
        self._renewed_at = trio.current_time()

    @property
    def full(self) -> bool:
        """Whether the next one is for the next pass."""
        return not self._room

    def begin(self, live: LiveCall, ending: Ending) -> None:
        self._room -= 1
        self._nursery.start_soon(live.end, ending)

    def renew(self) -> None:
        """Another pass has begun."""
        now = trio.current_time()
        self._room = max(ENDED_PER_PASS, min(ENDED_PER_PASS_MAX, int((now - self._renewed_at) / END_S)))
        self._renewed_at = now
