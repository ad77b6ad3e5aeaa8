"""The transport over a WebSocket (RFC 6455), straight on our own streams.

wsproto speaks the handshake, decodes all that is not a whole binary message, and encodes all that we send
beside those; this file moves the bytes. There is no task but those of the session: its reader reads the
stream in `receive`, its writer writes it in `send`. What both want to send, and what is sent without a wait,
follows three rules:

1. While a send is under way, no other task sends. A cancelled one leaves half a frame, so it ends the
   transport. What the kernel does not take of a frame that is sent without a wait is kept by the TLS stream,
   in front of the next frame that goes out, be it the Close.
2. The reader never waits to send, or two peers that both do it stop each other for good. A pong is handed to
   the stream without waiting, or goes out behind the writer's message. Only the last ping is owed one (5.5.3:
   "the endpoint MAY elect to send a Pong frame for only the most recently processed Ping frame"), so pings
   are no way to fill our memory.
3. Once the peer's Close has come there is nothing more to read, and the reader may wait: it answers it.

Closing is 7.1 of the RFC under one deadline: our Close behind the frame that is under way, then the peer's,
then the connection.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio
from wsproto.connection import Connection, ConnectionState
from wsproto.events import CloseConnection, Ping, Pong
from wsproto.frame_protocol import CloseReason

from tunnel.net.connect import peer_address
from tunnel.net.fairness import fairness
from tunnel.net.tls import TLSStream
from tunnel.websocket.frames import FrameReader, encode_binary
from tunnel.websocket.transport import Transport, TransportClosed

__all__ = ["WebSocketTransport"]

# For both Close frames, or for a peer that has broken our rules to hang up. One that is alive does so within
# a round trip; for any other there is no reason to wait.
CLOSE_S: Final = 2.0

# What one read brought is handed on without a pass of the scheduler, but after so many messages, fragments or
# control frames it is the turn of others. What is no whole message costs wsproto some 20 µs, and 20,000 of
# them fit into one read.
EVENTS_PER_TURN = 64

_CUT: Final = (None, "the connection ended without a Close frame")


class WebSocketTransport(Transport):
    """The transport of a WebSocket whose handshake is done; `leftover` is what came behind that."""

    def __init__(self, connection: Connection, stream: trio.abc.Stream, leftover: bytes) -> None:
        self.peer_name = peer_address(stream)
        # trio.current_time() looks its clock up each time, which costs more than asking it.
        self._now = trio.lowlevel.current_clock().current_time
        self.last_received_s = self._read_at = self._now()
        self._connection = connection
        self._stream = stream
        self._masked = connection.client
        self._frames = FrameReader(connection)
        self._fairness = fairness()
        if leftover:
            self._frames.feed(leftover)
        self._events_left = EVENTS_PER_TURN
        # The pong that is owed, to the last ping.
        self._pong: Pong | None = None
        # What was handed to the stream without waiting is not all out: nothing more is handed to it that way.
        self._clogged = False
        self._sending = False
        self._reading = False
        # No more messages will come or go, and why: the peer's Close, our own, or the first failure.
        self._ending: tuple[int | None, str] | None = None
        # Our Close, as soon as it is clear what it says.
        self._farewell: CloseConnection | None = None
        # The peer will say nothing more: it has said Close, broken the rules, or is gone.
        self._over = False
        self._closing = False
        # Set when who sends, or reads, has stopped that.
        self._released = trio.Event()

    async def send(self, message: bytes) -> None:
        await self._send(encode_binary(message, masked=self._masked))

    def send_nowait(self, message: bytes) -> bool:
        stream = self._stream
        if self._ending is not None or not isinstance(stream, TLSStream):
            # A Close of the reader's may be on its way out; `finish` tells why there is nothing to send.
            return super().send_nowait(message)
        assert not self._sending, "one task sends"
        frame = encode_binary(message, masked=self._masked)
        if self._pong is not None:
            pong, self._pong = self._pong, None
            frame += bytes(self._connection.send(pong))
        self._clogged = True
        try:
            self._clogged = not stream.send_nowait(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # It fails again in `finish`, which reports it.
            return False
        return not self._clogged

    async def finish(self) -> None:
        message, self._begun = self._begun, None
        # Without any bytes the stream sends what it has kept.
        await self._send(b"" if message is None else encode_binary(message, masked=self._masked))

    async def _send(self, frame: bytes) -> None:
        """Send a frame, and the pong that is owed behind it."""
        if self._ending is not None:
            raise TransportClosed(*self._ending)
        assert not self._sending, "one task sends"
        self._sending = True
        try:
            await self._stream.send_all(frame)
            self._clogged = False
            while self._pong is not None and self._ending is None:
                pong, self._pong = self._pong, None
                await self._stream.send_all(bytes(self._connection.send(pong)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The reader may still find out why, in what the peer said before.
            raise self._closed_by_failure() from None
        except BaseException:
            # Half a frame may be on its way, and nothing can follow it.
            self._note_ending(None, "a send was cancelled")
            await trio.aclose_forcefully(self._stream)
            raise
        finally:
            self._sending = False
            if self._closing:
                self._released.set()

    async def receive(self) -> bytes:
        frames = self._frames
        next_event = frames.next_event
        while True:
            if self._ending is not None:
                raise TransportClosed(*self._ending)
            self._events_left -= 1
            if self._events_left <= 0:
                self._events_left = EVENTS_PER_TURN
                await self._fairness.wait_alone(self)
                continue
            event = None if frames.drained else next_event()
            if frames.of_messages:
                frames.of_messages = False
                self.last_received_s = self._read_at
            if type(event) is bytes:
                return event
            if event is None:
                await self._read()
            elif isinstance(event, Ping):
                self._owe_pong(event)
            elif isinstance(event, CloseConnection):
                await self._heed(event)

    async def _read(self) -> None:
        """Receive into `_frames`, or note the end."""
        self._reading = True
        try:
            # All that the stream makes of one read of its own: a part would be copied, and the rest as well.
            data = await self._stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self._reading = False
            if self._closing:
                self._released.set()
        if data:
            self._read_at = self._now()
            self._events_left = EVENTS_PER_TURN
            self._frames.feed(bytes(data))
        else:
            self._over = True
            self._note_ending(*_CUT)

    def _note_ending(self, code: int | None, reason: str) -> None:
        if self._ending is None:
            self._ending = (code, reason)

    def _closed_by_failure(self) -> TransportClosed:
        return TransportClosed(*(_CUT if self._ending is None else self._ending))

    def _owe_pong(self, ping: Ping) -> None:
        pong, stream = ping.response(), self._stream
        if self._sending or self._clogged or not isinstance(stream, TLSStream):
            # It goes behind the message that is under way, or behind the next one.
            self._pong = pong
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._clogged = not stream.send_nowait(bytes(self._connection.send(pong)))

    async def _heed(self, close: CloseConnection) -> None:
        """Take the peer's Close, or what it has broken, for the end, and answer it."""
        self._over = True
        if self._ending is None:
            self._ending = _reason_of(close)
            self._farewell = close.response()
        if not self._sending:
            self._sending = True
            try:
                with trio.move_on_after(CLOSE_S):
                    await self._say_close()
            finally:
                self._sending = False
                if self._closing:
                    self._released.set()

    async def _say_close(self) -> None:
        close, self._farewell = self._farewell, None
        if close is not None:
            frame = self._connection.send(close)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(bytes(frame))

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self._closing:
            await trio.lowlevel.checkpoint()
            return
        self._closing = True
        if self._ending is None:
            self._ending = (code, reason)
            self._farewell = CloseConnection(code, reason)
        try:
            with trio.move_on_after(CLOSE_S):
                await self._shake_hands()
        finally:
            await self._stream.aclose()

    async def _shake_hands(self) -> None:
        """Send Close, as soon as no task sends any more, and wait for the peer's."""
        # A send that need not wait would not notice that we are cancelled.
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._sending:
            await self._wait_released()
        await self._say_close()
        while not self._over:
            if self._reading:
                await self._wait_released()
                continue
            event = self._frames.next_event()
            if event is None:
                await self._read()
            elif isinstance(event, CloseConnection):
                self._over = True
            else:
                await trio.lowlevel.checkpoint()
        if self._connection.state is not ConnectionState.CLOSED:
            await self._let_it_finish()

    async def _let_it_finish(self) -> None:
        """Throw away what a peer sends that has broken our rules, until it hangs up.

        To close before would reset the connection, and a reset takes back the Close that says why.
        """
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self._stream.receive_some():
                pass

    async def _wait_released(self) -> None:
        self._released = trio.Event()
        await self._released.wait()


def _reason_of(close: CloseConnection) -> tuple[int | None, str]:
    if close.code == CloseReason.NO_STATUS_RCVD:
        return None, "the peer closed without a code"
    return int(close.code), close.reason or "the peer closed without a reason"
