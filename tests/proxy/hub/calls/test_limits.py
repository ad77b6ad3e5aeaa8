"""What one agent may take: buckets on a clock by hand, the look at live calls on virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from auth.principal import Principal
from proxy.exchange.deadlines import IDLE_S, Deadlines
from proxy.exchange.server import ServerConnection
from proxy.exchange.wire import CONNECTION_BYTES
from proxy.hub.calls.limits import CANCELS_BURST_S, REQUESTS_BURST_S, TICK_S, Limits
from proxy.hub.calls.live import Ending, LiveCalls
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.home.sections.limits import AgentLimitsConfig, LimitsConfig
from proxy.hub.identity.connections import IDLE_WHEN_SHORT_MAX, AgentConnections
from proxy.hub.own_paths import plain
from tests.proxy.hub.calls.fake_live_calls import REVOKED, agent, exchanging_call, live_call
from tests.tunnel.passes import counted_passes
from tunnel import MODEST_USERS_MAX, Memory

NONE = LimitsConfig(
    requests_per_second=0, cancels_per_second=0, bytes_per_minute=0, stream_age_s=0, idle_connections=0
)


@attrs.define
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(limits: Limits, most: int, who: Principal | None = None) -> int:
    """How many calls in a row are let in."""
    for number in range(most):
        if limits.admit(who or agent()) is not None:
            return number
    return most


def test_without_limits_everything_is_let_in_but_streams_without_end() -> None:
    limits = Limits(NONE, clock=Clock())
    assert admitted(limits, 5000) == 5000
    limits.cancelled(agent())
    for number in range(256):
        assert limits.admit(agent()) is None
        live = live_call(number)
        limits.enter(live)
    exceeded = limits.admit(agent())
    assert exceeded is not None
    assert exceeded.rule == "limits.streams_per_agent"
    assert exceeded.message == (
        "agent:ann has 256 calls under way, the limit (limits.streams_per_agent): "
        "end one first, as a watch, a `logs -f` or an exec"
    )
    limits.leave(live)
    assert limits.admit(agent()) is None


def test_requests_come_at_a_rate_with_a_burst_each_agent_by_itself() -> None:
    clock = Clock()
    limits = Limits(attrs.evolve(NONE, requests_per_second=50), clock=clock)
    burst = int(50 * REQUESTS_BURST_S)
    assert admitted(limits, 1000) == burst
    exceeded = limits.admit(agent())
    assert exceeded is not None
    assert (exceeded.rule, "more than 50 times a second" in exceeded.message) == (
        "limits.requests_per_second",
        True,
    )
    assert admitted(limits, 1000, agent("bob")) == burst
    clock.now += 0.5
    assert admitted(limits, 1000) == 25
    clock.now += 3600
    assert admitted(limits, 1000) == burst


@given(
    rate=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=50),
)
def test_never_more_than_the_rate_and_one_burst(rate: int, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    limits = Limits(attrs.evolve(NONE, requests_per_second=rate), clock=clock)
    let_in = 0
    for pause, asked in steps:
        clock.now += pause
        let_in += sum(limits.admit(agent()) is None for _ in range(asked))
        assert let_in <= rate * (clock.now - 1000.0 + REQUESTS_BURST_S) + 1e-6


def test_an_agent_has_limits_of_its_own_when_it_is_named() -> None:
    limits = Limits(attrs.evolve(NONE, agents={"ann": AgentLimitsConfig(streams_per_agent=2)}), clock=Clock())
    for who in (agent(), agent("bob")):
        for number in range(2):
            assert limits.admit(who) is None
            limits.enter(live_call(number, who))
    assert limits.admit(agent()) is not None
    assert limits.admit(agent("bob")) is None


def test_an_agent_that_cancels_too_fast_is_refused_until_the_rate_holds_again() -> None:
    clock = Clock()
    limits = Limits(attrs.evolve(NONE, cancels_per_second=10), clock=clock)
    assert limits.admit(agent()) is None
    for _ in range(int(10 * CANCELS_BURST_S)):
        limits.cancelled(agent())
    exceeded = limits.admit(agent())
    assert exceeded is not None
    assert exceeded.rule == "limits.cancels_per_second"
    assert "cancels more than 10 calls a second" in exceeded.message
    assert limits.admit(agent("bob")) is None
    clock.now += 0.2
    assert limits.admit(agent()) is None


async def test_bytes_beyond_the_rate_pause_live_calls_and_refuse_new_ones(autojump_clock: MockClock) -> None:
    some = attrs.evolve(NONE, bytes_per_minute=6000, cancels_per_second=10)
    limits = Limits(some, clock=trio.current_time)
    calls = LiveCalls(lambda live: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run, calls)
        live = live_call()
        other = live_call(2, agent("bob"))
        for each, who in ((live, agent()), (other, agent("bob"))):
            assert limits.admit(who) is None
            calls.enter(each)
            each.tally.status = 200
        # A whole minute's bytes may come at once.
        live.tally.bytes_out = 6000
        await trio.sleep(1.5 * TICK_S)
        assert not live.held
        live.tally.bytes_in = 1000
        await trio.sleep(TICK_S)
        assert live.held
        assert not other.held
        # Nor does it help to give one up.
        limits.cancelled(agent())
        exceeded = limits.admit(agent())
        assert exceeded is not None
        assert exceeded.rule == "limits.bytes_per_minute"
        assert limits.admit(agent("bob")) is None
        await trio.sleep(11 * TICK_S)
        assert not live.held
        assert limits.admit(agent()) is None
        nursery.cancel_scope.cancel()


async def test_a_call_between_two_checks_is_charged_at_its_end(autojump_clock: MockClock) -> None:
    limits = Limits(attrs.evolve(NONE, bytes_per_minute=600), clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run, LiveCalls(lambda live: None))
        for _ in range(7):
            live = live_call()
            assert limits.admit(agent()) is None
            limits.enter(live)
            live.tally.bytes_out = 100
            limits.leave(live)
        await trio.sleep(1.5 * TICK_S)
        assert limits.admit(agent()) is not None
        await trio.sleep(60)
        assert limits.admit(agent()) is None
        nursery.cancel_scope.cancel()


async def test_bytes_charged_at_a_check_are_not_charged_again_at_the_end(autojump_clock: MockClock) -> None:
    limits = Limits(attrs.evolve(NONE, bytes_per_minute=600), clock=trio.current_time)
    calls = LiveCalls(lambda live: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run, calls)
        live = live_call()
        assert limits.admit(agent()) is None
        calls.enter(live)
        limits.enter(live)
        live.tally.status, live.tally.bytes_out = 200, 500
        await trio.sleep(1.5 * TICK_S)
        calls.leave(live)
        limits.leave(live)
        await trio.sleep(TICK_S)
        assert limits.admit(agent()) is None
        nursery.cancel_scope.cancel()


async def test_a_call_that_ends_during_a_check_is_charged_once_and_forgotten(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.net.fairness.CHUNK_S", 0)
    limits = Limits(attrs.evolve(NONE, bytes_per_minute=600), clock=trio.current_time)
    calls = LiveCalls(lambda live: None)
    lives = [live_call(number) for number in range(3)]
    for live in lives:
        assert limits.admit(agent()) is None
        calls.enter(live)
        limits.enter(live)
        live.tally.bytes_out = 100

    def look(*arguments: Any) -> Ending | None:
        passes.note()
        ending = Limits._check(limits, *arguments)
        if calls.count == 3:
            for ended in lives[:2]:
                calls.leave(ended)
                limits.leave(ended)
        return ending

    monkeypatch.setattr(limits, "_check", look)
    with counted_passes() as passes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limits.run, calls)
            await trio.sleep(1.5 * TICK_S)
            nursery.cancel_scope.cancel()
    assert (passes.noted.total(), passes.most) == (3, 1)
    assert limits._checked.keys() == {lives[2]}
    bucket = limits._loads[agent().agent_id].bytes
    assert bucket is not None
    assert bucket.left(trio.current_time()) == pytest.approx(300 + 1.5 * TICK_S * 10)


async def test_a_paused_call_that_is_ended_moves_nothing_more_and_cannot_be_paused_again() -> None:
    live, client, relay = exchanging_call(begun=True)
    live.hold()
    relay.say(b"late", False)
    calls = LiveCalls(lambda live: None)
    calls.enter(live)
    await calls.end([(live, REVOKED)])
    assert not live.held
    assert bytes(client.out) == b""
    assert [failure.reason for failure, _ in client.cuts] == [REVOKED.reason]
    live.hold()
    assert not live.held


def test_while_memory_is_short_an_agent_with_more_than_a_few_calls_gets_no_other() -> None:
    memory = Memory(1000)
    limits = Limits(NONE, clock=Clock(), memory=memory)
    for number in range(MODEST_USERS_MAX + 1):
        assert limits.admit(agent()) is None
        live = live_call(number)
        limits.enter(live)
    assert limits.admit(agent()) is None
    memory.charge(751)
    exceeded = limits.admit(agent())
    assert exceeded is not None
    assert (exceeded.status, exceeded.rule) == (503, "memory_mib")
    assert exceeded.message == (
        "agent:ann has 65 calls under way, and the hub's memory (memory_mib) is short: "
        "end one first, as a watch, a `logs -f` or an exec"
    )
    assert limits.admit(agent("ben")) is None
    limits.leave(live)
    assert limits.admit(agent()) is None


@pytest.mark.parametrize(
    ("limit", "upgraded", "moves", "why"),
    [
        ({"stream_age_s": 60}, False, "both", "it is 60 s old, the limit (limits.stream_age_s)"),
        ({"stream_idle_out_s": 60}, False, "in", "nothing was received from the cluster for 60 s"),
        ({"stream_idle_in_s": 60}, True, "out", "nothing was received from the client for 60 s"),
        ({"stream_idle_in_s": 60}, False, "out", ""),
        ({"stream_idle_in_s": 60, "stream_idle_out_s": 60}, True, "both", ""),
        ({}, True, "", ""),
    ],
)
async def test_age_and_silence_end_a_call_each_direction_by_itself(
    autojump_clock: MockClock, limit: dict[str, int], upgraded: bool, moves: str, why: str
) -> None:
    limits = Limits(attrs.evolve(NONE, **limit), clock=trio.current_time)
    calls = LiveCalls(lambda live: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run, calls)
        nursery.start_soon(calls.run)
        live = live_call()
        assert limits.admit(agent()) is None
        live.tally.upgraded = upgraded
        live.tally.status = 200
        calls.enter(live)
        for _ in range(59):
            assert live.ended is None
            live.tally.bytes_in += moves in ("in", "both")
            live.tally.bytes_out += moves in ("out", "both")
            await trio.sleep(1)
        for _ in range(5):
            live.tally.bytes_in += moves in ("in", "both")
            live.tally.bytes_out += moves in ("out", "both")
            await trio.sleep(1)
        ended = live.ended
        nursery.cancel_scope.cancel()
    assert (ended is not None) == bool(why)
    if ended is not None:
        assert ended.close_reason is CloseReason.DEADLINE
        assert why in ended.reason


async def test_a_pause_is_no_silence(autojump_clock: MockClock) -> None:
    limits = Limits(attrs.evolve(NONE, bytes_per_minute=60, stream_idle_out_s=20), clock=trio.current_time)
    calls = LiveCalls(lambda live: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run, calls)
        live = live_call()
        assert limits.admit(agent()) is None
        live.tally.status = 200
        live.tally.bytes_out = 60 + 50
        calls.enter(live)
        await trio.sleep(2)
        assert live.held
        await trio.sleep(60)
        assert not live.held
        assert live.ended is None
        await trio.sleep(20)
        assert live.ended is not None
        nursery.cancel_scope.cancel()


def connections_of_agents(idle_max: int) -> AgentConnections:
    return AgentConnections(attrs.evolve(NONE, idle_connections=idle_max), Memory(2**40), lambda: 0)


async def serve_until_closed(
    connections: AgentConnections,
    deadlines: Deadlines,
    who: Principal,
    busy: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
) -> None:
    """One request, whose answer takes as long as `busy`, and then none until the connection is closed."""
    client, server = trio.testing.memory_stream_pair()
    await client.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    connection = ServerConnection(server, deadlines)
    assert await connection.next_request() is not None
    connections.enter(who, connection)
    connections.enter(who, connection)  # with each of its requests
    await busy()
    await connection.answer(*plain(200, b"ok\n"))
    assert await connection.next_request() is None
    connections.leave(connection)


async def test_an_agents_longest_idle_connections_are_closed_for_new_ones(autojump_clock: MockClock) -> None:
    connections, deadlines = connections_of_agents(3), Deadlines()
    ann, bob = (Principal(name, name, "acme", ["sre"]) for name in ("ann", "bob"))
    closed: list[int] = []

    async def serve(number: int, who: Principal, busy_s: float = 0.0) -> None:
        await serve_until_closed(connections, deadlines, who, partial(trio.sleep, busy_s))
        closed.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        nursery.start_soon(serve, 0, ann, 50.0)
        nursery.start_soon(serve, 100, bob)
        for number in range(1, 4):
            nursery.start_soon(serve, number, ann)
            await trio.sleep(1)
        assert closed == []
        nursery.start_soon(serve, 4, ann)
        await trio.sleep(1)
        nursery.start_soon(serve, 5, ann)
        await trio.sleep(1)
        # Neither the busy one, nor another agent's.
        assert closed == [1, 2]
        assert len(connections) == 5
        await trio.sleep(IDLE_S + 60)
        assert len(connections) == 0
        nursery.cancel_scope.cancel()


async def test_calls_that_end_at_once_do_not_leave_more_idle_than_may_be(autojump_clock: MockClock) -> None:
    connections, deadlines = connections_of_agents(3), Deadlines()
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        nursery.start_soon(connections.run)
        for _ in range(10):
            nursery.start_soon(serve_until_closed, connections, deadlines, agent(), over.wait)
        await trio.sleep(10)
        assert len(connections) == 10
        over.set()
        await trio.sleep(2)
        assert len(connections) == 3
        # And none of them before its time.
        await trio.sleep(IDLE_S - 10)
        assert len(connections) == 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("limit", [0, 18])
async def test_idle_connections_are_counted_and_mostly_closed_while_memory_is_short(
    autojump_clock: MockClock, limit: int
) -> None:
    memory, deadlines = Memory(100 * CONNECTION_BYTES), Deadlines()
    limits = attrs.evolve(NONE, idle_connections=limit)
    connections = AgentConnections(limits, memory, lambda: 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        nursery.start_soon(connections.run)
        for _ in range(2):
            nursery.start_soon(serve_until_closed, connections, deadlines, agent(), trio.sleep_forever)
        for _ in range(18):
            nursery.start_soon(serve_until_closed, connections, deadlines, agent())
        await trio.sleep(5)
        assert memory.used_bytes == 18 * CONNECTION_BYTES
        memory.charge_outside(60 * CONNECTION_BYTES)
        await trio.sleep(5)
        assert len(connections) == 2 + IDLE_WHEN_SHORT_MAX
        assert memory.used_bytes == (60 + IDLE_WHEN_SHORT_MAX) * CONNECTION_BYTES
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Kept:
    """An idle connection that closes some time after `end_idle`."""

    idle_until: float
    told: int = 0

    def end_idle(self) -> None:
        self.told += 1
        self.idle_until = trio.current_time()


async def test_a_connection_beyond_the_limit_is_closed_once(autojump_clock: MockClock) -> None:
    ann = Principal("ann", "ann", "acme", ["sre"])
    connections = connections_of_agents(3)
    kept = [Kept(trio.current_time() + 10 + number) for number in range(6)]
    for each in kept:
        connections.enter(ann, cast(ServerConnection, each))
    assert [each.told for each in kept] == [1, 1, 1, 0, 0, 0]
    for each in kept:
        connections.leave(cast(ServerConnection, each))
        connections.leave(cast(ServerConnection, each))
    assert len(connections) == 0


async def test_an_agent_that_fills_the_trail_is_refused_until_it_has_paid(autojump_clock: MockClock) -> None:
    stored: dict[tuple[str, str], int] = {}

    def take() -> dict[tuple[str, str], int]:
        taken = dict(stored)
        stored.clear()
        return taken

    config = attrs.evolve(NONE, audit_bytes_per_second=1000, audit_bytes_at_once=50_000)
    limits = Limits(config, clock=trio.current_time, stored=take)
    calls = LiveCalls(lambda live: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run, calls)
        stored["ann", "ann"] = 50_000
        await trio.sleep(1.5 * TICK_S)
        assert limits.admit(agent()) is None
        # Also one that has asked for tokens alone.
        stored["ann", "ann"] = stored["bob", "bob"] = 60_000
        await trio.sleep(TICK_S)
        exceeded = limits.admit(agent())
        assert exceeded is not None
        assert (exceeded.status, exceeded.rule) == (429, "limits.audit_bytes_per_second")
        assert exceeded.message.startswith(
            "agent:ann adds more than 1000 bytes a second to the audit trail, "
            "the limit (limits.audit_bytes_per_second): "
        )
        assert limits.audit_debt("ann", "ann") == exceeded.message
        assert "agent:bob" in limits.audit_debt("bob", "bob")
        assert limits.audit_debt("eve", "eve") == ""
        assert limits.admit(agent("eve")) is None
        await trio.sleep(10)
        assert limits.admit(agent("bob")) is None
        assert limits.admit(agent()) is not None
        await trio.sleep(50)
        assert limits.admit(agent()) is None
        assert limits.audit_debt("ann", "ann") == ""
        nursery.cancel_scope.cancel()


def test_an_agent_may_have_another_share_of_the_trail() -> None:
    config = attrs.evolve(NONE, agents={"ann": AgentLimitsConfig(audit_bytes_per_second=0)})
    limits = Limits(config, clock=Clock(), stored=lambda: {("ann", "ann"): 10**12, ("bob", "bob"): 10**12})
    limits._charge(1000.0)
    assert limits.admit(agent()) is None
    assert limits.admit(agent("bob")) is not None
