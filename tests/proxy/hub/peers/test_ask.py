"""Questions and answers on virtual time."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from proxy.hub.peers.asks import ASK_LIFE_S, ASKS_MAX
from proxy.hub.peers.link import ASK, ASK_BYTES_MAX, ASK_S, AskFailed, LinkDown, PeerLink
from proxy.hub.peers.streams import PeerStream
from tests.proxy.hub.peers.linked import open_linked_hubs


async def test_each_hub_answers_the_other_ones_questions(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):

        async def answer(link: PeerLink, body: dict[str, object]) -> dict[str, object]:
            return {"to": link.member.hub, **body}

        for hub in (first, second):
            hub.mesh.answers["who"] = answer
        assert await first.link.ask("who", {"n": 1}) == {"to": "aaaaaaaa", "n": 1}
        assert await second.link.ask("who", {"text": "x" * 900_000}) == {
            "to": "bbbbbbbb", "text": "x" * 900_000,
        }  # fmt: skip


async def test_a_question_that_is_refused_or_not_answered(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_linked_hubs() as (first, second, _):
        link = first.link

        async def refuse(link: PeerLink, body: dict[str, object]) -> dict[str, object]:
            raise AskFailed("no such session")

        async def hang(link: PeerLink, body: dict[str, object]) -> dict[str, object]:
            await trio.sleep_forever()
            raise AssertionError

        async def fail(link: PeerLink, body: dict[str, object]) -> dict[str, object]:
            raise KeyError("a bug")

        async def boast(link: PeerLink, body: dict[str, object]) -> dict[str, object]:
            return {"text": "x" * ASK_BYTES_MAX}

        second.mesh.answers.update({"refuse": refuse, "hang": hang, "fail": fail, "boast": boast})
        for question, reason in (
            ("refuse", "hub bbbbbbbb: no such session"),
            ("other", "hub bbbbbbbb: this hub does not know that question"),
            ("fail", "hub bbbbbbbb: the hub failed by a fault of its own"),
            ("boast", f"the limit is {ASK_BYTES_MAX}"),
            ("hang", f"hub bbbbbbbb has not answered within {ASK_S:g} s"),
        ):
            with pytest.raises(AskFailed, match=reason):
                await link.ask(question, {})
        with pytest.raises(ValueError, match="a question of"):
            await link.ask("boast", {"text": "x" * ASK_BYTES_MAX})
        assert [each.message for each in caplog.records if each.levelno == logging.ERROR] == [
            "a question of hub aaaaaaaa failed by a fault of ours"
        ]
        second.link.session.end(1000, "over")
        await trio.sleep(0.1)
        with pytest.raises(LinkDown, match="hub bbbbbbbb takes no stream"):
            await link.ask("refuse", {})


@pytest.mark.parametrize("asked", [b"", b"[]", b'{"question": 1}', b'{"question": "q", "body": []}', b"\x00"])
async def test_what_is_no_question_is_refused(asked: bytes, autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        stream = PeerStream(first.link.open(ASK))
        await stream.send_all(asked)
        await stream.send_eof()
        with pytest.raises(trio.BrokenResourceError, match="REFUSED"):
            await stream.receive_some()
        assert first.link.up
        assert second.link.up


async def test_questions_have_bounds_in_bytes_number_and_time(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        long = PeerStream(first.link.open(ASK))
        with pytest.raises(trio.BrokenResourceError, match=f"exceeds {ASK_BYTES_MAX} bytes"):
            await long.send_all(b"x" * 16 * ASK_BYTES_MAX)
        silent = [PeerStream(first.link.open(ASK)) for _ in range(ASKS_MAX)]
        await trio.sleep(0.1)
        with pytest.raises(AskFailed, match=f"{ASKS_MAX} questions of this hub are under way"):
            await first.link.ask("any", {})
        await trio.sleep(ASK_LIFE_S)
        assert all(each.raw.broken for each in silent)
        with pytest.raises(AskFailed, match="does not know that question"):
            await first.link.ask("any", {})
        assert not second.mesh._answerer._under_way


async def test_a_hub_that_never_reads_its_answer_holds_nothing_for_ever(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):

        async def boast(link: PeerLink, body: dict[str, object]) -> dict[str, object]:
            return {"text": "x" * 900_000}

        second.mesh.answers["boast"] = boast
        stream = PeerStream(first.link.open(ASK))
        await stream.send_all(b'{"question": "boast", "body": {}}')
        await stream.send_eof()
        await trio.sleep(ASK_LIFE_S - 1)
        assert second.mesh._answerer._under_way.total() == 1
        await trio.sleep(2)
        assert second.mesh._answerer._under_way.total() == 0
        assert second.link.session.memory.used_bytes < 200_000
