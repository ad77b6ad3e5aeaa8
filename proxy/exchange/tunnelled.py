"""The two ends of an exchange over a stream of the tunnel.

OPEN carries the request's head, HEAD the answer's, both in canonical form; DATA is the decoded body and FIN
its clean end. RESET in line is the cut: it follows the last byte and can be taken for nothing else. After a
101 the same stream carries raw bytes, so the OPEN of an upgrade has no FIN.

The tunnel knows nothing of lengths, so they are checked here: a body that ends before or after the length
that its head promised would be passed on as a broken message, on a connection whose two sides then disagree
over where the next one begins.
"""

from __future__ import annotations

from functools import partial
from zlib import crc32

import trio

from proxy.exchange.ports import OnGone, PassOn
from proxy.exchange.wire import RawStream
from proxy.message.failure import GONE, Failure, InboundBroken, OutboundBroken, Processed, StreamCode
from proxy.message.head import HeadError, RequestHead, ResponseHead, check_switch
from tunnel.stream import Stream, StreamReset

# The group of contexts under which the hub speaks for itself; agents' groups begin at 1.
HUB_GROUP = 0
# And those of the relay, which opens no streams either.
RELAY_GROUP = 0


class TunnelOutbound:
    """The hub's end (an Outbound): a stream that it opened with the request's head."""

    __slots__ = ("_answered", "_ended", "_left", "_method", "_stream", "_upgrade")

    def __init__(self, stream: Stream, request: RequestHead) -> None:
        self._stream = stream
        self._method = request.method
        self._upgrade = request.upgrade
        self._left: int | None = None
        self._answered = False
        self._ended = False

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        try:
            if not self._stream.send_nowait(data):
                await self._stream.send_all(data)
        except StreamReset as exc:
            raise OutboundBroken(_failure(exc)) from exc

    async def end_body(self) -> None:
        """Say that the request's body is whole."""
        try:
            self._stream.send_eof_nowait()
        except StreamReset as exc:
            raise OutboundBroken(_failure(exc)) from exc

    async def receive_head(self) -> ResponseHead:
        """Return the answer's head; raises OutboundBroken with the relay's own reason when there is none."""
        try:
            head = ResponseHead.decode(await self._stream.receive_head())
            if head.status == 101:
                check_switch(head, self._upgrade)
        except StreamReset as exc:
            raise OutboundBroken(_failure(exc)) from exc
        except HeadError as exc:
            raise self._lying(f"the relay's head is refused: {exc}") from exc
        if head.status < 200 and head.status != 101:
            raise self._lying(f"the relay answered with {head.status}, which is no final answer")
        self._answered = True
        self._left = head.body_length if head.has_body(self._method) else 0
        return head

    async def receive_body(self, pass_on: PassOn | None = None, /) -> bytes:
        """Return body bytes as they come; b"" at the clean end. See Outbound."""
        if self._ended:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            if pass_on is None:
                data = await self._stream.receive_some()
            else:
                if self._left is not None:
                    pass_on = self._counted(pass_on)
                data = await self._stream.receive_or_pass_on(pass_on)
        except StreamReset as exc:
            raise OutboundBroken(_failure(exc)) from exc
        self._count(len(data))
        return data

    def _counted(self, pass_on: PassOn) -> PassOn:
        def pass_on_and_count(piece: bytes) -> bool:
            assert self._left is not None
            # The last piece goes to the task, which sends the end with it.
            if len(piece) >= self._left or not pass_on(piece):
                return False
            self._left -= len(piece)
            return True

        return pass_on_and_count

    def receive_body_nowait(self) -> bytes | None:
        """Return body bytes that are here, b"" at the clean end or the promised length, None for a wait."""
        if self._ended or self._left == 0:
            return b""
        try:
            data = self._stream.receive_nowait()
        except StreamReset as exc:
            raise OutboundBroken(_failure(exc)) from exc
        if data is not None:
            self._count(len(data))
        return data

    def _count(self, size: int) -> None:
        self._ended = size == 0
        if self._left is None:
            return
        self._left -= size
        if self._left < 0 or (self._ended and self._left > 0):
            raise self._lying("the answer's body has another length than its head says")

    def upgraded(self) -> RawStream:
        """Return the raw stream after a 101."""
        return RawStream(self._stream)

    @property
    def held_bytes(self) -> int:
        """What is in hand for the tunnel, which counts all else by itself."""
        return self._stream.held_up_bytes

    @property
    def evicted(self) -> bool:
        """Whether its stream has made room in memory."""
        return self._stream.evicted

    async def abandon(self, failure: Failure | None = None) -> None:
        """RESET the stream at once, past what is still queued on it. See Outbound."""
        why = failure or GONE
        self._stream.reset(why.code, processed=why.processed, reason=why.reason)

    async def aclose(self) -> None:
        """Leave the stream: quietly when both directions have ended, else with a RESET. Never waits."""
        self._stream.close_nowait()

    def _lying(self, reason: str) -> OutboundBroken:
        processed = Processed.YES if self._answered else Processed.MAYBE
        self._stream.reset(StreamCode.PROTOCOL, processed=processed, reason=reason)
        return OutboundBroken(Failure(StreamCode.PROTOCOL, processed, reason))


