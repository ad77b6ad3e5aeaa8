"""A held call whose store fails, whose agent is above a limit, or whose client leaves, step by step."""

from __future__ import annotations

import pytest

from proxy.exchange.http_server import EARLY_BYTES_MAX
from proxy.hub.approvals.request import State
from tests.proxy.hub.approvals.held.asking import Asked, answer, asking, step, until_held, until_state
from tests.proxy.hub.approvals.held.fakes import HeldBench

# Before the preview the request is looked for, and the limits; after it both again, as the request is opened.
# The approved request is read, and used.
STEPS = 6
ABOVE = "this agent has 20 open requests for approval, and may have 20"
pytestmark = pytest.mark.parametrize("bench", ["without a task"], indirect=True)


async def approved(bench: HeldBench, asked: Asked) -> None:
    """Approve the call as soon as its request is open, unless it has ended."""
    while State.PENDING not in bench.requests.states and bench.held.parts.slots.count:
        await step()
    if State.PENDING in bench.requests.states:
        bench.requests.approve(bench.requests.found[-1].id)


async def test_a_call_has_these_steps(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await begun(bench)
        await approved(bench, asked)
        await answer(bench, asked)
        assert asked.status == 200
    assert bench.requests.steps == STEPS


async def begun(bench: HeldBench) -> None:
    while not bench.requests.steps:
        await step()


@pytest.mark.parametrize("failing", range(1, STEPS + 1))
async def test_a_store_that_fails_at_a_step_refuses_the_call_and_serves_the_next(
    bench: HeldBench, failing: int
) -> None:
    def fail(number: int) -> None:
        bench.requests.away = number == failing

    bench.requests.on_step = fail
    async with asking(bench) as asked:
        await begun(bench)
        await approved(bench, asked)
        await asked.refused("the hub's store is not available", 503)
    assert bench.requests.steps == failing
    assert bench.held.parts.slots.count == 0
    assert State.USING not in bench.requests.states
    # No preview is made of a call whose request or limits could not be read.
    assert bench.previews.made == (failing > 2) + (failing > 5)
    async with asking(bench) as asked:
        while not bench.requests.found:
            await step()
        await approved(bench, asked)
        await answer(bench, asked)
        assert asked.status == 200
    await until_state(bench, State.USED)


@pytest.mark.parametrize("leaving", range(1, STEPS + 1))
async def test_a_client_that_leaves_at_a_step_is_not_served(bench: HeldBench, leaving: int) -> None:
    async with asking(bench) as asked:

        def leave(number: int) -> None:
            if number == leaving:
                asked.client.close_nowait()

        bench.requests.on_step = leave
        await begun(bench)
        await approved(bench, asked)
        while [*bench.hub.calls.live] or State.USING in bench.requests.states:
            await step()
    # Its use is given back.
    assert State.USED not in bench.requests.states
    events = await bench.hub.trail()
    assert [event["resp"]["processed"] for event in events if event["phase"] == "complete"] == ["no"]


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_client_that_sends_more_than_is_kept_is_not_served(bench: HeldBench, leaves: bool) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        [live] = bench.hub.calls.live
        await asked.client.send_all(b"x" * (EARLY_BYTES_MAX + 1000))
        if leaves:
            asked.client.close_nowait()
        while bench.held.parts.slots.count:
            await step()
        assert live.ended is None
    assert bench.requests.states == [State.PENDING]


async def test_an_agent_above_a_limit_costs_the_cluster_no_preview(bench: HeldBench) -> None:
    bench.requests.over_limit = ABOVE
    async with asking(bench) as asked:
        await asked.refused("has 20 open requests for approval", 429)
    assert bench.previews.made == 0
    # What it has asked for already is served.
    bench.requests.over_limit = ""
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.over_limit = ABOVE
        bench.requests.approve()
        await answer(bench, asked)
        assert asked.status == 200


async def test_an_agent_that_comes_above_a_limit_during_its_preview_is_refused(bench: HeldBench) -> None:
    def reach() -> None:
        bench.requests.over_limit = ABOVE

    bench.previews.meanwhile = reach
    async with asking(bench) as asked:
        await asked.refused("has 20 open requests for approval", 429)
    assert bench.previews.made == 1
    assert not bench.requests.found
