"""Limits per agent, so that none can starve the others: open calls, calls per second, bytes, age.

Theory of operation. A request is checked against the limits before it is authorized, by a few comparisons and
one token bucket; no timer is set for it. Denied requests count too: explaining a denial costs the hub more
than allowing the request. One task checks bytes, ages and silence every TICK_S, over the open calls. The
bytes of calls that begin and end between two checks are added when they end. So a limit on bytes holds over a
minute and not over a millisecond: an agent that exceeds it has its streams paused until the minute's average
is below the limit, and its new calls refused.

While the hub's memory is short, an agent with more than MODEST_USERS_MAX open calls gets no new ones. Relays
apply the same rule (PROTOCOL.md, "Memory").

The same checks charge an agent for its audit events, by the bytes of their rows on disk (audit.shares),
including denials, refusals and tokens. While the agent is in debt for these, its calls are refused, and it
gets no token. So in the long run it adds no more than the rate.

A refusal is a 429 that names the limit and its value (a 503 when memory is short), and is recorded like every
denial; a flood of them is one event with a count. There is no Retry-After, since kubectl would then retry up
to ten times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NoReturn

import attrs
import trio

from auth.principal import Principal
from proxy.hub.calls.live import Ending, LiveCall, LiveCalls
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.process.plural import counted
from tunnel import MODEST_USERS_MAX, Memory
from tunnel.net.fairness import Chunks
from tunnel.net.ratelimit import TokenBucket

# The interval of checks, and so the precision of ages and silences.
TICK_S = 1.0
# Burst sizes, in seconds of the rate. A controller that starts lists some hundred kinds. A client that ends
# 200 watches at once closes a program, and is no attack.
REQUESTS_BURST_S = 2.0
CANCELS_BURST_S = 10.0
BYTES_BURST_S = 60.0


@attrs.frozen
class Exceeded:
    """A limit that a new call would exceed, and its answer."""

    rule: str
    message: str
    status: int = 429


@attrs.define(eq=False)
class _Load:
    """An agent's usage."""

    limits: LimitsConfig
    requests: TokenBucket | None
    cancels: TokenBucket | None
    bytes: TokenBucket | None
    audit: TokenBucket | None
    streams: int = 0
    """Open calls."""
    paused: bool = False
    """In debt for bytes at the last check, so its calls are paused."""
    moved: int = 0
    """Bytes not charged yet."""
    suspect: bool = False
    """In debt for cancels, bytes or audit bytes at the last check."""


@attrs.define(eq=False)
class _Checked:
    """The state of a call at the last check."""

    bytes_in: int
    bytes_out: int
    moved_in_at: float
    moved_out_at: float