class TunnelInbound:
    """The relay's end (an Inbound): a stream that it accepted, with the request's head decoded from it.

    `nursery` is where the task runs that is told of a client's leaving.
    """

    def __init__(self, stream: Stream, request: RequestHead, nursery: trio.Nursery) -> None:
        self._stream = stream
        self._nursery = nursery
        self._left = request.body_length
        self._ended = False

    async def receive_body(self) -> bytes:
        """Return body bytes as they come; b"" at the clean end.

        Bytes that are here are returned without a schedule point. The task that sends them has one, at least
        every 16th time.
        """
        if self._ended:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            data = self._stream.receive_nowait()
            if data is None:
                data = await self._stream.receive_some()
        except StreamReset as exc:
            raise InboundBroken(_failure(exc, StreamCode.CANCEL)) from exc
        self._ended = not data
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._ended and self._left > 0):
                reason = "the request's body has another length than its head says"
                raise InboundBroken(Failure(StreamCode.PROTOCOL, Processed.MAYBE, reason))
        return data

    async def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """Send the answer's head, and body bytes and the end behind it. Never waits: they only queue."""
        try:
            self._stream.send_answer_nowait(head.encode(), data, eof=end)
        except StreamReset as exc:
            raise InboundBroken(_failure(exc, StreamCode.CANCEL)) from exc

    async def send_body(self, data: bytes, *, end: bool = False) -> None:
        """Send body bytes, and the end behind them when `end`; waits only while the queue is full."""
        try:
            if not self._stream.send_nowait(data, eof=end):
                await self._stream.send_all(data)
                if end:
                    self._stream.send_eof_nowait()
        except StreamReset as exc:
            raise InboundBroken(_failure(exc, StreamCode.CANCEL)) from exc

    def send_body_nowait(self, data: bytes) -> bool:
        """See Inbound. Here nothing asks for it: what upstreams answer comes without a task or is for one."""
        try:
            return self._stream.send_nowait(data)
        except StreamReset:
            return False

    async def end(self) -> None:
        """End the answer, or the raw stream, cleanly."""
        try:
            self._stream.send_eof_nowait()
        except StreamReset as exc:
            raise InboundBroken(_failure(exc, StreamCode.CANCEL)) from exc

    def upgraded(self) -> RawStream:
        """Return the raw stream after a 101 was sent."""
        return RawStream(self._stream, ended=self._ended)

    @property
    def held_bytes(self) -> int:
        """What is in hand for the tunnel, which counts all else by itself."""
        return self._stream.held_up_bytes

    async def cut(self, failure: Failure) -> None:
        """RESET the stream behind its last byte."""
        self._stream.reset(failure.code, processed=failure.processed, reason=failure.reason, in_line=True)

    async def drop(self, failure: Failure) -> None:
        """RESET the stream at once, past what is still queued on it. May be called again."""
        self._stream.reset(failure.code, processed=failure.processed, reason=failure.reason)

    def watch(self, on_gone: OnGone, *, body_is_read: bool = False) -> None:
        """Have `on_gone` called in a task of its own once the hub has RESET the stream. See Inbound."""
        self._stream.on_reset(partial(self._nursery.start_soon, on_gone, GONE))

    async def unwatch(self) -> None:
        """See Inbound."""
        self._stream.on_reset(None)

    async def aclose(self) -> None:
        """Leave the stream; an answer that ended still arrives, also when the request was not read."""
        self._stream.close_nowait()


def _failure(reset: StreamReset, code: StreamCode | None = None) -> Failure:
    return Failure(reset.code if code is None else code, reset.processed, reset.reason)


def group_of(agent_id: str) -> int:
    """The group (the key of fairness) of an agent: the same on all sessions, since they share a memory.

    Two agents in 2^32 have one in common, and then a share as well.
    """
    group = crc32(agent_id.encode("ascii"))
    return group if group != HUB_GROUP else 1
