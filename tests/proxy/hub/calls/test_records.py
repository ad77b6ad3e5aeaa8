"""What the record says of how a call ended, and of its bytes, where ports carry it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.exchange.wire import CONNECTION_BYTES
from proxy.message.head import ResponseHead
from tests.proxy.hub.calls.bench import Bench, read_all
from tests.proxy.hub.calls.talk import Talk, talking
from tunnel import Processed, StreamCode

EXEC = "GET /clusters/prod/api/v1/namespaces/dev/pods/p/exec?command=sh HTTP/1.1"
LOG = "GET /clusters/prod/api/v1/namespaces/dev/pods/p/log?follow=true HTTP/1.1"
POST = "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1"
REQUESTS = {
    "exec": (EXEC, "Connection: Upgrade", "Upgrade: websocket"),
    "log": (LOG,),
    "get": ("GET /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1",),
    "post": (POST, "Transfer-Encoding: chunked"),
}
SWITCHING = ResponseHead.of(101, b"", ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))).encode()


async def begin_exec(talk: Talk) -> None:
    await talk.relay.send_head(SWITCHING)
    await talk.say(b"hello")


async def begin_post(talk: Talk) -> None:
    await talk.ask(b"4\r\nabcd\r\n", b"abcd")


def break_off(talk: Talk) -> None:
    talk.relay.reset(StreamCode.UPSTREAM_RESET, processed=Processed.YES, reason="it broke", in_line=True)


async def exec_that_the_api_server_ends(talk: Talk) -> None:
    await begin_exec(talk)
    await talk.ask(b"exit")
    await talk.relay.send_eof()
    assert await talk.client.receive_some() == b""
    await talk.client.aclose()


async def exec_that_the_client_ends(talk: Talk) -> None:
    await begin_exec(talk)
    await talk.ask(b"exit")
    await talk.client.aclose()
    assert await talk.relay.receive_some() == b""
    await talk.relay.send_eof()


async def exec_with_output_behind_the_clients_end(talk: Talk) -> None:
    await begin_exec(talk)
    await talk.ask(b"exit")
    await talk.client.aclose()
    assert await talk.relay.receive_some() == b""
    await talk.relay.send_all(b"late")
    # The client's kernel answers with a RST.
    await wait_all_tasks_blocked(0.05)
    await talk.relay.send_eof()


async def exec_with_input_behind_the_api_servers_end(talk: Talk) -> None:
    await begin_exec(talk)
    await talk.ask(b"exit")
    await talk.relay.send_eof()
    talk.relay.close_nowait()
    assert await talk.client.receive_some() == b""
    for _ in range(3):
        await talk.client.send_all(b"ping")
        await wait_all_tasks_blocked(0.01)
    await talk.client.aclose()


async def exec_whose_client_vanishes(talk: Talk) -> None:
    await begin_exec(talk)
    await talk.ask(b"exit")
    await trio.aclose_forcefully(talk.client)
    await talk.wait_reset()


async def exec_that_breaks(talk: Talk) -> None:
    await begin_exec(talk)
    break_off(talk)
    with pytest.raises(trio.BrokenResourceError):
        await talk.client.receive_some()


async def exec_that_the_relay_gives_up(talk: Talk) -> None:
    await begin_exec(talk)
    talk.relay.reset(StreamCode.CANCEL, reason="it leaves", in_line=True)
    with pytest.raises(trio.BrokenResourceError):
        await talk.client.receive_some()


async def exec_that_is_refused(talk: Talk) -> None:
    await talk.relay.send_head(ResponseHead.of(400, b"", ((b"content-length", b"2"),)).encode())
    await talk.relay.send_all(b"no")
    await talk.relay.send_eof()
    await read_all(talk.client)


async def log_that_ends(talk: Talk) -> None:
    await talk.relay.send_head(ResponseHead.of(200).encode())
    await talk.relay.send_all(b"line")
    await talk.relay.send_eof()
    await read_all(talk.client)


async def log_whose_client_leaves(talk: Talk) -> None:
    await talk.relay.send_head(ResponseHead.of(200).encode())
    await talk.say(b"line\r\n", b"line")
    await talk.client.aclose()
    await talk.wait_reset()


async def log_whose_client_leaves_before_the_head(talk: Talk) -> None:
    await talk.client.aclose()
    await talk.wait_reset()


async def log_that_breaks(talk: Talk) -> None:
    await talk.relay.send_head(ResponseHead.of(200).encode())
    await talk.relay.send_all(b"line")
    break_off(talk)
    await read_all(talk.client)


async def get_whose_403_breaks_off(talk: Talk) -> None:
    await talk.relay.send_head(ResponseHead.of(403, b"", ((b"content-length", b"20"),)).encode())
    await talk.relay.send_all(b"pods is")
    break_off(talk)
    await read_all(talk.client)


async def post_that_is_answered_early(talk: Talk) -> None:
    await begin_post(talk)
    await talk.relay.send_head(ResponseHead.of(413, b"", ((b"content-length", b"0"),)).encode(), eof=True)
    await talk.client.receive_some()
    await talk.client.aclose()


async def post_whose_client_leaves(talk: Talk) -> None:
    await begin_post(talk)
    await talk.client.aclose()
    await talk.wait_reset()


async def post_with_a_malformed_body(talk: Talk) -> None:
    await begin_post(talk)
    await talk.client.send_all(b"xx\r\n")
    await talk.wait_reset()
    await talk.client.receive_some()
    await talk.client.aclose()


COMPLETE, GONE, ERROR, FAILED = "complete", "client gone", "client error", "upstream failed"
LEFT, BROKE = "the client is gone", "it broke"


@pytest.mark.parametrize(
    ("scenario", "close_reason", "status", "reason", "bytes_in", "bytes_out"),
    [
        (exec_that_the_api_server_ends, COMPLETE, 101, None, 4, 5),
        (exec_that_the_client_ends, COMPLETE, 101, None, 4, 5),
        (exec_with_output_behind_the_clients_end, COMPLETE, 101, None, 4, 9),
        (exec_with_input_behind_the_api_servers_end, COMPLETE, 101, None, 4, 5),
        (exec_whose_client_vanishes, GONE, 101, LEFT, 4, 5),
        (exec_that_breaks, FAILED, 101, BROKE, 0, 5),
        (exec_that_the_relay_gives_up, GONE, 101, "it leaves", 0, 5),
        (exec_that_is_refused, COMPLETE, 400, None, 0, 2),
        (log_that_ends, COMPLETE, 200, None, 0, 4),
        (log_whose_client_leaves, GONE, 200, LEFT, 0, 4),
        (log_whose_client_leaves_before_the_head, GONE, 0, LEFT, 0, 0),
        (log_that_breaks, FAILED, 200, BROKE, 0, 4),
        (get_whose_403_breaks_off, FAILED, 503, BROKE, 0, 0),
        (post_that_is_answered_early, COMPLETE, 413, None, 4, 0),
        (post_whose_client_leaves, GONE, 0, LEFT, 4, 0),
        (post_with_a_malformed_body, ERROR, 400, "the request's body is malformed", 4, 0),
    ],
)
async def test_the_record_says_how_a_call_ended(
    bench: Bench,
    scenario: Callable[[Talk], Awaitable[None]],
    close_reason: str,
    status: int,
    reason: str | None,
    bytes_in: int,
    bytes_out: int,
) -> None:
    line, *headers = REQUESTS[scenario.__name__.partition("_")[0]]
    async with talking(bench, bench.request(line, *headers)) as talk:
        await scenario(talk)
    closing: Any = (await bench.trail())[-1]
    response = closing["resp"]
    assert (response["status"], response.get("reason"), response["bytes"]) == (status, reason, bytes_out)
    if closing.get("stream") is None:
        assert closing["req"].get("body_bytes", 0) == bytes_in
        return
    stream = closing["stream"]
    assert (stream["close_reason"], stream["bytes_in"], stream["bytes_out"]) == (
        close_reason,
        bytes_in,
        bytes_out,
    )


async def test_bytes_that_a_client_does_not_take_count_as_memory_of_its_call(bench: Bench) -> None:
    async with talking(bench, bench.request(LOG)) as talk:
        await talk.relay.send_head(ResponseHead.of(200).encode())
        while talk.relay.has_room:
            talk.relay.write(bytes(100_000))
            await wait_all_tasks_blocked(0.01)
        [live] = bench.calls.live
        queued = talk.served.server.held_up_bytes
        assert queued > 0
        assert live.held_bytes >= CONNECTION_BYTES + queued
        await bench.calls.live.end_for_memory([live])
        await talk.wait_reset()
        await talk.client.aclose()
        [*_, closing] = await bench.trail()
    assert closing["stream"]["close_reason"] == "overloaded"
