from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair

from proxy.exchange.server import ServerConnection
from proxy.hub.approvals.plan.body import BODY_BYTES_MAX, BODY_S, BodyBudget, HeldBody, read_body
from proxy.hub.approvals.plan.plan import plan_of
from proxy.hub.approvals.plan.refusal import CannotAskError
from proxy.message.failure import InboundBroken
from tests.proxy.hub.approvals.plan.calls import ASK, DEPLOYMENT, JSON, Asked
from tunnel import Memory

HEAD = b"POST /api HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def budget():
    return BodyBudget.of(Memory(8 * 4 * BODY_BYTES_MAX))


async def connected(fields: bytes, sent: bytes):
    """A connection whose request has these header lines, and what its client has sent of the body."""
    client, server = memory_stream_pair()
    connection = ServerConnection(server)
    await client.send_all(HEAD + fields + b"\r\n")
    head = await connection.next_request()
    assert head is not None
    await client.send_all(sent)
    return client, connection, head.body_length


async def read(fields: bytes, sent: bytes, budget: BodyBudget, agent: str = "a") -> HeldBody:
    _, connection, length = await connected(fields, sent)
    return await read_body(connection, length, budget, agent)


async def refusal(fields: bytes, sent: bytes, budget: BodyBudget, agent: str = "a") -> CannotAskError:
    before = budget.held_bytes
    with pytest.raises(CannotAskError) as refused:
        await read(fields, sent, budget, agent)
    assert budget.held_bytes == before
    return refused.value


@pytest.mark.parametrize(
    ("fields", "sent", "body"),
    [
        (b"Content-Length: 3\r\n", b"abc", b"abc"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        (b"", b"", b""),
        (b"Content-Length: 0\r\n", b"", b""),
    ],
)
async def test_a_body_is_read_whole_and_counted_until_its_release(fields, sent, body, budget):
    with await read(fields, sent, budget) as held:
        assert held.data == body
        assert budget.held_bytes == len(body)
    held.release()
    assert budget.held_bytes == 0
    assert held.data == b""


async def test_a_client_that_waits_for_100_is_told_to_send(budget):
    client, connection, length = await connected(b"Content-Length: 3\r\nExpect: 100-continue\r\n", b"")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            assert (await client.receive_some()).startswith(b"HTTP/1.1 100")
            await client.send_all(b"abc")

        assert (await read_body(connection, length, budget, "a")).data == b"abc"


async def test_a_large_body_is_refused_before_it_is_read(budget):
    refused = await refusal(b"Content-Length: %d\r\n" % (BODY_BYTES_MAX + 1), b"", budget)
    assert refused.status == 413
    assert str(BODY_BYTES_MAX) in refused.reason


async def test_the_largest_body_is_read_in_chunks_and_one_more_byte_is_refused(budget):
    chunks = (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * (BODY_BYTES_MAX // 0x8000)
    with await read(b"Transfer-Encoding: chunked\r\n", chunks + b"0\r\n\r\n", budget) as held:
        assert len(held.data) == BODY_BYTES_MAX
    refused = await refusal(b"Transfer-Encoding: chunked\r\n", chunks + b"1\r\nx\r\n", budget)
    assert refused.status == 413
    assert str(BODY_BYTES_MAX) in refused.reason


async def test_a_slow_body_is_refused(budget, autojump_clock):
    began = trio.current_time()
    refused = await refusal(b"Content-Length: 3\r\n", b"ab", budget)
    assert refused.status == 408
    assert trio.current_time() - began == BODY_S


async def test_bodies_together_are_bounded_and_those_of_an_agent(budget):
    size = budget.bytes_max // 4
    fields, sent = b"Content-Length: %d\r\n" % size, b"x" * size
    held = [await read(fields, sent, budget, agent) for agent in ("a", "a", "b")]
    of_agent = await refusal(b"Content-Length: 1\r\n", b"x", budget, "a")
    held.append(await read(fields, sent, budget, "c"))
    of_all = await refusal(b"Content-Length: 1\r\n", b"x", budget, "d")
    for refused, whose, most in ((of_agent, "this agent", 2 * size), (of_all, "all agents", 4 * size)):
        assert refused.status == 503
        assert f"the calls of {whose} that wait" in refused.reason
        assert f"at most {most} of them (a part of memory_mib)" in refused.reason
    held[0].release()
    assert (await read(fields, sent, budget, "a")).data == sent


async def test_a_client_that_leaves_holds_nothing(budget):
    client, connection, length = await connected(b"Content-Length: 3\r\n", b"ab")
    await client.aclose()
    with pytest.raises(InboundBroken):
        await read_body(connection, length, budget, "a")
    assert budget.held_bytes == 0


async def test_a_cancelled_read_holds_nothing(budget, autojump_clock):
    _, connection, length = await connected(b"Content-Length: 3\r\n", b"ab")
    with trio.move_on_after(1) as scope:
        await read_body(connection, length, budget, "a")
    assert scope.cancelled_caught
    assert budget.held_bytes == 0


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_plan_is_made_without_and_with_a_thread(size, budget):
    asked = Asked(b"POST", DEPLOYMENT, types=JSON, body=b'{"a":"%b"}' % (b"x" * size))
    assert await budget.plan(asked.facts, asked.body, ASK) == plan_of(asked.facts, asked.body, ASK)
    with pytest.raises(CannotAskError):
        await budget.plan(asked.facts, asked.body + b"}", ASK)
