from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial

import attrs
import pytest
import trio
from trio.testing import assert_checkpoints, check_half_closeable_stream, wait_all_tasks_blocked

from tests.tunnel.pairs import open_pair, read_all
from tests.tunnel.trio_stream import TrioStream, accept, accept_nowait
from tunnel import Processed, StreamCode, StreamReset
from tunnel.driver import QUEUE_HIGH_BYTES
from tunnel.protocol.errors import LocalProtocolError

BOTH_WAYS = pytest.mark.parametrize("opener_first", [True, False], ids=["opener", "acceptor"])


async def clog(stream: TrioStream) -> None:
    """Send until the next byte would have to wait."""
    while True:
        with trio.move_on_after(0.5) as scope:
            await stream.wait_send_all_might_not_block()
        if scope.cancelled_caught:
            return
        await stream.send_all(b"x" * 16384)


@attrs.frozen
class _LikeASocket(trio.abc.HalfCloseableStream):
    """The suite wants what a socket does: leaving it is the end of its bytes, and a clean one."""

    stream: TrioStream

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        try:
            with suppress(trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError):
                await self.stream.send_eof()
        finally:
            await self.stream.aclose()


async def test_streams_pass_the_suite_of_trio(autojump_clock: trio.testing.MockClock) -> None:
    async with AsyncExitStack() as stack:
        pair = await stack.enter_async_context(open_pair())

        async def make() -> tuple[_LikeASocket, _LikeASocket]:
            a, b = await pair.streams()
            return _LikeASocket(a), _LikeASocket(b)

        async def make_clogged() -> tuple[_LikeASocket, _LikeASocket]:
            a, b = await make()
            await clog(a.stream)
            await clog(b.stream)
            return a, b

        await check_half_closeable_stream(make, make_clogged)
        await wait_all_tasks_blocked()
        assert pair.listener.stream_count == pair.dialer.stream_count == 0