class Limits:
    """The limits of all agents, which share `memory`; `clock` is monotonic."""

    def __init__(
        self,
        config: LimitsConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        memory: Memory | None = None,
        stored: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:
        """`stored` returns the bytes that each agent (id, name) added to the trail since the last call."""
        self._config = config
        self._stored = stored
        self._clock = clock
        self._memory = memory if memory is not None else Memory(2**62)
        # Bounded by the enrolled agents.
        self._loads: dict[str, _Load] = {}
        self._checked: dict[LiveCall, _Checked] = {}

    def admit(self, agent: Principal) -> Exceeded | None:
        """Count a new call of an agent, which is to `enter`; or return the limit that it would exceed."""
        load = self._loads.get(agent.agent_id)
        if load is None:
            load = self._new_load(agent.agent_id, agent.name)
        limits = load.limits
        if load.streams >= limits.streams_per_agent:
            return _exceeded(
                agent.name,
                "streams_per_agent",
                f"has {counted(load.streams, 'call')} under way",
                _END,
            )
        if load.streams > MODEST_USERS_MAX and self._memory.short:
            what = (
                f"has {counted(load.streams, 'call')} under way, and the hub's memory (memory_mib) is short"
            )
            return Exceeded("memory_mib", f"agent:{agent.name} {what}: {_END}", 503)
        if load.suspect:
            exceeded = self._in_debt(agent, load)
            if exceeded is not None:
                return exceeded
        requests = load.requests
        if requests is not None:
            if requests.left(self._clock()) < 1:
                rate = counted(limits.requests_per_second, "time")
                return _exceeded(agent.name, "requests_per_second", f"sends more than {rate} a second", _WAIT)
            requests.take(1)
        return None

    def _in_debt(self, agent: Principal, load: _Load) -> Exceeded | None:
        now, limits = self._clock(), load.limits
        if load.cancels is not None and load.cancels.left(now) < 1:
            rate = counted(limits.cancels_per_second, "call")
            return _exceeded(agent.name, "cancels_per_second", f"cancels more than {rate} a second", _WAIT)
        if load.bytes is not None and load.bytes.left(now) < 0:
            rate = counted(limits.bytes_per_minute, "byte")
            return _exceeded(agent.name, "bytes_per_minute", f"moves more than {rate} a minute", _WAIT)
        exceeded = self._in_audit_debt(agent.name, load)
        load.suspect = exceeded is not None
        return exceeded

    def audit_debt(self, agent_id: str, name: str) -> str:
        """Why an agent may add no audit events now; "" if it may."""
        load = self._loads.get(agent_id)
        exceeded = None if load is None else self._in_audit_debt(name, load)
        return "" if exceeded is None else exceeded.message

    def _in_audit_debt(self, name: str, load: _Load) -> Exceeded | None:
        if load.audit is None or load.audit.left(self._clock()) >= 0:
            return None
        rate = counted(load.limits.audit_bytes_per_second, "byte")
        what = f"adds more than {rate} a second to the audit trail"
        return _exceeded(name, "audit_bytes_per_second", what, _LESS)

    def cancelled(self, agent: Principal) -> None:
        """Count a call that its client cancelled."""
        load = self._loads.get(agent.agent_id)
        if load is not None and load.cancels is not None:
            load.cancels.take(1)
            load.suspect = load.suspect or load.cancels.left(self._clock()) < 1

    def enter(self, live: LiveCall) -> None:
        """Count an admitted call as open."""
        self._loads[live.call.agent.id].streams += 1

    def leave(self, live: LiveCall) -> None:
        """Stop counting a call as open, and count its bytes."""
        load, tally = self._loads[live.call.agent.id], live.tally
        load.streams -= 1
        load.moved += tally.bytes_in + tally.bytes_out
        if self._checked and (checked := self._checked.pop(live, None)) is not None:
            load.moved -= checked.bytes_in + checked.bytes_out

    async def run(self, calls: LiveCalls) -> NoReturn:
        """Check the open calls every TICK_S; never returns."""
        while True:
            await trio.sleep(TICK_S)
            now, slices = self._clock(), Chunks()
            doomed: list[tuple[LiveCall, Ending]] = []
            for live in calls:
                if slices.over:
                    await slices.next()
                if (ending := self._check(calls, live, now)) is not None:
                    doomed.append((live, ending))
            await calls.end(doomed)
            self._charge(now)
            for live in calls:
                if slices.over:
                    await slices.next()
                self._pace(live)

    def _charge(self, now: float) -> None:
        """Charge the bytes moved, and the bytes added to the trail, since the last check."""
        for (agent_id, name), size in self._stored().items():
            load = self._loads.get(agent_id) or self._new_load(agent_id, name)
            if load.audit is not None:
                load.audit.take(size)
                load.suspect = load.suspect or load.audit.left(now) < 0
        for load in self._loads.values():
            if load.bytes is not None:
                load.bytes.take(load.moved)
                load.moved = 0
                load.paused = load.bytes.left(now) < 0
                load.suspect = load.suspect or load.paused

    def _check(self, calls: LiveCalls, live: LiveCall, now: float) -> Ending | None:
        """Charge the bytes since the last check; return an ending if the call was silent for too long."""
        load = self._loads.get(live.call.agent.id)
        # The call may have ended since the check began, since other tasks ran.
        if load is None or live.ended is not None or live.over:
            return None
        tally, limits = live.counted, load.limits
        checked = self._checked.get(live)
        if checked is None:
            checked = self._checked[live] = _Checked(0, 0, now, now)
            if limits.stream_age_s:
                calls.limit(live, limits.stream_age_s, _too_old(limits.stream_age_s))
        moved_in, moved_out = tally.bytes_in - checked.bytes_in, tally.bytes_out - checked.bytes_out
        if moved_in or moved_out:
            checked.bytes_in, checked.bytes_out = tally.bytes_in, tally.bytes_out
            load.moved += moved_in + moved_out
        # While the call is paused, the hub causes its silence.
        if moved_in or live.held:
            checked.moved_in_at = now
        if moved_out or live.held:
            checked.moved_out_at = now
        if not tally.status:
            return None
        # Only the client of an upgraded call may be expected to send.
        if (
            limits.stream_idle_in_s
            and tally.upgraded
            and now - checked.moved_in_at >= limits.stream_idle_in_s
        ):
            return _silent("client", "stream_idle_in_s", limits.stream_idle_in_s)
        if limits.stream_idle_out_s and now - checked.moved_out_at >= limits.stream_idle_out_s:
            return _silent("cluster", "stream_idle_out_s", limits.stream_idle_out_s)
        return None

    def _pace(self, live: LiveCall) -> None:
        load = self._loads.get(live.call.agent.id)
        if load is not None and load.paused:
            live.hold()
        elif live.held:
            live.release()

    def _new_load(self, agent_id: str, name: str) -> _Load:
        now, limits = self._clock(), self._config.of(name)
        audit_rate = limits.audit_bytes_per_second
        load = self._loads[agent_id] = _Load(
            limits,
            _bucket(limits.requests_per_second, REQUESTS_BURST_S, now),
            _bucket(limits.cancels_per_second, CANCELS_BURST_S, now),
            _bucket(limits.bytes_per_minute / 60, BYTES_BURST_S, now),
            _bucket(audit_rate, limits.audit_bytes_at_once / audit_rate if audit_rate else 0.0, now),
        )
        return load


def _bucket(rate: float, burst_s: float, now: float) -> TokenBucket | None:
    return TokenBucket(rate, max(1.0, rate * burst_s), now) if rate else None


_END = "end one first, as a watch, a `logs -f` or an exec"
_WAIT = "wait a moment, and ask for less"
_LESS = "ask for less, or have the hub's operator raise it"


def _named(key: str) -> str:
    return f"the limit (limits.{key})"


# Cached, since every long call has this text, and nearly all have the same.
@lru_cache(maxsize=16)
def _too_old(seconds: int) -> str:
    return f"it is {seconds} s old, {_named('stream_age_s')}"


def _exceeded(name: str, key: str, what: str, then: str) -> Exceeded:
    return Exceeded(f"limits.{key}", f"agent:{name} {what}, {_named(key)}: {then}")


def _silent(who: str, key: str, seconds: int) -> Ending:
    return Ending(CloseReason.DEADLINE, f"nothing was received from the {who} for {seconds} s, {_named(key)}")
