"""The calls that a driver has put off, when one is a bug or ends the session."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import Pair, open_pair
from tests.tunnel.trio_stream import accept
from tunnel import SessionClosed


def bug() -> None:
    raise ZeroDivisionError


async def answer_in_one_message(pair: Pair, answers: int) -> None:
    for _ in range(answers):
        (await accept(pair.dialer)).send_answer_nowait(b"200", eof=True)


async def test_a_bug_in_the_callback_of_an_answer_ends_the_session_and_leaves_no_task_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[str] = []
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError), flatten_subgroups=True):
        async with open_pair() as pair:
            pair.open_stream().raw.when_input(lambda: told.append("before"))
            pair.open_stream().raw.when_input(bug)
            pair.open_stream().raw.when_input(lambda: told.append("behind"))
            await answer_in_one_message(pair, 3)
            await trio.sleep_forever()
    assert told == ["before", "behind"]
    assert pair.wire.closed_with == (1000, "cancelled here")
    with pytest.raises(SessionClosed):
        await accept(pair.listener)


async def test_a_bug_in_a_callback_of_the_end_does_not_keep_the_session_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        pair.open_stream().raw.on_reset(bug)
        await wait_all_tasks_blocked()
        with pytest.raises(ZeroDivisionError):
            pair.listener.end(1000, "enough")
        assert await pair.listener.wait_closed() == "enough"
        with pytest.raises(SessionClosed, match="enough"):
            await accept(pair.listener)
        await pair.dialer.wait_closed()
    assert pair.wire.closed_with == (1000, "enough")


async def test_a_callback_that_ends_the_session_is_called_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[str] = []
    async with open_pair() as pair:

        def end() -> None:
            told.append("first")
            pair.listener.end(1000, "enough")

        pair.open_stream().raw.when_input(end)
        pair.open_stream().raw.when_input(lambda: told.append("second"))
        await answer_in_one_message(pair, 2)
        await wait_all_tasks_blocked()
    assert told == ["first", "second"]
