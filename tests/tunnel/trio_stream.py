"""A stream of the tunnel for tasks that wait, as `trio.abc.HalfCloseableStream` has it.

The product never waits on a stream. This adapter uses the same callbacks as the product's ports.
"""

from __future__ import annotations

import operator
from types import TracebackType

import trio

from tunnel import Processed, Session, SessionClosed, Stream, StreamCode
from tunnel.net.waker import Waker
from tunnel.protocol.streams import Context
from tunnel.stream import RECEIVE_BYTES

# With QUEUE_HIGH_BYTES before it, the most that a message of a link takes.
PIECE_BYTES_MOST = 128 * 1024


class TrioStream(trio.abc.HalfCloseableStream):
    """One task waits in each of `receive_head`, `receive_some` and the calls that send.

    Each `_nowait` does what its twin does, and returns None or False where that would wait.
    """

    def __init__(self, raw: Stream) -> None:
        self.raw = raw
        self._closed = False
        self._eof = False
        # The queue is above its mark; `_on_room` is called when it is short again.
        self._full = False
        self._head_reader = Waker("another task is waiting for this stream's head")
        self._reader = Waker("another task is receiving from this stream")
        self._sender = Waker("another task is sending on this stream")

    def __repr__(self) -> str:
        return repr(self.raw)

    @property
    def head(self) -> bytes:
        """See Stream."""
        return self.raw.head

    @property
    def context(self) -> Context:
        """See Stream."""
        return self.raw.context

    @property
    def broken(self) -> bool:
        """See Stream."""
        return self.raw.broken

    # -- heads

    def send_answer_nowait(self, head: bytes, data: bytes = b"", *, eof: bool = False) -> None:
        """See Stream."""
        self._note_sent(self.raw.send_answer_nowait(head, data, eof=eof), eof)

    async def send_head(self, head: bytes, *, eof: bool = False) -> None:
        """Answer with a head."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.send_answer_nowait(head, eof=eof)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def receive_head(self) -> bytes:
        """Wait for the head of the answer."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while (head := self.raw.receive_head_nowait()) is None:
            await self._wait_for_input(self._head_reader)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return head

    # -- receiving

    def receive_nowait(self, max_bytes: int = RECEIVE_BYTES) -> bytes | None:
        """See Stream."""
        return self.raw.receive_nowait(max_bytes)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes, or b"" at the clean end."""
        limit = RECEIVE_BYTES if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be >= 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._reader.check_free()
        while (data := self.raw.receive_nowait(limit)) is None:
            await self._wait_for_input(self._reader)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def _wait_for_input(self, waker: Waker) -> None:
        waker.check_free()
        self.raw.when_input(self._wake_all)
        await waker.park()

    # -- sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes, waiting while the queue is full."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_sendable()
        rest = bytes(data)
        while True:
            await self._wait_for_room()
            piece, rest = rest[:PIECE_BYTES_MOST], rest[PIECE_BYTES_MOST:]
            self._note_sent(self.raw.write(piece), False)
            if not rest:
                break
        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, data: bytes, *, eof: bool = False) -> bool:
        """Queue bytes and, with `eof`, the end. False queues nothing: send_all would wait."""
        self._check_sendable()
        if self._full or len(data) > PIECE_BYTES_MOST:
            return False
        self._note_sent(self.raw.write(data, eof=eof), eof)
        return True

    def write(self, data: bytes, *, eof: bool = False) -> None:
        """See Stream."""
        self._note_sent(self.raw.write(data, eof=eof), eof)

    @property
    def has_room(self) -> bool:
        """Whether send_nowait would take a piece now."""
        return not self._full

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await trio.lowlevel.checkpoint()
        self._check_sendable()
        await self._wait_for_room()

    async def send_eof(self) -> None:
        """End our bytes; they still arrive, and the end behind them. A second call does nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.send_eof_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_eof_nowait(self) -> None:
        """send_eof without its checkpoint: it never waits."""
        self._sender.check_free()
        if not self._eof:
            self._note_sent(self.raw.write(b"", eof=True), True)
        elif self._closed:
            raise trio.ClosedResourceError("this stream was closed")

    def _note_sent(self, room: bool, eof: bool) -> None:
        self._eof |= eof
        if not (room or self._full):
            self._full = True
            self.raw.when_room(self._on_room)

    async def _wait_for_room(self) -> None:
        while self._full:
            # Also called when the stream breaks, and then there will be no room.
            self.raw.when_input(self._wake_all)
            await self._sender.park()
            self._check_sendable()

    def _check_sendable(self) -> None:
        self._sender.check_free()
        # Queues nothing, and raises what a write of more would raise.
        self.raw.write(b"")

    # -- the end

    def reset(
        self,
        code: StreamCode,
        *,
        processed: Processed = Processed.MAYBE,
        reason: str = "",
        in_line: bool = False,
    ) -> None:
        """See Stream."""
        self.raw.reset(code, processed=processed, reason=reason, in_line=in_line)
        self._wake_all()

    def close_nowait(self) -> None:
        """See Stream."""
        self._closed = True
        self.raw.close_nowait()
        self._wake_all()

    async def aclose(self) -> None:
        """Leave the stream. Never waits, and is complete even when cancelled."""
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.reset(StreamCode.CANCEL, reason="left by an exception")
        await self.aclose()

    # -- calls from the stream

    def _on_room(self) -> None:
        self._full = False
        self._sender.unpark()

    def _wake_all(self) -> None:
        for waker in (self._head_reader, self._reader, self._sender):
            waker.unpark()


async def accept(session: Session) -> TrioStream:
    """Wait for the next stream that the peer opens. One task accepts. Raises SessionClosed at the end.

    For many streams, `Session.on_stream` is cheaper.
    """
    taken: list[Stream] = []
    waker = Waker("one task accepts")

    def take(stream: Stream) -> None:
        session.on_stream(None)
        taken.append(stream)
        waker.unpark()

    async def wait_closed() -> None:
        await session.wait_closed()
        waker.unpark()

    await trio.lowlevel.checkpoint_if_cancelled()
    session.on_stream(take)
    if not taken:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_closed)
                await waker.park()
                nursery.cancel_scope.cancel()
        except BaseException:
            # Cancelled in the pass that brought one.
            for stream in taken:
                stream.close_nowait()
            raise
        finally:
            session.on_stream(None)
    if not taken:
        raise SessionClosed(session.close_code, await session.wait_closed())
    await trio.lowlevel.cancel_shielded_checkpoint()
    return TrioStream(taken[0])


def accept_nowait(session: Session) -> TrioStream | None:
    """Return the next stream that the peer has opened, None where accept would wait."""
    taken: list[Stream] = []

    def take(stream: Stream) -> None:
        session.on_stream(None)
        taken.append(stream)

    session.on_stream(take)
    session.on_stream(None)
    return TrioStream(taken[0]) if taken else None
