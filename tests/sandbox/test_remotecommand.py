"""A client's streams connected to a command, and the Status of each end, in the real server's words."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
from trio.testing import memory_stream_one_way_pair, wait_all_tasks_blocked

from sandbox.inbox import Inbox
from sandbox.remotecommand import ClientStreams, Status, exited, internal_error, join, success


class Sink(trio.abc.SendStream):
    """Records sent data."""

    def __init__(self, *, broken: bool = False) -> None:
        self.data = b""
        self.closed = False
        self._broken = broken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._broken:
            raise trio.BrokenResourceError
        self.data += data

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


@attrs.define
class FakeCommand:
    """A command that ends with its outputs."""

    stdin: Sink | None
    stdout: trio.abc.ReceiveStream | None
    stderr: trio.abc.ReceiveStream | None
    code: int = 0
    sizes: list[tuple[int, int]] = attrs.field(factory=list)

    async def wait(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.code

    def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))


async def filled(*chunks: bytes) -> Inbox:
    inbox = Inbox()
    for chunk in chunks:
        await inbox.feed(chunk)
    inbox.feed_eof()
    return inbox


async def test_outputs_and_their_ends_reach_the_client() -> None:
    command = FakeCommand(None, await filled(b"out", b"put"), await filled(b"err"), code=3)
    stdout, stderr = Sink(), Sink()
    client = ClientStreams(None, stdout, stderr, None, Sink())
    assert await join(client, command) == 3
    assert (stdout.data, stderr.data, stdout.closed, stderr.closed) == (b"output", b"err", True, True)


async def test_input_and_its_end_reach_the_command() -> None:
    send, receive = memory_stream_one_way_pair()
    stdin = Sink()
    command = FakeCommand(stdin, receive, None)
    client = ClientStreams(await filled(b"in"), Sink(), None, None, Sink())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, client, command)
        await wait_all_tasks_blocked()
        assert (stdin.data, stdin.closed) == (b"in", True)
        await send.aclose()


async def test_input_that_the_command_no_longer_takes_is_thrown_away() -> None:
    send, receive = memory_stream_one_way_pair()
    source = await filled(b"in")
    client = ClientStreams(source, Sink(), None, None, Sink())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, client, FakeCommand(Sink(broken=True), receive, None))
        await wait_all_tasks_blocked()
        await source.feed(b"this does not wait" * 100_000)
        await send.aclose()


async def test_a_lost_client_is_an_error() -> None:
    client = ClientStreams(None, Sink(broken=True), None, None, Sink())
    with pytest.RaisesGroup(trio.BrokenResourceError, flatten_subgroups=True):
        await join(client, FakeCommand(None, await filled(b"out"), None))


@pytest.mark.parametrize(
    ("sent", "sizes"),
    [
        ([b'{"Width":80,"Height":24}'], [(80, 24)]),
        ([b'{"Width":80,"Hei', b'ght":24}\n{"Width":', b'1,"Height":2}'], [(80, 24), (1, 2)]),
        ([b"nonsense"], []),
        ([b"x" * 2000, b'{"Width":1,"Height":1}'], []),
        ([b'["Width"]{"Width":"80"}'], []),
    ],
)
async def test_sizes_are_read_from_any_chunks(sent: list[bytes], sizes: list[tuple[int, int]]) -> None:
    send, receive = memory_stream_one_way_pair()
    command = FakeCommand(None, receive, None)
    client = ClientStreams(None, Sink(), None, await filled(*sent), Sink())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, client, command)
        await wait_all_tasks_blocked()
        await send.aclose()
    assert command.sizes == sizes


def test_success_is_a_status_without_more() -> None:
    assert exited(0, ["true"], translated=False) == success() == {"metadata": {}, "status": "Success"}


@pytest.mark.parametrize(
    ("translated", "inner"),
    [
        (True, "command terminated with exit code 3"),
        (False, "error executing command [sh -c exit 3], exit code 3"),
    ],
)
def test_an_exit_code_stands_in_the_causes(translated: bool, inner: str) -> None:
    assert exited(3, ["sh", "-c", "exit 3"], translated=translated) == {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {inner}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
    }


@pytest.mark.parametrize(
    ("structured", "status", "text"),
    [
        (True, success(), json.dumps(success(), separators=(",", ":"))),
        (False, success(), ""),
        (False, internal_error("why"), "Internal error occurred: why"),
    ],
)
async def test_before_v4_an_error_is_its_text(structured: bool, status: Status, text: str) -> None:
    error = Sink()
    await ClientStreams(None, None, None, None, error, structured).send_status(status)
    assert error.data.decode() == text
