"""The server's end of a SPDY/3.1 connection over any byte stream: streams that the client opens.

One task reads, in `run`. It waits for a stream whose inbox is full, which blocks the connection's other
streams too: SPDY as Kubernetes uses it has no flow control for single streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import trio

from sandbox import spdy
from sandbox.inbox import Inbox

RECEIVE_BYTES_MAX = 256 * 1024
# A pod's port-forward has two streams per connection; the reference implementation has no limit.
STREAMS_MAX = 2000


class SpdyStream(trio.abc.HalfCloseableStream):
    """One stream: FIN ends one half, and RST both."""

    def __init__(self, connection: SpdyConnection, stream_id: int, headers: Mapping[str, str]) -> None:
        self.stream_id = stream_id
        self.headers = headers
        self.inbox = Inbox()
        self._connection = connection
        self._sent_end = False
        self._peer_reset = False

    @property
    def sent_end(self) -> bool:
        """True once our half has ended."""
        return self._sent_end

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return received data, or b"" at the end. Like the reference, it does not tell FIN from RST."""
        return await self.inbox.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send DATA; raises BrokenResourceError if the connection is lost or the stream was reset."""
        if self._peer_reset:
            raise trio.BrokenResourceError(f"stream {self.stream_id} was reset by the client")
        if self._sent_end:
            raise trio.ClosedResourceError
        if data:
            await self._connection.send(spdy.data(self.stream_id, bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: only a send shows whether it blocks."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """End our half with FIN; sends nothing if it has already ended."""
        if not self._sent_end:
            self._sent_end = True
            await self._connection.send(spdy.data(self.stream_id, b"", fin=True))
            self._connection.forget_if_over(self)

    async def reset(self) -> None:
        """End both halves and discard further input.

        Like the reference, it sends RST only while our half is open.
        """
        self.inbox.close()
        self._connection.forget(self)
        if not self._sent_end:
            self._sent_end = True
            await self._connection.send(spdy.rst_stream(self.stream_id, spdy.CANCEL))

    async def aclose(self) -> None:
        """End our half and discard further input."""
        self.inbox.close()
        with contextlib.suppress(trio.BrokenResourceError):
            await self.send_eof()

    # The connection's reader calls the methods below.

    def peer_ended(self) -> None:
        self.inbox.feed_eof()
        self._connection.forget_if_over(self)

    def peer_reset(self) -> None:
        self._sent_end = self._peer_reset = True
        self.inbox.feed_eof()


class SpdyConnection:
    """A connection on which the client opens streams."""

    def __init__(self, transport: trio.abc.Stream, leftover: bytes = b"") -> None:
        self._transport = transport
        self._leftover = leftover
        self._codec = spdy.Codec()
        self._streams: dict[int, SpdyStream] = {}
        self._last_stream_id = -1
        self._send_lock = trio.Lock()
        self._broken = False
        self._pings = 0
        self._gone_away = False

    async def run(self, accept: Callable[[SpdyStream], bool]) -> None:
        """Read until the client closes the connection, by GOAWAY, EOF or breaking it.

        `accept` decides on each stream that the client opens: SYN_REPLY or RST. A lost connection or a
        protocol violation also ends it.
        """
        try:
            data = self._leftover
            while True:
                for event in self._codec.receive(data):
                    if isinstance(event, spdy.DataReceived):
                        stream = self._streams.get(event.stream_id)
                        if stream is not None:
                            await stream.inbox.feed_probing(event.data, self._ping)
                            if event.fin:
                                stream.peer_ended()
                    elif isinstance(event, spdy.GoneAway):
                        return
                    else:
                        await self._handle(event, accept)
                data = bytes(await self._transport.receive_some(RECEIVE_BYTES_MAX))
                if not data:
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = True
        except spdy.SpdyError:
            return  # the reference also hangs up without a message
        finally:
            for stream in list(self._streams.values()):
                stream.inbox.feed_eof()

    async def _ping(self) -> None:
        self._pings += 1
        await self.send(spdy.ping(2 * self._pings))

    async def _handle(self, event: spdy.Event, accept: Callable[[SpdyStream], bool]) -> None:
        if isinstance(event, spdy.StreamOpened):
            await self._open(event, accept)
        elif isinstance(event, spdy.StreamReset):
            reset = self._streams.pop(event.stream_id, None)
            if reset is not None:
                reset.peer_reset()
        elif isinstance(event, spdy.PingReceived) and event.ping_id % 2:
            # Even numbers are answers to our pings.
            await self.send(spdy.ping(event.ping_id))

    async def _open(self, event: spdy.StreamOpened, accept: Callable[[SpdyStream], bool]) -> None:
        stream_id = event.stream_id
        if stream_id % 2 == 0 or stream_id <= self._last_stream_id:
            await self.send(spdy.rst_stream(stream_id or 1, spdy.PROTOCOL_ERROR))
            return
        self._last_stream_id = stream_id
        if self._gone_away:
            return
        stream = SpdyStream(self, stream_id, event.headers)
        if len(self._streams) >= STREAMS_MAX or not accept(stream):
            await self.send(spdy.rst_stream(stream_id, spdy.CANCEL))
            return
        self._streams[stream_id] = stream
        if event.fin:
            stream.peer_ended()
        await self.send(self._codec.syn_reply(stream_id, {}))

    async def send(self, frame: bytes) -> None:
        """Write a frame; raises BrokenResourceError. If cancelled halfway, the connection is broken."""
        async with self._send_lock:
            if self._broken:
                raise trio.BrokenResourceError("the SPDY connection is lost")
            self._broken = True
            try:
                await self._transport.send_all(frame)
            except trio.ClosedResourceError as exc:
                raise trio.BrokenResourceError("the SPDY connection is closed") from exc
            self._broken = False

    async def close(self) -> bool:
        """Reset all streams and send GOAWAY; the transport stays open until the client leaves.

        False if the connection is lost, so that there is no client to wait for.
        """
        self._gone_away = True
        with contextlib.suppress(trio.BrokenResourceError):
            for stream in list(self._streams.values()):
                await stream.reset()
            await self.send(spdy.goaway(max(self._last_stream_id, 0)))
        return not self._broken

    def forget(self, stream: SpdyStream) -> None:
        self._streams.pop(stream.stream_id, None)

    def forget_if_over(self, stream: SpdyStream) -> None:
        if stream.sent_end and stream.inbox.ended:
            self.forget(stream)
