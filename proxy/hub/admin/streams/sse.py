"""Server-sent events: an action's events, sent to one client until its caller may no longer have them.

    retry: 2000

    id: opaque
    event: changed
    data: {"topics": ["relays"]}

A stream has three ends. At the source's end the answer is complete. When the caller's session, token or role
ends, or the hub drains, the client gets the event `end` with the reason first. A client that loses events
gets the event `gap` and the end, and goes on by `Last-Event-ID` where the source has cursors.

A client that takes nothing is cut: its socket is full, so no last event reaches it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import attrs
import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.hub.admin.streams.cut import CutError
from proxy.hub.admin.verbs.answers import Gap, ServerEvent, Source
from proxy.hub.admin.verbs.callers import Caller, RefusedError

# A page holds one, while its tab is visible.
STREAMS_MAX = 256
# Proxies cut connections that are silent for 30 s or more.
COMMENT_EVERY_S = 15.0
# A caller's end is seen within this time.
CHECK_EVERY_S = 1.0
# Streams that wake in one pass of the loop. Each takes 0.1 to 0.2 ms, and calls wait meanwhile. An idle hub
# with fewer wakes once a second.
GROUP_MAX = 32
# How long one piece may wait for the client. A phone that changes its network needs some seconds.
STALLED_S = 10.0
# After the caller's end a piece that waits is cut after this time.
FAREWELL_S = 1.0
# Pieces that wait while one is sent. Each is the batch of one `receive`.
BUFFER_BATCHES = 4
# When a client dials again after a stream's end. Spread, since a hub's end is that of all its streams.
RETRY_MIN_MS, RETRY_MAX_MS = 1000, 3000

_HEADERS = {
    "cache-control": "no-store",
    "content-type": "text/event-stream; charset=utf-8",
    "x-content-type-options": "nosniff",
    # nginx collects an answer in its buffers otherwise.
    "x-accel-buffering": "no",
}


class TooManyStreamsError(Exception):
    """The hub has STREAMS_MAX streams."""


@attrs.define(eq=False)
class EventStreams:
    """The streams of one hub."""

    draining: Callable[[], bool] = lambda: False
    """Whether the hub drains."""
    open: int = 0

    def serve(self, caller: Caller, source: Source) -> Response:
        """Return the answer that sends the source's events; raises TooManyStreamsError."""
        if self.open >= STREAMS_MAX:
            raise TooManyStreamsError(f"this hub has {STREAMS_MAX} streams already: close some, or retry")
        return _EventStream(self, caller, source)


class _EventStream(Response):
    """One stream, as Starlette's answer. It owns the source."""

    def __init__(self, streams: EventStreams, caller: Caller, source: Source) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._streams = streams
        self._caller = caller
        self._source = source
        self._sent_at = trio.current_time()
        group = streams.open // GROUP_MAX
        self._phase_s = CHECK_EVERY_S * group * GROUP_MAX / STREAMS_MAX
        self._check_at_s = self._next_check_s()
        self._sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._streams.open += 1
        cut = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._wait_disconnect, receive)
                    nursery.start_soon(self._guard)
                    batches: trio.MemoryReceiveChannel[bytes]
                    ready, batches = trio.open_memory_channel[bytes](BUFFER_BATCHES)
                    nursery.start_soon(self._pump, ready)
                    await self._write(batches, send)
                    nursery.cancel_scope.cancel()
            except* CutError:
                cut = True
        finally:
            self._streams.open -= 1
            with trio.CancelScope(shield=True):
                await self._source.aclose()
        if cut:
            raise CutError
        await send({"type": "http.response.body", "body": b""})

    async def _pump(self, ready: trio.MemorySendChannel[bytes]) -> None:
        """Take the source's events; waits while BUFFER_BATCHES of them are not sent."""
        async with ready:
            while True:
                try:
                    events = await self._source.receive()
                except trio.EndOfChannel:
                    return
                except Gap as gap:
                    await ready.send(_encoded(_told("gap", {"message": str(gap)})))
                    return
                await ready.send(b"".join(map(_encoded, events)))

    async def _write(self, batches: trio.MemoryReceiveChannel[bytes], send: Send) -> None:
        # S311: it spreads load, and is no secret.
        retry_ms = random.randint(RETRY_MIN_MS, RETRY_MAX_MS)  # noqa: S311
        await self._send(send, b"retry: %d\n\n" % retry_ms)
        while True:
            piece = b""
            with trio.move_on_at(self._next_check_s()):
                try:
                    piece = await batches.receive()
                except trio.EndOfChannel:
                    return
            if (last := self._end()) is not None:
                await self._send(send, _encoded(last))
                return
            if piece:
                await self._send(send, piece)
            elif trio.current_time() >= self._sent_at + COMMENT_EVERY_S:
                await self._send(send, b":\n\n")

    async def _send(self, send: Send, piece: bytes) -> None:
        self._sending, self._sent_at = True, trio.current_time()
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._sending = False

    def _end(self) -> ServerEvent | None:
        """Return the last event if the stream must end now. The caller is checked each CHECK_EVERY_S."""
        if self._streams.draining():
            return _told("end", {"code": "draining", "message": "this hub stops: connect again"})
        if trio.current_time() < self._check_at_s:
            return None
        self._check_at_s = self._next_check_s()
        refused = self._caller.still_valid()
        return None if refused is None else _ended_by(refused)

    def _next_check_s(self) -> float:
        """The same for all streams of a group. That of the first one is the feed of changes' too."""
        now_s = trio.current_time() - self._phase_s
        return (math.floor(now_s / CHECK_EVERY_S) + 1) * CHECK_EVERY_S + self._phase_s

    async def _guard(self) -> None:
        """Cut a client that takes nothing."""
        while True:
            await trio.sleep_until(self._next_check_s())
            if not self._sending:
                continue
            over = self._streams.draining() or self._caller.still_valid() is not None
            if trio.current_time() >= self._sent_at + (FAREWELL_S if over else STALLED_S):
                raise CutError

    async def _wait_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise CutError


def _ended_by(refused: RefusedError) -> ServerEvent:
    return _told("end", {"code": refused.code, "message": str(refused)})


def _told(event: str, body: dict[str, str]) -> ServerEvent:
    return ServerEvent(msgspec.json.encode(body), event)


def _encoded(event: ServerEvent) -> bytes:
    lines: Sequence[bytes] = (
        b"id: %b\n" % event.id.encode("ascii") if event.id else b"",
        b"event: %b\n" % event.event.encode("ascii") if event.event else b"",
        b"data: %b\n\n" % event.data,
    )
    return b"".join(lines)
