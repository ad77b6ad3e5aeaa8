"""Routes on virtual time: what is announced, when, and what a hub does with what it cannot read."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.hub.peers.link import ROUTES
from proxy.hub.peers.routes import LINE_BYTES_MAX, PIECE_BYTES, ROUND_S, TELL_EVERY_S
from proxy.hub.peers.streams import PeerStream
from tests.proxy.hub.peers.linked import Linked, open_linked_hubs, route
from tunnel import CloseCode, Stream, StreamCode
from tunnel.driver import QUEUE_HIGH_BYTES


def told(hub: Linked) -> dict[str, int]:
    """The streams of each route that a hub was told."""
    return {each.route.session: each.route.streams for each in hub.relays}


async def test_both_hubs_tell_what_they_have_and_what_changes(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        first.tell(route("s1"), route("s2"))
        second.tell(route("s3"))
        await trio.sleep(2 * ROUND_S)
        assert (told(first), told(second)) == ({"s3": 0}, {"s1": 0, "s2": 0})
        assert [each.route for each in second.relays] == list(first.routes.values())
        first.tell(route("s2", away=True))
        second.tell()
        await trio.sleep(2 * ROUND_S)
        assert told(first) == {}
        (relay,) = second.relays
        assert (relay.route, relay.updates) == (route("s2", away=True), 1)


async def test_what_changes_unnoticed_is_told_once_a_second_and_only_that(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        first.tell(route("s1"), route("s2"))
        await trio.sleep(TELL_EVERY_S)
        for streams in range(1, 50):
            first.routes["s1"] = route("s1", streams=streams)
            await trio.sleep(0.1)
        assert told(second)["s1"] in range(40, 50)
        updates = {each.route.session: each.updates for each in second.relays}
        assert updates["s1"] in (4, 5)
        assert updates["s2"] == 0


async def test_many_changes_at_once_are_told_in_few_rounds(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        rounds = 0
        own = first.mesh._announcer.local

        def counted() -> list[object]:
            nonlocal rounds
            rounds += 1
            return list(own())

        first.mesh._announcer.local = counted  # type: ignore[assignment]  # counts the rounds
        for number in range(100):
            first.tell(*(route(f"s{each}") for each in range(number)))
            await trio.sleep(0.001)
        await trio.sleep(2 * ROUND_S)
        assert len(second.relays) == 99
        assert rounds <= 6


async def test_a_hub_that_leaves_says_so_of_all_its_routes_in_the_same_pass(
    autojump_clock: MockClock,
) -> None:
    async with open_linked_hubs() as (first, second, _):
        first.tell(route("s1"), route("s2"))
        await trio.sleep(2 * ROUND_S)
        first.mesh.leave()
        await wait_all_tasks_blocked()
        assert [each.route.leaving for each in second.relays] == [True, True]
        first.tell(route("s3"))
        await trio.sleep(2 * ROUND_S)
        assert [each.route for each in second.relays] == [route("s3", leaving=True)]
        assert first.link.up
        assert second.link.up


async def test_a_hub_that_reads_no_routes_is_told_the_newest_once_it_reads(
    autojump_clock: MockClock,
) -> None:
    async with open_linked_hubs() as (first, second, _):
        streams: list[Stream] = []
        second.mesh.streams[ROUTES] = lambda _, stream: streams.append(stream)
        await trio.sleep(0.1)
        (telling,) = first.mesh._announcer._tellings.values()
        many = [route(f"s{number}", version="x" * 200) for number in range(1_000)]
        for count in range(8):
            first.tell(*(attrs.evolve(each, streams=count) for each in many))
            await trio.sleep(TELL_EVERY_S)
        # One round: credit for the stream, a queue up to its mark, and the piece that went beyond.
        assert telling._stream is not None
        queued = telling._stream._state.outgoing.size
        assert queued <= QUEUE_HIGH_BYTES + PIECE_BYTES + LINE_BYTES_MAX
        (stream,) = streams
        second.mesh._on_routes(second.link, stream)
        await trio.sleep(1)
        assert len(second.relays) == 1_000
        assert {each.route.streams for each in second.relays[500:]} == {7}


async def test_routes_of_a_stream_that_was_lost_are_told_again(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        first.tell(route("s1"), route("s2"))
        await trio.sleep(2 * ROUND_S)
        (telling,) = first.mesh._announcer._tellings.values()
        before = telling._stream
        assert before is not None
        # As memory evicts it.
        before.reset(StreamCode.OVERLOADED, reason="memory is short")
        await wait_all_tasks_blocked()
        await trio.sleep(0.01)
        assert second.relays == []
        await trio.sleep(TELL_EVERY_S + ROUND_S)
        assert told(second) == {"s1": 0, "s2": 0}


GOOD = {"is": "here", **attrs.asdict(route("s1"))}


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[]",
        b"{",
        b"[" * 5_000,
        json.dumps({"is": "here"}).encode(),
        json.dumps({**GOOD, "session": 5}).encode(),
        json.dumps({**GOOD, "streams": "5"}).encode(),
        json.dumps({**GOOD, "leaving": 1}).encode(),
        json.dumps({**GOOD, "connected_at": None}).encode(),
        json.dumps({**GOOD, "connected_at": 10**400}).encode(),
        json.dumps({**GOOD, "version": "\ud800"}).encode(),
        json.dumps({"is": "gone"}).encode(),
        b"x" * (LINE_BYTES_MAX + 1),
    ],
    ids=repr,
)
async def test_a_hub_whose_routes_cannot_be_read_loses_its_link_and_no_other(
    line: bytes, autojump_clock: MockClock
) -> None:
    async with open_linked_hubs() as (first, second, wires):
        link = first.link
        stream = PeerStream(first.link.open(ROUTES))
        # A line that is too long has no end.
        end = b"\n" if len(line) < LINE_BYTES_MAX else b""
        await stream.send_all(json.dumps(GOOD).encode() + b"\n" + line + end)
        await trio.sleep(0.1)
        assert link.session.close_code == CloseCode.PROTOCOL
        assert second.relays == []
        await trio.sleep(2)
        assert first.link is not link
        assert len(wires.dials) == 2


async def test_words_and_keys_of_a_later_version_are_ignored(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        stream = PeerStream(first.link.open(ROUTES))
        for line in ({"is": "elsewhere"}, {"other": 1}, {**GOOD, "color": "blue"}):
            await stream.send_all(json.dumps(line).encode() + b"\n")
        await trio.sleep(0.1)
        assert [each.route for each in second.relays] == [route("s1")]


async def test_a_hub_has_a_bound_on_routes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.peers.routes.ROUTES_MAX", 3)
    async with open_linked_hubs() as (first, second, _):
        link = first.link
        first.tell(*(route(f"s{number}") for number in range(3)))
        await trio.sleep(2 * ROUND_S)
        first.tell(*(route(f"s{number}", streams=1) for number in range(3)))
        await trio.sleep(2 * ROUND_S)
        assert len(second.relays) == 3
        first.tell(*(route(f"s{number}") for number in range(4)))
        await trio.sleep(2 * ROUND_S)
        assert link.session.close_code == CloseCode.PROTOCOL
