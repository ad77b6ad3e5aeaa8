"""Whole calls at the first hub, whose relay is at the second one: real streams, directory and trail.

Each test runs twice, as those of proxy.hub.calls: the call begins by its connection's task, or without it.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.proxy.hub.calls.bench import OK, Bench
from tests.proxy.hub.calls.bench import bench as bench
from tests.proxy.hub.hop.bench import second_hub
from tests.tunnel.trio_stream import accept
from tunnel import Processed, Session, StreamCode

GET = "GET /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"


async def answer(relay: Session) -> None:
    async with await accept(relay) as stream:
        await stream.send_head(OK)
        await stream.send_all(b"yes")
        await stream.send_eof()


async def test_a_read_is_answered_and_recorded_as_if_the_relay_were_here(bench: Bench) -> None:
    async with second_hub(bench, "far") as relays, trio.open_nursery() as nursery:
        nursery.start_soon(answer, relays["far"][1])
        status, _, body = await bench.ask(bench.request(GET))
    assert (status, body) == (200, b"yes")
    [event] = await bench.trail()
    assert event["relay"]["instance"] == "far"
    assert event["impersonated"]["extra"]["hawse.dev/session"] == ["session-of-far"]
    assert event["resp"]["processed"] == "yes"


async def test_a_call_that_the_second_hub_refuses_goes_to_another_relay(bench: Bench) -> None:
    async with second_hub(bench, "lost", "near") as relays, trio.open_nursery() as nursery:
        # The first hub does not know yet that this one has left.
        relays["lost"][0].session.end(None, "lost")
        nursery.start_soon(answer, relays["near"][1])
        status, _, _ = await bench.ask(bench.request(GET))
    assert status == 200
    [event] = await bench.trail()
    assert event["relay"]["instance"] == "near"


async def test_a_token_that_the_relay_refuses_is_renewed_by_the_second_hub(bench: Bench) -> None:
    async with second_hub(bench, "far") as relays, trio.open_nursery() as nursery:

        async def refuse_one() -> None:
            async with await accept(relays["far"][1]) as stream:
                stream.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="its time is over")
                first = stream.context.index
            async with await accept(relays["far"][1]) as stream:
                assert stream.context.index != first
                await stream.send_head(OK)
                await stream.send_all(b"yes")
                await stream.send_eof()

        nursery.start_soon(refuse_one)
        status, _, _ = await bench.ask(bench.request(GET))
    assert status == 200


async def test_a_lock_ends_a_stream_and_the_record_has_the_reason(bench: Bench) -> None:
    async with second_hub(bench, "far") as relays, trio.open_nursery() as nursery:
        upgrade = (
            "Upgrade: websocket",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        )
        request = bench.request(
            "GET /clusters/prod/api/v1/namespaces/dev/pods/a/exec?command=sh HTTP/1.1", *upgrade
        )
        answers: list[bytes] = []

        async def call() -> None:
            _, _, body = await bench.ask(request.replace(b"Connection: close", b"Connection: Upgrade"))
            answers.append(body)

        nursery.start_soon(call)
        stream = await accept(relays["far"][1])
        await stream.send_head(SWITCH)
        await stream.send_all(b"a prompt")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await bench.directory.change(lambda store: store.lock_agent("ann"))
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    assert answers == [b"a prompt"]
    event = (await bench.trail())[-1]
    assert event["kind"] == "session.killed"
    assert event["stream"]["close_reason"] == "revoked"
