from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from proxy.hub.admin.live_calls import CallsPage
from proxy.hub.admin.other_hubs import (
    Ask,
    OtherHubsCalls,
    Peer,
    answer_kill,
    answer_others,
    answer_sessions,
    peers_of,
)
from proxy.hub.membership.member import Member, MemberState
from proxy.hub.peers.link import AskFailed, LinkDown, PeerLink
from proxy.hub.relays.operations import SessionInfo
from tests.fakes.admin import WATCH
from tests.fakes.hubs import HUB, FakeHubs


@attrs.define
class Hub:
    """Another hub, which has two calls in a page."""

    live: list[SessionInfo]
    reasons: list[str] = attrs.Factory(list)

    async def page(self, *, agent: str | None, cluster: str | None, after: str) -> CallsPage:
        await trio.lowlevel.checkpoint()
        fitting = [each for each in self.chosen(None, agent, cluster) if each.id > after]
        fitting.sort(key=lambda each: each.id)
        return CallsPage(fitting[:2], len(fitting) > 2)

    async def kill_page(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> CallsPage:
        await trio.lowlevel.checkpoint()
        fitting = self.chosen(session_id, agent, cluster)
        self.reasons.append(reason)
        for each in fitting[:2]:
            self.live.remove(each)
        return CallsPage(fitting[:2], len(fitting) > 2)

    def chosen(self, eid: str | None, agent: str | None, cluster: str | None) -> Sequence[SessionInfo]:
        return [
            each
            for each in self.live
            if eid in (None, each.id) and agent in (None, each.agent) and cluster in (None, each.cluster)
        ]

    def asked(self) -> Ask:
        """Ask this hub as over a link: as JSON."""

        async def ask(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
            read = json.loads(json.dumps(body))
            answer = {"sessions": answer_sessions, "kill": answer_kill}[question]
            answered = json.loads(json.dumps(await answer(self, read)))
            assert isinstance(answered, dict)
            return answered

        return ask


def calls(prefix: str, number: int, **changes: str) -> list[SessionInfo]:
    return [attrs.evolve(WATCH, id=f"{prefix}-{each}", hub=prefix, **changes) for each in range(number)]


def others(*peers: Peer) -> OtherHubsCalls:
    return OtherHubsCalls(lambda: peers)


async def test_all_pages_of_all_hubs_are_read() -> None:
    a, b = Hub([*calls("aa", 5), *calls("ax", 1, agent="other")]), Hub(calls("bb", 1))
    found = await others(Peer("a", a.asked()), Peer("b", b.asked())).sessions(agent="sre-1", cluster="prod")
    assert sorted(each.id for each in found.calls) == [*(f"aa-{each}" for each in range(5)), "bb-0"]
    assert {attrs.evolve(each, id="", hub="") for each in found.calls} == {attrs.evolve(WATCH, id="")}
    assert found.silent == []


async def test_all_pages_of_all_hubs_are_ended() -> None:
    a, b = Hub([*calls("aa", 5), *calls("ax", 1, cluster="other")]), Hub(calls("bb", 1))
    asked = others(Peer("a", a.asked()), Peer("b", b.asked()))
    killed = await asked.kill(session_id=None, agent=None, cluster="prod", reason="incident 7")
    assert len(killed.calls) == 6
    assert [each.id for each in a.live] == ["ax-0"]
    assert b.live == []
    assert set(a.reasons) == set(b.reasons) == {"incident 7"}
    assert (await asked.kill(session_id="ax-0", agent=None, cluster=None, reason="x")).calls == calls(
        "ax", 1, cluster="other"
    )


async def never(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
    await trio.sleep(2)
    raise AskFailed("hub x has not answered within 2 s")


async def down(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
    await trio.lowlevel.checkpoint()
    raise LinkDown("hub x takes no stream")


async def refuses(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
    await trio.lowlevel.checkpoint()
    raise AskFailed("hub x: no such question")


async def nonsense(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
    await trio.lowlevel.checkpoint()
    return {"calls": "none"}


@pytest.mark.parametrize("ask", [None, never, down, refuses, nonsense])
async def test_a_hub_that_does_not_answer_is_named_within_two_seconds(
    ask: Ask | None, autojump_clock: MockClock
) -> None:
    hub = Hub(calls("aa", 1))
    asked = others(Peer("x", ask), Peer("a", hub.asked()), Peer("b", ask))
    began = trio.current_time()
    found = await asked.sessions()
    assert (found.calls, found.silent) == (calls("aa", 1), ["b", "x"])
    found = await asked.kill(session_id=None, agent="sre-1", cluster=None, reason="x")
    assert (found.calls, found.silent) == (calls("aa", 1), ["b", "x"])
    assert trio.current_time() - began <= 2 * 2.0


async def test_a_hub_with_very_many_calls_may_take_longer_for_all_its_pages(
    autojump_clock: MockClock,
) -> None:
    hub = Hub(calls("aa", 20))

    async def slow(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
        await trio.sleep(1.5)
        return await hub.asked()(question, body)

    found = await others(Peer("a", slow)).sessions()
    assert (len(found.calls), found.silent) == (20, [])
    hub.live += calls("bb", 20)
    found = await others(Peer("a", slow)).sessions()
    assert (len(found.calls), found.silent) == (26, ["a"])


async def test_what_a_hub_has_ended_before_it_fell_silent_is_told(autojump_clock: MockClock) -> None:
    hub = Hub(calls("aa", 5))
    answered = 0

    async def ask(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
        nonlocal answered
        answered += 1
        return await (hub.asked() if answered < 2 else never)(question, body)

    killed = await others(Peer("a", ask)).kill(session_id=None, agent="sre-1", cluster=None, reason="x")
    assert (killed.calls, killed.silent) == (calls("aa", 2), ["a"])


@pytest.mark.parametrize("question", [{}, {"id": None, "reason": "x"}, {"id": 3}])
async def test_a_question_that_would_end_everything_is_refused(question: Mapping[str, object]) -> None:
    hub = Hub(calls("aa", 2))
    with pytest.raises(AskFailed):
        await answer_kill(hub, question)
    assert len(hub.live) == 2


async def test_unknown_keys_of_a_newer_hub_are_ignored() -> None:
    hub = Hub(calls("aa", 1))

    async def newer(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
        answer = await hub.asked()(question, {**body, "new": 1})
        [call] = answer["calls"]  # type: ignore[misc] # a list of JSON
        return {**answer, "calls": [{**call, "new": 1}], "new": 1}

    assert (await others(Peer("a", newer)).sessions()).calls == calls("aa", 1)


@attrs.define
class Link:
    answer: Ask

    async def ask(self, question: str, body: Mapping[str, object], within_s: float) -> Mapping[str, object]:
        assert within_s == 2.0
        return await self.answer(question, body)


@attrs.define
class Links:
    by_boot: dict[str, Link]

    async def wait_link(self, member: Member, within_s: float) -> PeerLink:
        await trio.lowlevel.checkpoint()
        if (link := self.by_boot.get(member.boot)) is None:
            raise LinkDown("no link")
        return cast(PeerLink, link)


async def test_each_process_is_asked_over_its_own_link(autojump_clock: MockClock) -> None:
    other = attrs.evolve(HUB, hub="8c21d004", boot="b2")
    replaced = attrs.evolve(HUB, boot="b0", state=MemberState.LEAVING)
    hub = Hub(calls("aa", 1))
    hubs = FakeHubs(beside=[other, replaced])
    peers = peers_of(hubs, Links({"b2": Link(hub.asked())}))
    assert [peer.name for peer in peers] == ["8c21d004", "1f0c3a9e (replaced)"]
    found = await others(*peers).sessions()
    assert (found.calls, found.silent) == (calls("aa", 1), ["1f0c3a9e (replaced)"])
    # A hub without `peer.listen` has no links.
    assert (await others(*peers_of(hubs, None)).sessions()).silent == ["1f0c3a9e (replaced)", "8c21d004"]


async def test_a_hub_answers_the_questions_of_others() -> None:
    answers: dict[str, Any] = {}
    hub = Hub(calls("aa", 1))
    answer_others(answers, hub)
    link = cast(PeerLink, None)
    assert [each["id"] for each in (await answers["sessions"](link, {}))["calls"]] == ["aa-0"]
    await answers["kill"](link, {"id": "aa-0", "reason": "x"})
    assert hub.live == []
