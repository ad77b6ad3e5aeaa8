"""A dialer with tunnels to several hubs, in virtual time."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.tunnel.dialing.hubs_bench import Balancer, Hub, Relay, header, plain
from tests.tunnel.trio_stream import accept
from tunnel import CloseCode
from tunnel.dialing import dial
from tunnel.dialing.backoff import REDIAL_REFILL_S, REDIALS_MAX
from tunnel.dialing.dialer import CONTENT_S, CONTENT_SPREAD, run_dialer
from tunnel.websocket.upgrade import AT_HEADER, ELSEWHERE_HEADER


@pytest.fixture(autouse=True)
def _no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "wrap_client", plain)


def by(*names: str) -> Callable[[int], int]:
    """A balancer that sends the dials to these of the hubs a, b, c, …; the last one stays."""
    left = list(names)
    return lambda number: ord(left.pop(0) if len(left) > 1 else left[0]) - ord("a")


def in_rotation() -> Callable[[int], int]:
    at = -1

    def choose(number: int) -> int:
        nonlocal at
        at += 1
        return at % number

    return choose


@asynccontextmanager
async def dialling(
    hubs: list[Hub], choose: Callable[[int], int], chance: Callable[[], float] = lambda: 0.5
) -> AsyncIterator[tuple[Balancer, Relay]]:
    async with trio.open_nursery() as nursery:
        balancer, relay = Balancer(nursery, hubs, choose), Relay()
        nursery.start_soon(run_dialer, balancer.config(chance), relay)
        yield balancer, relay
        nursery.cancel_scope.cancel()


def three(**changes: int) -> list[Hub]:
    return [Hub(name, **changes) for name in "abc"]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tunnel.dialer"]


async def test_a_relay_keeps_as_many_tunnels_as_the_hub_asks_for_each_to_another(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hubs = three()
    async with dialling(hubs, by("a", "a", "b")) as (balancer, _relay):
        await trio.sleep(600)
        assert [len(hub.current) for hub in hubs] == [1, 1, 0]
        assert balancer.chosen == ["a", "a", "b"]
        # Within a second of the first, and again a second after the hub that has a tunnel.
        assert balancer.dialled_at == pytest.approx([0, 0.5, 1.75], abs=0.1)
        assert header(hubs[0].heads[0], ELSEWHERE_HEADER) == ""
        assert header(hubs[1].heads[0], ELSEWHERE_HEADER) == "a"
    assert [line.partition("session")[2].partition(", ")[2] for line in lines(caplog) if "is up" in line] == [
        "to hub a, 1 of 2",
        "to hub b, 2 of 2",
    ]


async def test_a_relay_that_meets_one_hub_eight_times_is_content_for_five_minutes(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with dialling(three(), by("a")) as (balancer, relay):
        await trio.sleep(300)
        met_at = [0.5, 1.75, 3, 4.25, 5.5, 6.75, 8, 9.25]
        assert balancer.dialled_at == pytest.approx([0, *met_at], abs=0.1)
        assert "came to hubs that have a tunnel: there are 1 of 2 tunnels, and the" in lines(caplog)[-1]
        await trio.sleep(50)
        again_at = [339.25, 340.5, 341.75, 343, 344.25, 345.5, 346.75, 348]
        assert balancer.dialled_at[9:] == pytest.approx(again_at, abs=0.1)
        assert len(relay.sessions) == 1


async def test_the_loss_of_a_hub_ends_the_contentment(autojump_clock: MockClock) -> None:
    hubs = three()
    async with dialling(hubs, by(*"aaaaaaaaa", "b")) as (balancer, _relay):
        await trio.sleep(30)
        await hubs[0].kill()
        await trio.sleep(2)
        assert [len(hub.current) for hub in hubs] == [0, 1, 0]
        assert balancer.dialled_at[9] - 30 < 1.1


@pytest.mark.parametrize("goes", [False, True])
async def test_the_dials_before_a_loss_do_not_count(goes: bool, autojump_clock: MockClock) -> None:
    hubs = three(tunnels=3)
    async with dialling(hubs, by(*"abaabaaba", *"acc")) as (balancer, _):
        # The seventh dial for a third tunnel comes after 8.5 s, and the eighth would come after 9.75.
        await trio.sleep(9)
        assert len(balancer.dialled_at) == 9
        if goes:
            hubs[1].leave()
        else:
            hubs[1].current[0].end(CloseCode.NORMAL, "closed")
        await trio.sleep(3)
        assert balancer.chosen[9:11] == ["a", "c"]
        assert len(hubs[2].current) == 1


async def test_a_hub_that_is_killed_is_replaced_within_a_second_also_without_streams(
    autojump_clock: MockClock,
) -> None:
    """The dial for the resumption is refused by another hub, which does not carry it to a dead one."""
    hubs = three()
    async with dialling(hubs, by(*"abcc")) as (balancer, _relay):
        await trio.sleep(30)
        await hubs[0].kill()
        await trio.sleep(1.2)
        assert [len(hub.current) for hub in hubs] == [0, 1, 1]
        assert balancer.resumed_at == pytest.approx([30.5], abs=0.1)
        assert balancer.dialled_at[2:] == pytest.approx([31], abs=0.1)


async def test_a_tunnel_that_is_back_while_its_replacement_is_dialled_leaves_no_third_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Hub.serve

    async def serve_late(hub: Hub, stream: trio.abc.Stream, head: bytes, others: list[Hub]) -> None:
        await trio.sleep(4 * (hub.name == "c"))
        await serve(hub, stream, head, others)

    monkeypatch.setattr(Hub, "serve", serve_late)
    hubs = three()
    async with dialling(hubs, by(*"abaaca")) as (balancer, relay):
        await trio.sleep(30)
        kept = hubs[0].sessions[0]
        kept.open_stream(b"head", context=kept.add_context(1, b"x"))
        await trio.sleep(1)
        hubs[0].up = False
        await hubs[0].cut()
        # The third dial for it comes back by the time that hub c answers.
        await trio.sleep(3.55)
        assert balancer.chosen[4:] == ["c", "a"]
        hubs[0].up = True
        await trio.sleep(30)
        assert hubs[0].current == [kept]
        assert [len(hub.sessions) for hub in hubs] == [1, 1, 0]
        assert len(relay.sessions) == 3


async def test_a_hub_that_goes_is_replaced_at_once_beside_its_streams(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hubs = three()
    async with dialling(hubs, by(*"abac")) as (balancer, _relay):
        await trio.sleep(30)
        going = hubs[0].sessions[0]
        going.open_stream(b"head", context=going.add_context(1, b"x"))
        hubs[0].leave()
        await trio.sleep(5)
        assert [len(hub.current) for hub in hubs] == [0, 1, 1]
        # The first dial comes to the hub that leaves, which refuses it; that is no refusal of the relay.
        assert balancer.dialled_at[2:] == pytest.approx([30, 31.25], abs=0.1)
        assert not going.closed
        # Not the hub that leaves: its successor may have its id.
        assert header(hubs[2].heads[0], ELSEWHERE_HEADER) == "b"
    assert any(line.startswith("no other tunnel to hub.test:443: ") for line in lines(caplog))
    assert not any(record.levelno >= logging.WARNING for record in caplog.records)


async def test_a_restarted_hub_is_dialled_under_its_id_beside_its_old_process(
    autojump_clock: MockClock,
) -> None:
    hubs = [Hub("a"), Hub("b"), Hub("a")]
    async with dialling(hubs, by(*"abc")) as (_, _relay):
        await trio.sleep(30)
        hubs[0].leave()
        await trio.sleep(5)
        assert [len(hub.current) for hub in hubs] == [0, 1, 1]


async def test_a_session_that_resumes_names_its_hub(autojump_clock: MockClock) -> None:
    hubs = three()
    async with dialling(hubs, by(*"abccc")) as (balancer, relay):
        await trio.sleep(30)
        await hubs[0].cut()
        await trio.sleep(2)
        assert [header(head, AT_HEADER) for head in hubs[2].heads] == ["a"]
        assert [header(head, ELSEWHERE_HEADER) for head in hubs[2].heads] == [""]
        assert len(relay.sessions) == len(relay.up) == 2
        assert len(balancer.dialled_at) == 2


@pytest.mark.parametrize("alone", [True, False])
async def test_of_a_session_its_own_hub_alone_can_say_that_it_is_over(
    alone: bool, autojump_clock: MockClock
) -> None:
    """Or another one in its name, once it is dead; a hub that knows of no others speaks for itself."""
    hubs = three()
    async with dialling(hubs, by(*"abc")) as (_, relay):
        await trio.sleep(30)
        session = hubs[0].sessions[0]
        session.open_stream(b"head", context=session.add_context(1, b"x"))
        await accept(relay.sessions[0])
        hubs[2].alone = alone
        hubs[0].gone = True
        await hubs[0].kill()
        await trio.sleep(2.5)
        assert relay.sessions[0].closed is not alone
        assert len(relay.up) == (1 if alone else 2)


async def test_a_session_that_is_away_is_replaced_and_let_go_when_it_is_back(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hubs = three()
    async with dialling(hubs, in_rotation()) as (balancer, relay):
        await trio.sleep(30)
        session = hubs[0].sessions[0]
        at_the_hub = session.open_stream(b"head", context=session.add_context(1, b"x"))
        at_the_relay = await accept(relay.sessions[0])
        # No hub reaches it, and it lives.
        hubs[0].up = False
        await hubs[0].cut()
        await trio.sleep(2.9)
        assert len(balancer.dialled_at) == 2
        await trio.sleep(3)
        assert [len(hub.current) for hub in hubs[1:]] == [1, 1]
        assert relay.sessions[0].detached
        hubs[0].up = True
        await trio.sleep(3)
        # Back with its stream, and asked for no new one.
        assert not relay.sessions[0].detached
        assert session.draining
        assert not session.may_open
        assert len(relay.up) == 2
        await trio.sleep(30)
        assert not session.closed
        at_the_relay.close_nowait()
        at_the_hub.close_nowait()
        await trio.sleep(1)
        assert session.closed
        assert len(relay.up) == 2
    assert any("ends with its streams: there are 2 other" in line for line in lines(caplog))


async def test_what_drops_the_list_of_hubs_costs_one_session_and_not_one_after_the_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hubs = three()
    for hub in hubs:
        hub.heeds = False
    async with dialling(hubs, by("a")) as (balancer, relay):
        await trio.sleep(1000)
        assert hubs[0].superseded == 1
        assert len(balancer.dialled_at) == 2
        assert len(relay.up) == 1
    assert sum("drops the header hawse-elsewhere" in line for line in lines(caplog)) == 1


@pytest.mark.parametrize("name", ["", "a,b", "a b", "x" * 65])
async def test_a_hub_that_cannot_be_listed_is_not_dialled_for_another_tunnel(
    name: str, autojump_clock: MockClock
) -> None:
    async with dialling([Hub(name)], by("a")) as (balancer, relay):
        await trio.sleep(1000)
        assert len(balancer.dialled_at) == 1
        await balancer.hubs[0].cut()
        await trio.sleep(2)
        assert len(relay.up) == len(relay.sessions) == 1
        assert header(balancer.hubs[0].heads[1], AT_HEADER) == ""


async def test_a_hub_that_asks_for_very_many_tunnels_gets_eight(autojump_clock: MockClock) -> None:
    hubs = [Hub(name, tunnels=2**40) for name in "abcdefghij"]
    async with dialling(hubs, in_rotation()) as (balancer, relay):
        await trio.sleep(1000)
        assert len(relay.up) == len(balancer.dialled_at) == 8


HUBS = st.integers(0, 2)
# What happens to a hub, by its number; and how many seconds pass.
STEPS = st.one_of(
    st.tuples(st.sampled_from(["cut", "kill", "forget", "start", "leave", "leave later"]), HUBS),
    st.tuples(st.sampled_from(["busy", "free", "open", "close", "refuse", "hide", "show"]), HUBS),
    st.tuples(st.just("pass"), st.sampled_from([0, 1, 2, 4, 12, 70, 400])),
)


class Histories:
    """Three hubs to which anything happens in any order, and what must hold all the while."""

    def __init__(self, tunnels: int, balancer: Balancer, relay: Relay) -> None:
        self.tunnels = tunnels
        self.balancer = balancer
        self.relay = relay

    async def take(self, what: str, number: int) -> None:
        if what == "pass":
            await trio.sleep(number)
            return
        hub = self.balancer.hubs[number]
        match what:
            case "cut":
                await hub.cut()
            case "kill":
                await hub.kill()
            case "forget":
                hub.gone = not hub.up
            case "start":
                hub.start()
            case "leave" | "leave later" if hub.up:
                hub.leave(3000 if what == "leave later" else 0)
            case "busy" | "free":
                hub.busy = what == "busy"
            case "hide" | "show" if hub.sessions or what == "show":
                # Nothing reaches it, and it lives on.
                hub.up = what == "show"
                await hub.cut()
            case "open":
                for session in hub.current:
                    if session.may_open:
                        session.open_stream(b"head", context=session.add_context(1, b"x"))
            case "close":
                for session in hub.current:
                    session.end(CloseCode.NORMAL, "closed")
            case "refuse":
                for session in hub.current:
                    session.end(CloseCode.AUTH, "refused")

    def check(self) -> None:
        hubs = self.balancer.hubs
        assert not any(hub.superseded for hub in hubs)
        assert all(len(hub.current) <= 1 for hub in hubs)
        assert len(self.relay.up) <= self.tunnels
        # Each dial waits for the backoff, 5 s at least, or is one of the budget's.
        at = self.balancer.dialled_at
        for first, began_at in enumerate(at):
            for number, later_at in enumerate(at[first:]):
                spent_s = later_at - began_at
                assert number <= REDIALS_MAX + spent_s / REDIAL_REFILL_S + spent_s / 5 + 1


# What all hubs do at once, and chance brings about too seldom: they die, refuse, end each session at once.
ALL_DIE = [("pass", 12), *(("kill", number) for number in range(3)), ("pass", 400)]
ALL_REFUSE = [("pass", 12), *((what, number) for number in range(3) for what in ("busy", "close"))]
ALL_END = [("pass", 12), *[("pass", 1), ("close", 0), ("close", 1), ("close", 2)] * 100]


@example(steps=ALL_DIE, tunnels=2, seed=1)
@example(steps=[*ALL_REFUSE, ("pass", 400)], tunnels=2, seed=1)
@example(steps=ALL_END, tunnels=3, seed=1)
@given(
    steps=st.lists(STEPS, max_size=30),
    tunnels=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_history_gives_a_hub_two_sessions_or_makes_the_dials_loop(
    steps: list[tuple[str, int]], tunnels: int, seed: int
) -> None:
    async def run() -> None:
        draws = random.Random(seed)
        hubs = three(tunnels=tunnels)
        async with dialling(hubs, draws.randrange, draws.random) as (balancer, relay):
            histories = Histories(tunnels, balancer, relay)
            for hub in hubs:
                hub.lives = relay.has
            for step in steps:
                await histories.take(*step)
                await wait_all_tasks_blocked()
                histories.check()
            for hub in hubs:
                hub.start()
                hub.busy = False
            # Eight dials out of any row meet each hub.
            balancer.choose = in_rotation()
            await trio.sleep(CONTENT_S * (1 + CONTENT_SPREAD) + 70)
            histories.check()
            assert len(relay.up) == tunnels
            assert sum(len(hub.current) for hub in hubs) == tunnels

    trio.run(run, clock=MockClock(autojump_threshold=0))
