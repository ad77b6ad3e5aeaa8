"""The question whether a relay at another hub keeps its slot."""

from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import MockClock

from proxy.hub.peers.link import AskFailed
from proxy.hub.peers.slots import ANSWERS, ASKED_S, SlotQuestions
from proxy.hub.relays.relay_limit import ANSWER_S
from proxy.hub.relays.shared_limit import REPLY_S
from tests.proxy.hub.peers.linked import Linked, open_linked_hubs


@attrs.define(eq=False)
class Keeper:
    """A hub that has one relay."""

    takes_s: float = 0.0
    asked: list[tuple[str, str]] = attrs.Factory(list)

    async def answers(self, session: str, instance: str) -> bool:
        """See SlotKeeper."""
        self.asked.append((session, instance))
        await trio.sleep(self.takes_s)
        return session == "s1"


def questions(hub: Linked) -> SlotQuestions:
    return SlotQuestions(hub.mesh.links, hub.mesh.answers)


async def test_the_other_hub_decides(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        keeper = Keeper()
        questions(second).answer_by(keeper)
        ask = questions(first).ask
        boot = second.members.me.boot
        assert (await ask(boot, "s1", "b"), await ask(boot, "s2", "b")) == (True, False)
        assert keeper.asked == [("s1", "b"), ("s2", "b")]


async def test_an_answer_after_the_longest_probe_is_in_time(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        questions(second).answer_by(Keeper(ANSWER_S))
        with trio.fail_after(ANSWER_S + REPLY_S):
            assert await questions(first).ask(second.members.me.boot, "s1", "b")
    assert ASKED_S == ANSWER_S + REPLY_S


async def test_a_link_that_is_lost_for_a_moment_is_waited_for(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        questions(second).answer_by(Keeper())
        wires.split = True
        wires.cut()
        await trio.sleep(0.1)
        with trio.move_on_after(3) as waiting:
            await questions(first).ask(second.members.me.boot, "s1", "b")
        assert waiting.cancelled_caught
        wires.split = False
        with trio.fail_after(5):
            assert await questions(first).ask(second.members.me.boot, "s1", "b")


@pytest.mark.parametrize("body", [{}, {"session": "s1"}, {"session": 1, "instance": "b"}])
async def test_a_question_of_another_form_is_refused(
    autojump_clock: MockClock, body: dict[str, object]
) -> None:
    async with open_linked_hubs() as (first, second, _):
        questions(second).answer_by(Keeper())
        with pytest.raises(AskFailed, match="names no session, or no instance"):
            await first.link.ask(ANSWERS, body)
