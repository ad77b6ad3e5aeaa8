"""The facts of several hubs, over their links, and what a stream of changes compares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import attrs
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from proxy.hub.admin.hub_facts import FACTS, OtherHubsFacts, answer_facts, watched_of
from proxy.hub.admin.other_hubs import Ask, Peer
from proxy.hub.admin.overview.shapes import Attention, HubFacts
from proxy.hub.membership.member import MemberState
from proxy.hub.peers.link import AskFailed, LinkDown, PeerLink
from proxy.hub.relays.registry import Registry
from tests.fakes.hubs import HUB, FakeHubs

DISK = Attention("disk-full", "warning", "trail", "aaaaaaaa", "nearly full", "2027-01-15T08:00:00Z")
MINE = HubFacts({"prod": 3}, {"prod": 1.5}, ["dev"], {"prod": 1.0}, [DISK])


def asked(facts: HubFacts) -> Ask:
    """Ask a hub with these facts as over a link: as JSON."""
    answers: dict[str, Any] = {}

    async def own() -> HubFacts:
        await trio.lowlevel.checkpoint()
        return facts

    answer_facts(answers, own)

    async def ask(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
        read = json.loads(json.dumps(body))
        answered = json.loads(json.dumps(await answers[question](cast(PeerLink, None), read)))
        assert isinstance(answered, dict)
        return answered

    return ask


def failing(error: Exception) -> Ask:
    async def ask(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
        await trio.lowlevel.checkpoint()
        raise error

    return ask


def saying(answer: Mapping[str, object]) -> Ask:
    async def ask(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
        await trio.lowlevel.checkpoint()
        assert question == FACTS
        return answer

    return ask


async def sleep(question: str, body: Mapping[str, object]) -> Mapping[str, object]:
    await trio.sleep_forever()
    raise AssertionError


async def test_the_facts_of_all_hubs_come_over_their_links() -> None:
    theirs = HubFacts({"dev": 1}, troubles=[replace(DISK, name="bbbbbbbb")])
    peers = [Peer("a", asked(MINE)), Peer("b", asked(theirs))]
    found, silent = await OtherHubsFacts(lambda: peers).facts()
    assert sorted(found, key=lambda each: sum(each.calls.values())) == [theirs, MINE]
    assert silent == []


async def test_hubs_that_do_not_answer_are_named_after_a_second(autojump_clock: MockClock) -> None:
    peers = [
        Peer("silent", sleep),
        Peer("lost", failing(LinkDown("no link"))),
        Peer("older", failing(AskFailed("this hub does not know that question"))),
        Peer("odd", saying({"calls": 7})),
        Peer("unlinked", None),
        Peer("fine", saying({"calls": {"prod": 2}, "newer": True})),
    ]
    found, silent = await OtherHubsFacts(lambda: peers).facts()
    assert found == [HubFacts({"prod": 2})]
    assert silent == ["lost", "odd", "older", "silent", "unlinked"]
    assert trio.current_time() <= 1.0


def test_what_is_watched_differs_after_a_change_at_any_hub() -> None:
    calls = SimpleNamespace(live=SimpleNamespace(mark=(0, "")))
    trail = SimpleNamespace(mark=1)
    hubs = FakeHubs()
    watched = watched_of(cast(Any, calls), Registry(), cast(Any, trail), cast(Any, hubs))

    def values() -> dict[str, object]:
        return {topic: value() for topic, value in watched.items()}

    def changed(before: dict[str, object]) -> set[str]:
        return {topic for topic, value in values().items() if value != before[topic]}

    before = values()
    calls.live.mark = (1, "a")
    assert changed(before) == {"sessions"}
    before, trail.mark = values(), 2
    assert changed(before) == {"trail"}
    assert changed(values()) == set()
    hubs.beside = [HUB]
    before = values()
    hubs.beside = [attrs.evolve(HUB, calls=13, age_s=0.1)]
    assert changed(before) == {"sessions"}
    hubs.beside = [attrs.evolve(HUB, tunnels=401)]
    assert changed(before) == {"relays"}
    hubs.beside = [attrs.evolve(HUB, state=MemberState.LEAVING)]
    assert changed(before) == {"hubs"}
