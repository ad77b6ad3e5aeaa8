"""A stream of a link for tasks that wait."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.hub.peers.streams import PeerStream
from tests.proxy.hub.peers.linked import open_linked_hubs
from tunnel import Stream, StreamCode, StreamReset


@pytest.mark.parametrize("how", ["reset", "session", "closed"])
async def test_a_task_that_sends_to_a_stream_that_is_over_is_woken(
    how: str, autojump_clock: MockClock
) -> None:
    async with open_linked_hubs() as (first, second, _):
        accepted: list[Stream] = []
        second.mesh.streams[b"resume"] = lambda _, stream: accepted.append(stream)
        stream = PeerStream(first.link.open(b"resume"))
        failed: list[type[Exception]] = []

        async def send() -> None:
            try:
                await stream.send_all(bytes(4 * 1024 * 1024))
            except (StreamReset, trio.ClosedResourceError) as error:
                failed.append(type(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(1)
            match how:
                case "reset":
                    accepted[0].reset(StreamCode.CANCEL, reason="over")
                case "session":
                    first.link.session.end(1000, "over")
                case "closed":
                    await stream.aclose()
            await trio.sleep(1)
            assert failed == [trio.ClosedResourceError if how == "closed" else StreamReset]


async def test_bytes_pass_whole_and_their_end_behind_them(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        accepted: list[Stream] = []
        second.mesh.streams[b"resume"] = lambda _, stream: accepted.append(stream)
        sent = bytes(range(256)) * 4096
        async with PeerStream(first.link.open(b"resume")) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, sent)
            await wait_all_tasks_blocked()
            received = b""
            taken = PeerStream(accepted[0])
            while len(received) < len(sent):
                received += await taken.receive_some(10_000)
            assert received == sent
            await stream.send_eof()
            assert await taken.receive_some() == b""
