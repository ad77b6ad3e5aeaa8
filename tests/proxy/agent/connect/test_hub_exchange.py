"""Exchanges of the loopback proxy with the hub: kept connections, new tokens, clients that leave."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.exchange.server import ServerConnection
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.agent.connect.loopback import GOOD, Bench, answer_ok, open_bench
from tunnel.net.tls import TLSStream

# Not within what the kernel takes at once, of a socket here.
BULK = bytes(range(256)) * 40_000


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


async def begin(bench: Bench) -> TLSStream:
    """A client that has sent a request without a body."""
    client = await bench.connect()
    await client.send_all("\r\n".join(["GET /clusters/prod/api HTTP/1.1", *GOOD, "", ""]).encode())
    return client


async def until_dialled(bench: Bench, dials: int) -> None:
    with trio.fail_after(5):
        while bench.hub.dials < dials:  # noqa: ASYNC110 - a socket decides it
            await trio.sleep(0.005)


async def refuse(connection: ServerConnection, head: RequestHead) -> None:
    await connection.answer(ResponseHead.of(401, b"", ((b"content-length", b"2"),)), b"no")


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_a_kept_connection_that_the_hub_had_closed_is_replaced_once(bench: Bench, body: bytes) -> None:
    assert (await bench.ask()).endswith(b"ok")

    async def close_second(connection: ServerConnection, head: RequestHead) -> None:
        if len(bench.hub.seen) == 2:
            await connection.cut()
        else:
            await answer_ok(connection, head)

    bench.hub.script = close_second
    answer = await bench.ask(*GOOD, body=body)
    # What is not safe may have been carried out.
    assert answer.startswith(b"HTTP/1.1 504 " if body else b"HTTP/1.1 200 ")
    assert (len(bench.hub.seen), bench.hub.dials) == ((2, 1) if body else (3, 2))


async def test_a_401_behind_a_kept_connection_that_was_closed_still_gets_a_new_token(bench: Bench) -> None:
    assert (await bench.ask()).endswith(b"ok")

    async def close_then_refuse(connection: ServerConnection, head: RequestHead) -> None:
        if len(bench.hub.seen) == 2:
            await connection.cut()
        elif len(bench.hub.seen) == 3:
            await refuse(connection, head)
        else:
            await answer_ok(connection, head)

    bench.hub.script = close_then_refuse
    assert (await bench.ask()).endswith(b"ok")
    assert bench.hub.seen[-1].header(b"authorization") == b"Bearer token-2"


async def test_a_401_of_a_new_token_is_passed_on_at_once(bench: Bench) -> None:
    bench.hub.script = refuse
    bench.tokens.replaced = False
    answer = await bench.ask()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.endswith(b"no")
    assert (len(bench.hub.seen), bench.tokens.number) == (1, 1)
    # And its connection is as good as before.
    assert bench.proxy.connections.idle_count == 1


@pytest.mark.parametrize("shielded", [False, True])
async def test_a_request_whose_client_leaves_during_the_dial_is_never_sent(
    bench: Bench, shielded: bool
) -> None:
    bench.hub.dial_gate = gate = trio.Event()
    bench.hub.dial_is_shielded = shielded
    client = await begin(bench)
    await until_dialled(bench, 1)
    await trio.aclose_forcefully(client)
    await wait_all_tasks_blocked(0.05)
    gate.set()
    with trio.fail_after(5):
        while bench.proxy.connection_limit.open:  # noqa: ASYNC110 - a socket decides it
            await trio.sleep(0.005)
    await wait_all_tasks_blocked(0.05)
    assert bench.hub.seen == []
    assert bench.proxy.connections.idle_count == 0


async def test_a_request_whose_client_leaves_while_a_token_is_fetched_is_not_sent_again(bench: Bench) -> None:
    bench.hub.script = refuse
    bench.tokens.fetch_s = 60.0
    client = await begin(bench)
    with trio.fail_after(5):
        while not bench.hub.seen:  # noqa: ASYNC110 - a socket decides it
            await trio.sleep(0.005)
    await wait_all_tasks_blocked(0.05)
    assert bench.proxy.connection_limit.open == 1
    await trio.aclose_forcefully(client)
    with trio.fail_after(5):
        while bench.proxy.connection_limit.open:  # noqa: ASYNC110 - a socket decides it
            await trio.sleep(0.005)
    assert (len(bench.hub.seen), bench.hub.dials) == (1, 1)


@pytest.mark.parametrize("by_tls_proxy", [False, True])
async def test_a_request_whose_client_leaves_is_cut_at_the_hub(bench: Bench, by_tls_proxy: bool) -> None:
    bench.hub.by_tls_proxy = by_tls_proxy
    gone = trio.Event()

    async def hang(connection: ServerConnection, head: RequestHead) -> None:
        await connection.wait_disconnect()
        gone.set()

    bench.hub.script = hang
    client = await begin(bench)
    with trio.fail_after(5):
        while not bench.hub.seen:  # noqa: ASYNC110 - a socket decides it
            await trio.sleep(0.005)
        await trio.aclose_forcefully(client)
        await gone.wait()


@pytest.mark.parametrize("by_tls_proxy", [False, True])
async def test_large_bodies_cross_both_ways(bench: Bench, by_tls_proxy: bool) -> None:
    async def echo(connection: ServerConnection, head: RequestHead) -> None:
        received = b"".join([data async for data in _body(connection)])
        length = (b"content-length", b"%d" % len(received))
        await connection.answer(ResponseHead.of(200, b"OK", (length,)), received)

    bench.hub.by_tls_proxy = by_tls_proxy
    bench.hub.script = echo
    client = await bench.connect()
    lines = ["POST /clusters/prod/api HTTP/1.1", *GOOD, f"Content-Length: {len(BULK)}", "Connection: close"]
    await client.send_all("\r\n".join([*lines, "", ""]).encode())
    received = bytearray()

    async def receive() -> None:
        while data := await client.receive_some():
            received.extend(data)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await client.send_all(BULK)
    await trio.aclose_forcefully(client)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n\r\n" + BULK)
    # And its connection is kept: another request goes through TLS in TLS as well.
    bench.hub.script = answer_ok
    assert (await bench.ask()).endswith(b"ok")
    assert bench.hub.dials == 1


async def _body(connection: ServerConnection) -> AsyncIterator[bytes]:
    while data := await connection.receive_body():
        yield data
