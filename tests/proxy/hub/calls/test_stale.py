"""Calls at a hub whose snapshot must not decide any more."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.hub.calls import begin as begin_module
from proxy.hub.calls import calls as calls_module
from proxy.hub.calls.live import Ending
from proxy.hub.calls.outcome import CloseReason
from tests.proxy.hub.calls.bench import OK, Bench, relay_of
from tests.proxy.hub.calls.line import POST, Commits, Line
from tests.tunnel.trio_stream import accept
from tunnel import Session

GET = "GET /clusters/prod/api/v1/pods HTTP/1.1"
UNCONFIRMED = b"cannot confirm its state with the database since"
UNSEEN = b"the API server has not seen this request"


async def expect_no_call(relay: Session) -> None:
    with trio.move_on_after(0.02) as patience:
        await accept(relay)
    assert patience.cancelled_caught


async def answer(relay: Session) -> None:
    stream = await accept(relay)
    stream.send_answer_nowait(OK, b"yes", eof=True)


@pytest.mark.parametrize("line_", [GET, POST], ids=["a read", "a write"])
async def test_a_call_is_refused_from_the_age_on_and_recorded(bench: Bench, line_: str) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        bench.age(9.0)
        nursery.start_soon(answer, relay)
        assert (await bench.ask(bench.request(line_, "Content-Length: 0")))[0] == 200
        bench.age(10.0)
        status, headers, body = await bench.ask(bench.request(line_, "Content-Length: 0"))
        assert status == 503
        # client-go would repeat even a POST.
        assert b"retry-after" not in headers
        assert UNCONFIRMED in body
        assert UNSEEN in body
        await expect_no_call(relay)
        event = (await bench.trail())[-1]
        assert (event["actor"]["name"], event["decision"]["rule"]) == ("ann", "directory")
        assert (event["resp"]["status"], event["resp"]["processed"]) == (503, "no")
        bench.age(0.0)
        nursery.start_soon(answer, relay)
        assert (await bench.ask(bench.request(line_, "Content-Length: 0")))[0] == 200


async def test_a_request_that_waited_in_the_socket_is_refused_before_any_timer_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a SIGSTOP of 20 s: the clock has gone on, and no other task has run."""
    stopped_s = 0.0

    class Time:
        time = staticmethod(time.time)
        monotonic = staticmethod(lambda: time.monotonic() + stopped_s)

    for module in (begin_module, calls_module):
        monkeypatch.setattr(module, "time", Time)
    async with relay_of(bench) as relay, bench.connected() as client:
        data = bench.request(GET).replace(b"Connection: close\r\n", b"")
        await client.send_all(data)
        await answer(relay)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
        await client.send_all(data)
        stopped_s = 20.0
        with trio.fail_after(2):
            assert (await client.receive_some()).startswith(b"HTTP/1.1 503 ")


async def test_a_write_whose_intent_took_too_long_is_not_forwarded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    async with relay_of(bench) as relay, bench.connected() as client:
        line = Line(bench, client, relay)
        await line.send(POST, "Content-Length: 0")
        await wait_all_tasks_blocked(0.01)
        bench.age(10.0)
        commits.let_go()
        answer = await line.hear(b"}")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert UNCONFIRMED in answer
        assert UNSEEN in answer
        await expect_no_call(relay)
    assert await bench.calls.live.wait_drained(5)
    end = (await bench.trail())[-1]
    assert (end["kind"], end["resp"]["processed"]) == ("session.killed", "no")


async def test_a_call_that_waited_for_its_relay_for_too_long_is_not_forwarded(bench: Bench) -> None:
    bench.registry.relay_wait.expect([bench.directory.current.clusters_by_name["prod"].id])
    answers: list[tuple[int, bytes]] = []

    async def ask() -> None:
        status, _, body = await bench.ask(bench.request(GET))
        answers.append((status, body))

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not bench.registry.relay_wait.parked:
                await wait_all_tasks_blocked(0.001)
            bench.age(10.0)
            async with relay_of(bench) as relay:
                while not answers:
                    await wait_all_tasks_blocked(0.001)
                await expect_no_call(relay)
    [(status, body)] = answers
    assert status == 503
    assert UNSEEN in body


EXPIRED = Ending(CloseReason.REVOKED, "this hub could not confirm its state", unavailable=True)


@pytest.mark.parametrize(
    ("line_", "status", "seen"),
    [
        (GET, 503, b"the API server may have seen this request"),
        (POST, 504, b"may still be processing this request, look before you send it again"),
    ],
    ids=["a read", "a write"],
)
async def test_a_call_that_ends_for_the_hub_while_it_waits_for_its_answer_is_no_403(
    bench: Bench, line_: str, status: int, seen: bytes
) -> None:
    answers: list[tuple[int, bytes]] = []

    async def ask() -> None:
        found, _, body = await bench.ask(bench.request(line_, "Content-Length: 0"))
        answers.append((found, body))

    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        stream = await accept(relay)
        [live] = bench.calls.live
        await bench.calls.live.end([(live, EXPIRED)])
        with trio.fail_after(2):
            while not answers:
                await wait_all_tasks_blocked(0.001)
        await stream.aclose()
    [(found, body)] = answers
    assert found == status
    assert seen in body
    assert (await bench.trail())[-1]["kind"] == "session.killed"
