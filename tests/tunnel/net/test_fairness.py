from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.tunnel.passes import counted_passes
from tunnel.net.fairness import (
    SHARED_FRAMES,
    STEP_S,
    TASKS_PER_PASS,
    TASKS_PER_PASS_MAX,
    Fairness,
    UnknownPeer,
    in_chunks,
)


async def test_of_tasks_that_are_woken_at_once_some_go_on_in_a_pass_and_then_the_next(
    mock_clock: MockClock,
) -> None:
    common = Fairness()
    count = 10 * TASKS_PER_PASS + 1
    went_on: list[int] = []

    async def go_on(number: int) -> None:
        if not common.admits():
            await common.wait()
        passes.note()
        went_on.append(number)

    with counted_passes() as passes:
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(go_on, number)
            # There is room again for the first ones.
            await wait_all_tasks_blocked()
    assert sorted(went_on) == sorted(2 * list(range(count)))
    assert passes.most == TASKS_PER_PASS


async def test_more_go_on_in_a_pass_that_is_long_for_other_reasons(autojump_clock: MockClock) -> None:
    common = Fairness()
    scope = trio.CancelScope()

    async def go_on() -> None:
        if not common.admits():
            await common.wait()
        passes.note()

    async def hold_up() -> None:
        with scope:
            while True:
                autojump_clock.jump(STEP_S * 2 * TASKS_PER_PASS_MAX)
                await trio.lowlevel.checkpoint()

    with counted_passes() as passes:
        async with trio.open_nursery() as everything:
            everything.start_soon(hold_up)
            async with trio.open_nursery() as nursery:
                for _ in range(9 * TASKS_PER_PASS):
                    nursery.start_soon(go_on)
            scope.cancel()
    assert passes.most == TASKS_PER_PASS_MAX


async def test_a_task_that_waits_for_a_pass_may_be_cancelled() -> None:
    common = Fairness()
    while common.admits():
        pass
    with trio.CancelScope() as scope:
        scope.cancel()
        await common.wait()
    await wait_all_tasks_blocked()
    assert common.admits()


def test_frames_beyond_the_shared_budget_are_taken_from_no_session() -> None:
    common = Fairness()
    assert common.frames_left(0.0) == SHARED_FRAMES
    common.take_frames(2 * SHARED_FRAMES)
    assert common.frames_left(0.0) == 0


async def test_who_goes_over_very_many_things_lets_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(number: int) -> int:
        passes.note()
        return -number

    with counted_passes() as passes:
        monkeypatch.setattr("tunnel.net.fairness.CHUNK_S", 60)
        assert await in_chunks(said, range(5)) == [0, -1, -2, -3, -4]
        assert passes.most == 5
        passes.noted.clear()
        monkeypatch.setattr("tunnel.net.fairness.CHUNK_S", 0)
        assert await in_chunks(said, range(5)) == [0, -1, -2, -3, -4]
        assert passes.most == 1


@pytest.mark.parametrize("kind", ["wait", "wait_alone"])
async def test_a_flooding_peer_delays_only_its_own_tasks(kind: str, mock_clock: MockClock) -> None:
    common = Fairness()
    went_on: list[str] = []

    async def go_on(peer: str) -> None:
        await getattr(common, kind)(peer)
        went_on.append(peer)

    # For now the budget is used up.
    common._tasks_left, common._alone = 0, True
    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(go_on, "many")
        await wait_all_tasks_blocked()
        for peer in ("few", "few", "one"):
            nursery.start_soon(go_on, peer)
        await wait_all_tasks_blocked()
        assert went_on == []
        if kind == "wait":
            common._renew_soon()
        else:
            common._wake_next()
    assert Counter(went_on) == {"many": 300, "few": 2, "one": 1}
    assert Counter(went_on[:TASKS_PER_PASS]) == {"many": TASKS_PER_PASS - 3, "few": 2, "one": 1}


@pytest.mark.parametrize("kind", ["wait", "wait_alone"])
async def test_all_unknown_peers_have_the_share_of_one(kind: str, mock_clock: MockClock) -> None:
    common = Fairness()
    went_on: list[str] = []

    async def go_on(peer: Hashable, name: str) -> None:
        await getattr(common, kind)(peer)
        went_on.append(name)

    common._tasks_left, common._alone = 0, True
    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(go_on, UnknownPeer(str(number)), "stranger")
        for _ in range(40):
            nursery.start_soon(go_on, UnknownPeer("many"), "many")
        await wait_all_tasks_blocked()
        nursery.start_soon(go_on, UnknownPeer("few"), "few")
        for _ in range(8):
            nursery.start_soon(go_on, "agent", "agent")
        await wait_all_tasks_blocked()
        if kind == "wait":
            common._renew_soon()
        else:
            common._wake_next()
    assert went_on[:16].count("agent") == 8
    # Among themselves they go by address.
    assert went_on.index("few") < len(went_on) - 20
    assert Counter(went_on) == {"stranger": 300, "many": 40, "few": 1, "agent": 8}
    assert not common._waiting
    assert not common._wait_alone
