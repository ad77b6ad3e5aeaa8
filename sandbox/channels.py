"""The channel protocols over a WebSocket: the first byte of each message is its channel number.

The versions differ. `v5.channel.k8s.io` has a half-close: FF and the channel number. `v4.channel.k8s.io` and
v5 send a JSON Status on channel 3. `channel.k8s.io`, and a connection without a subprotocol, send an error's
text there.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from sandbox.inbox import Inbox
from sandbox.websocket import WebSocket

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
HALF_CLOSE = 0xFF


class Channels:
    """The channels of one WebSocket. `run` reads for all of them."""

    def __init__(self, websocket: WebSocket, *, inputs: Collection[int], half_close: bool) -> None:
        self._websocket = websocket
        self._half_close = half_close
        self._inboxes = {number: Inbox() for number in inputs}

    def source(self, number: int) -> Inbox:
        """Return the data that the client sends on a channel."""
        return self._inboxes[number]

    def sink(self, number: int) -> ChannelSink:
        """Return the stream to the client on a channel."""
        return ChannelSink(self._websocket, number)

    def discard(self) -> None:
        """Discard further input, so that unread data does not block the close frames."""
        for inbox in self._inboxes.values():
            inbox.close()

    async def run(self) -> None:
        """Read until the client is gone, for any reason; data for other channels is ignored."""
        inbox: Inbox | None = None
        close_signal: bytearray | None = None
        expect_number = True
        try:
            while pieces := await self._websocket.receive():
                for piece in pieces:
                    data = piece.data
                    if piece.starts:
                        expect_number, close_signal, inbox = True, None, None
                    if expect_number and data:
                        expect_number = False
                        if self._half_close and data[0] == HALF_CLOSE:
                            close_signal = bytearray()
                        else:
                            inbox = self._inboxes.get(data[0])
                        data = data[1:]
                    if close_signal is not None:
                        close_signal += data[:2]
                        if piece.ends and not self._close_channel(bytes(close_signal)):
                            return
                    elif inbox is not None and data:
                        await inbox.feed_probing(data, self._websocket.ping)
        except trio.BrokenResourceError:
            return
        finally:
            for open_inbox in self._inboxes.values():
                open_inbox.feed_eof()

    def _close_channel(self, signal: bytes) -> bool:
        """Half-close a channel; False if the signal is not a channel number, which ends the connection."""
        if len(signal) != 1 or signal[0] > RESIZE:
            return False
        inbox = self._inboxes.get(signal[0])
        if inbox is not None:
            inbox.feed_eof()
        return True


class ChannelSink(trio.abc.SendStream):
    """Sends on one channel. A channel has no end of its own: the Status and the close frame end all."""

    def __init__(self, websocket: WebSocket, number: int) -> None:
        self._websocket = websocket
        self._prefix = bytes([number])

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send a message, also an empty one; raises BrokenResourceError."""
        await self._websocket.send(self._prefix + data)

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: only a send shows whether it blocks."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Do nothing; see the class."""
        await trio.lowlevel.checkpoint()