async def test_an_exchange_has_a_head_and_a_body_each_way(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        asking = pair.open_stream(b"PUT /thing")
        await asking.send_all(b"new thing")
        await asking.send_eof()
        answering = await accept(pair.dialer)
        assert answering.head == b"PUT /thing"
        assert answering.context is not None
        assert (answering.context.payload, answering.context.group) == (b"token", 1)
        assert await answering.receive_some() == b"new thing"
        assert answering.receive_nowait() == b""
        assert await read_all(answering) == b""
        await answering.send_head(b"200 OK")
        await answering.send_all(b"done")
        await answering.send_eof()
        assert await asking.receive_head() == b"200 OK"
        assert await read_all(asking) == b"done"
        assert (asking.raw.bytes_sent, asking.raw.bytes_received) == (9, 4)
        await asking.aclose()
        await answering.aclose()
        assert pair.listener.stream_count == pair.dialer.stream_count == 0


async def test_heads_of_a_mebibyte_cross_whole(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        asking = pair.open_stream(b"q" * 2**20, eof=True)
        answering = await accept(pair.dialer)
        assert answering.head == b"q" * 2**20
        assert await answering.receive_some() == b""
        await answering.send_head(b"a" * 2**20, eof=True)
        # A part of it is no head yet, and no fault either.
        for nothing in iter(asking.raw.receive_head_nowait, b"a" * 2**20):
            assert nothing is None
            await trio.sleep(0.001)
        assert await asking.receive_some() == b""


async def test_bytes_of_the_acceptor_may_come_first_and_then_there_is_no_head(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await accepted.send_all(b"SSH-2.0")
        await accepted.aclose()
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset) as caught:
            await opened.receive_head()
        assert caught.value.code is StreamCode.CANCEL
        opened, accepted = await pair.streams()
        await accepted.send_all(b"SSH-2.0")
        await accepted.send_eof()
        await accepted.aclose()
        with pytest.raises(StreamReset) as caught:
            await opened.receive_head()
        assert caught.value.code is StreamCode.PROTOCOL
        assert await read_all(opened) == b"SSH-2.0"
        with pytest.raises(LocalProtocolError):
            await accepted.receive_head()


async def test_a_wait_for_the_head_ends_with_the_head_or_with_bytes_without_one() -> None:
    async with open_pair() as pair:
        for answer in (TrioStream.send_head, TrioStream.send_all):
            opened, accepted = await pair.streams()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, accepted, b"200")
                if answer is TrioStream.send_head:
                    assert await opened.receive_head() == b"200"
                else:
                    with pytest.raises(StreamReset, match="no head"):
                        await opened.receive_head()


async def test_300_kb_and_an_immediate_end_arrive_whole(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        data = bytes(range(250)) * 1200

        async def send_and_leave() -> None:
            await accepted.send_all(data)
            await accepted.send_eof()
            await accepted.aclose()
            # It is over, so this takes nothing back.
            accepted.reset(StreamCode.REVOKED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_leave)
            await trio.sleep(1)
            assert await read_all(opened) == data
        with pytest.raises(StreamReset):
            await opened.send_all(b"x")


async def test_leaving_without_an_end_never_looks_like_one(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await opened.send_all(b"half of a request bo")
        await opened.aclose()
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset) as caught:
            await accepted.receive_some()
        assert caught.value.code is StreamCode.CANCEL


async def test_leaving_by_an_exception_resets_even_an_ended_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()

        async def fail() -> None:
            async with opened:
                await opened.send_all(b"half")
                await opened.send_eof()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset, match="left by an exception"):
            await accepted.receive_some()


@pytest.mark.parametrize("in_line", [True, False])
async def test_a_reset_says_why_and_in_line_it_comes_behind_the_bytes(
    in_line: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await accepted.send_head(b"200")
        await wait_all_tasks_blocked()
        await accepted.send_all(b"last words")
        accepted.reset(
            StreamCode.UPSTREAM_RESET, processed=Processed.YES, reason="it hung up", in_line=in_line
        )
        await wait_all_tasks_blocked()
        if in_line:
            assert await opened.receive_head() == b"200"
            assert await opened.receive_some() == b"last words"
        else:
            with pytest.raises(StreamReset):
                await opened.receive_head()
        with pytest.raises(StreamReset) as caught:
            await opened.receive_some()
        assert (caught.value.code, caught.value.processed, caught.value.reason) == (
            StreamCode.UPSTREAM_RESET,
            Processed.YES,
            "it hung up",
        )
        # The side that reset it sees the same, and the first reason stands.
        accepted.reset(StreamCode.CANCEL)
        with pytest.raises(StreamReset, match="it hung up"):
            await accepted.receive_some()


async def test_bytes_dropped_by_a_reset_do_not_make_a_clean_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await accepted.send_all(b"all of it")
        await accepted.send_eof()
        await wait_all_tasks_blocked()
        accepted.reset(StreamCode.REVOKED)
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset, match="REVOKED"):
            await opened.receive_some()


@pytest.mark.parametrize("own", [True, False], ids=["own", "peer's"])
@BOTH_WAYS
async def test_reset_wakes_waiting_tasks(
    opener_first: bool, own: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pair() as pair:
        waiting, resetting = await pair.streams()
        if not opener_first:
            waiting, resetting = resetting, waiting
        if own:
            resetting = waiting
        woken = []

        async def send() -> None:
            await waiting.send_all(bytes(500_000))

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "head": waiting.receive_head,
            "receive": waiting.receive_some,
            "send": send,
        }

        async def wait_in(what: str) -> None:
            with pytest.raises(StreamReset, match="REVOKED"):
                await calls[what]()
            woken.append(what)

        kinds = ["head", "receive", "send"] if opener_first else ["receive", "send"]
        async with trio.open_nursery() as nursery:
            for what in kinds:
                nursery.start_soon(wait_in, what)
            await trio.sleep(1)
            assert woken == []
            resetting.reset(StreamCode.REVOKED)
        assert sorted(woken) == kinds


async def test_the_callback_for_an_answer_can_be_removed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        asking = pair.open_stream(b"GET", eof=True)
        answering = await accept(pair.dialer)
        heard: list[str] = []
        answering.raw.on_reset(lambda: heard.append("reset"))
        await trio.sleep(100)
        assert heard == []
        await asking.aclose()
        await wait_all_tasks_blocked()
        assert heard == ["reset"]
        # The request had ended well, and still has; it is the answer that has nowhere to go.
        assert answering.receive_nowait() == b""
        with pytest.raises(StreamReset, match="CANCEL"):
            await answering.send_head(b"200")


async def test_a_second_task_in_the_same_call_is_a_bug_and_not_a_queue(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, _ = await pair.streams()
        async with trio.open_nursery() as nursery:
            for call in (opened.receive_some, opened.receive_head):
                nursery.start_soon(call)
                await wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await call()
            nursery.cancel_scope.cancel()


async def test_cancelling_a_wait_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        for call in (opened.receive_head, opened.receive_some, accepted.receive_some):
            with trio.move_on_after(1) as scope:
                await call()
            assert scope.cancelled_caught
        sent = 0
        with trio.move_on_after(1):
            while True:
                await accepted.send_all(b"x" * 10_000)
                sent += 10_000
        with trio.CancelScope() as scope:
            scope.cancel()
            await opened.receive_some(10)
        async with trio.open_nursery() as nursery:

            async def finish() -> None:
                await accepted.send_eof()

            nursery.start_soon(finish)
            assert len(await read_all(opened)) == sent


async def test_received_bytes_are_returned_after_a_checkpoint_and_kept_when_it_is_cancelled() -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        accepted.send_answer_nowait(b"head", b"bytes")
        await wait_all_tasks_blocked()
        for call, expected in (
            (opened.receive_head, b"head"),
            (opened.receive_some, b"bytes"),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
            with assert_checkpoints():
                assert await call() == expected


async def test_a_sent_buffer_may_be_changed_after_the_call(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await opened.send_all(bytes(64 * 1024))
        # The window is used up, so this stays in the queue.
        buffer = bytearray(b"before")
        await opened.send_all(buffer)
        buffer[:] = b"after!"
        await opened.send_eof()
        assert (await read_all(accepted)).endswith(b"before")


async def test_no_more_than_the_high_water_mark_waits_in_a_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        with trio.move_on_after(1) as scope:
            await opened.send_all(bytes(10 * 2**20))
        assert scope.cancelled_caught
        assert pair.listener.memory.used_bytes <= 2 * QUEUE_HIGH_BYTES + 1000
        received = 0
        while received < 64 * 1024:
            received += len(await accepted.receive_some())


async def test_receive_nowait_returns_received_bytes(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        assert accepted.receive_nowait() is None
        await opened.send_all(b"abc")
        await wait_all_tasks_blocked()
        assert accepted.receive_nowait(2) == b"ab"
        assert accepted.receive_nowait() == b"c"
        assert accepted.receive_nowait() is None
        await opened.send_eof()
        await wait_all_tasks_blocked()
        assert accepted.receive_nowait() == b""
        opened.reset(StreamCode.CANCEL, reason="enough")
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset, match="enough"):
            accepted.receive_nowait()
        await accepted.aclose()
        with pytest.raises(trio.ClosedResourceError):
            accepted.receive_nowait()


async def test_a_watcher_hears_of_a_reset_and_of_nothing_else(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        heard: list[str] = []
        accepted.raw.on_reset(lambda: heard.append("first"))
        await opened.send_all(b"abc")
        await opened.send_eof()
        assert await accepted.receive_some() == b"abc"
        assert await accepted.receive_some() == b""
        await wait_all_tasks_blocked()
        assert heard == []
        opened.reset(StreamCode.CANCEL, reason="enough")
        await wait_all_tasks_blocked()
        # It has happened: a later callback is called at once.
        accepted.raw.on_reset(lambda: heard.append("later"))
        assert heard == ["first", "later"]


async def test_a_removed_watcher_is_not_called(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        heard: list[str] = []
        accepted.raw.on_reset(lambda: heard.append("turned away"))
        accepted.raw.on_reset(None)
        opened.reset(StreamCode.CANCEL)
        await wait_all_tasks_blocked()
        assert heard == []


async def test_a_watcher_hears_of_the_end_of_the_session(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        _, accepted = await pair.streams()
        heard: list[str] = []
        accepted.raw.on_reset(lambda: heard.append("lost"))
        pair.cut()
        await wait_all_tasks_blocked()
        assert heard == ["lost"]


# --- the twins that never wait ---


async def test_an_answer_goes_in_one_step_and_is_read_without_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await trio.sleep(1)
        asking = pair.open_stream(b"GET", eof=True)
        assert asking.raw.receive_head_nowait() is None
        assert accept_nowait(pair.dialer) is None
        await wait_all_tasks_blocked()
        answering = accept_nowait(pair.dialer)
        assert answering is not None
        with pytest.raises(LocalProtocolError):
            answering.raw.receive_head_nowait()
        with pytest.raises(ValueError, match="at once"):
            answering.send_answer_nowait(b"200", bytes(QUEUE_HIGH_BYTES + 1))
        answering.send_answer_nowait(b"200", b"body", eof=True)
        with pytest.raises(trio.ClosedResourceError):
            answering.send_answer_nowait(b"200")
        answering.close_nowait()
        answering.close_nowait()
        with pytest.raises(trio.ClosedResourceError):
            answering.send_eof_nowait()
        await wait_all_tasks_blocked()
        assert asking.raw.receive_head_nowait() == b"200"
        assert asking.raw.receive_head_nowait() == b"200"
        assert asking.receive_nowait() == b"body"
        assert asking.receive_nowait() == b""
        asking.close_nowait()
        with pytest.raises(trio.ClosedResourceError):
            asking.raw.receive_head_nowait()
        assert pair.listener.stream_count == pair.dialer.stream_count == 0
        assert pair.listener.memory.used_bytes == len(b"token")


async def test_send_nowait_sends_nothing_that_would_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        sent = 0
        while opened.has_room:
            assert opened.send_nowait(b"x" * 2**14)
            sent += 2**14
        assert sent == QUEUE_HIGH_BYTES + 2**14
        assert not opened.send_nowait(b"x", eof=True)
        assert not accepted.send_nowait(bytes(QUEUE_HIGH_BYTES + 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.send_all, b"y")
            await wait_all_tasks_blocked()
            assert await accepted.receive_some(sent) != b""
            while not await _ends(opened):
                await accepted.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            opened.send_nowait(b"more")
        opened.send_eof_nowait()
        assert (await read_all(accepted))[-5:] == b"xyend"


async def test_a_wait_for_a_writable_stream_excludes_other_senders(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair, trio.open_nursery() as nursery:
        opened, _ = await pair.streams()
        nursery.start_soon(opened.send_all, bytes(2 * QUEUE_HIGH_BYTES + 1))
        await wait_all_tasks_blocked()
        for call in (lambda: opened.send_all(b"z"), opened.wait_send_all_might_not_block, opened.send_eof):
            with pytest.raises(trio.BusyResourceError):
                await call()
        with pytest.raises(trio.BusyResourceError):
            opened.send_nowait(b"z")
        nursery.cancel_scope.cancel()


async def _ends(stream: TrioStream) -> bool:
    """Whether the end could be queued."""
    await wait_all_tasks_blocked()
    try:
        return stream.send_nowait(b"end", eof=True)
    except trio.BusyResourceError:
        return False


async def test_a_stream_that_was_reset_says_so_without_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        opened.reset(StreamCode.REVOKED)
        await wait_all_tasks_blocked()
        for call in (
            lambda: accepted.send_answer_nowait(b"200"),
            lambda: accepted.send_nowait(b"x"),
            accepted.send_eof_nowait,
        ):
            with pytest.raises(StreamReset) as caught:
                call()
            assert caught.value.code is StreamCode.REVOKED
        opened = pair.open_stream(eof=True)
        accepted = await accept(pair.dialer)
        # One side has ended well, and the other has not.
        accepted.close_nowait()
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset):
            opened.raw.receive_head_nowait()


async def test_a_callback_is_called_once_when_a_part_of_the_answer_is_received():
    async with open_pair() as pair:
        taken: list[object] = []
        opened = pair.open_stream(b"head", eof=True)
        opened.raw.when_input(
            lambda: taken.append((opened.raw.receive_head_nowait(), opened.raw.take_last(5, 100)))
        )
        accepted = await accept(pair.dialer)
        accepted.send_answer_nowait(b"answer", b"bytes", eof=True)
        await wait_all_tasks_blocked()
        # The callback runs after the whole message was handled.
        assert taken == [(b"answer", b"bytes")]
        opened.close_nowait()
        with pytest.raises(trio.ClosedResourceError):
            await opened.receive_some()
        await accepted.aclose()
        assert pair.listener.stream_count == pair.dialer.stream_count == 0
        assert pair.listener.memory.used_bytes == len(b"token")


async def test_a_left_stream_and_its_unread_bytes_are_freed_at_once():
    async with open_pair() as pair:
        opened = pair.open_stream(b"head", eof=True)
        opened.raw.on_reset(partial(repr, opened))
        accepted = await accept(pair.dialer)
        accepted.send_answer_nowait(b"answer", b"bytes", eof=True)
        accepted.close_nowait()
        await wait_all_tasks_blocked()
        opened.close_nowait()
        assert pair.listener.memory.used_bytes == len(b"token")
        gone = weakref.ref(opened.raw._state)
        # Not by a garbage collection, which may be long in coming.
        gc.disable()
        try:
            del opened, accepted
            assert gone() is None
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("size", "bytes_max", "taken"),
    [(5, 5, b"bytes"), (None, 100, b"bytes"), (4, 100, None), (6, 100, None), (5, 4, None)],
)
async def test_the_rest_of_an_answer_is_taken_at_once(size: int | None, bytes_max: int, taken: bytes | None):
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        accepted.send_answer_nowait(b"answer", b"bytes", eof=True)
        await wait_all_tasks_blocked()
        assert opened.raw.take_last(size, bytes_max) == taken
        assert opened.receive_nowait() == (b"" if taken else b"bytes")
        assert opened.raw.take_last(None, 100) is None


async def test_a_rest_without_its_clean_end_is_not_taken_at_once():
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        accepted.send_answer_nowait(b"answer", b"bytes")
        await wait_all_tasks_blocked()
        assert opened.raw.take_last(5, 100) is None
        # The RESET follows an end in line: the answer is whole, and the upload is not wanted.
        accepted.send_eof_nowait()
        await accepted.aclose()
        await wait_all_tasks_blocked()
        assert opened.raw.take_last(5, 100) is None
        assert await opened.receive_some() == b"bytes"
        await opened.aclose()
        assert pair.listener.memory.used_bytes == len(b"token")


async def test_an_answer_callback_is_called_on_a_reset_and_on_the_sessions_end():
    async with open_pair() as pair:
        called: list[str] = []
        first, second = (pair.open_stream(b"head", eof=True) for _ in range(2))
        first.raw.when_input(lambda: called.append("first"))
        second.raw.when_input(lambda: called.append("second"))
        accepted = await accept(pair.dialer)
        accepted.reset(StreamCode.REFUSED)
        await wait_all_tasks_blocked()
        assert called == ["first"]
        pair.cut()
        await wait_all_tasks_blocked()
        assert called == ["first", "second"]


async def test_the_room_callback_is_called_once_when_a_full_queue_is_short_again() -> None:
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        told: list[str] = []
        while opened.raw.write(bytes(10_000)):
            pass
        opened.raw.when_room(lambda: told.append("room"))
        await wait_all_tasks_blocked()
        # The peer's window is smaller than the queue.
        assert told == []
        received = 0
        while not told:
            received += len(await accepted.receive_some())
        assert opened.raw.write(bytes(10_000))
        while received < opened.raw.bytes_sent:
            received += len(await accepted.receive_some())
        assert told == ["room"]
