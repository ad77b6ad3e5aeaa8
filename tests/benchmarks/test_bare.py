from __future__ import annotations

import pytest
import trio
import trio.testing

from benchmarks.bare import SocketTransport
from tunnel import TransportClosed
from tunnel.websocket.transport import MESSAGE_BYTES_MAX


async def test_messages_arrive_whole_and_in_order() -> None:
    near, far = trio.testing.memory_stream_pair()
    sender, receiver = SocketTransport(near), SocketTransport(far)
    messages = [b"", b"a", b"b" * 100_000]
    async with trio.open_nursery() as nursery:
        for message in messages:
            nursery.start_soon(sender.send, message)
            await trio.testing.wait_all_tasks_blocked()
            assert await receiver.receive() == message


async def test_an_end_in_the_middle_of_a_message_is_the_end_of_the_transport() -> None:
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(b"\x00\x00\x00\x05abc")
    await near.send_eof()
    with pytest.raises(TransportClosed):
        await SocketTransport(far).receive()


async def test_a_length_beyond_a_message_is_not_waited_for() -> None:
    near, far = trio.testing.memory_stream_pair()
    await near.send_all((MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(TransportClosed):
        await SocketTransport(far).receive()


async def test_a_closed_transport_sends_nothing() -> None:
    near, _ = trio.testing.memory_stream_pair()
    transport = SocketTransport(near)
    await transport.aclose()
    with pytest.raises(TransportClosed):
        await transport.send(b"late")
