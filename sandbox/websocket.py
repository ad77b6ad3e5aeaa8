"""The server's end of a WebSocket over any byte stream.

wsproto decodes frames; a server's frames are simple to encode directly. Like Kubernetes' own server, this one
uses no extension, and sends no pings on its own.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence

import attrs
import trio
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed
from wsproto.utilities import generate_accept_token

RECEIVE_BYTES_MAX = 256 * 1024


class BadHandshakeError(Exception):
    """The request is not a WebSocket handshake of RFC 6455."""


def accept_handshake(key: Sequence[bytes], version: Sequence[bytes], protocol: str | None) -> bytes:
    """Return the answer to a handshake, with the subprotocol's header unless it is None."""
    if [value.strip() for value in version] != [b"13"] or len(key) != 1:
        raise BadHandshakeError
    accept = generate_accept_token(key[0].strip())
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept,
    ]
    if protocol is not None:
        lines.append(b"Sec-WebSocket-Protocol: " + protocol.encode("ascii"))
    return b"\r\n".join(lines) + b"\r\n\r\n"


@attrs.frozen
class Piece:
    """A piece of a message, as received: a message may be too long to keep in memory."""

    data: bytes
    starts: bool
    ends: bool


class WebSocket:
    """One task receives; any task sends."""

    def __init__(self, transport: trio.abc.Stream, leftover: bytes = b"") -> None:
        self._transport = transport
        self._frames = FrameProtocol(client=False, extensions=[])
        self._leftover = leftover
        self._in_message = False
        self._send_lock = trio.Lock()
        self._broken = False
        self._sent_close = False

    async def receive(self) -> list[Piece]:
        """Return at least one received piece; an empty list at the end, for any reason.

        Answers pings and close frames.
        """
        data = self._leftover or await self._read()
        self._leftover = b""
        while data:
            self._frames.receive_bytes(data)
            pieces: list[Piece] = []
            try:
                for frame in self._frames.received_frames():
                    if frame.opcode is Opcode.PING:
                        assert isinstance(frame.payload, bytes)
                        await self._send_frame(Opcode.PONG, bytes(frame.payload))
                    elif frame.opcode is Opcode.CLOSE:
                        assert isinstance(frame.payload, tuple)
                        await self.close(frame.payload[0])
                        return pieces
                    elif frame.opcode is not Opcode.PONG:
                        assert isinstance(frame.payload, bytes | str)
                        pieces.append(self._piece(frame.payload, frame.message_finished))
            except ParseFailed as exc:
                await self.close(exc.code)
                return []
            except trio.BrokenResourceError:
                return pieces
            if pieces:
                return pieces
            data = await self._read()
        return []

    def _piece(self, payload: bytes | str, ends: bool) -> Piece:
        # Kubernetes' server treats text and binary messages alike.
        data = payload.encode() if isinstance(payload, str) else payload
        piece = Piece(data, starts=not self._in_message, ends=ends)
        self._in_message = not ends
        return piece

    async def _read(self) -> bytes:
        try:
            return bytes(await self._transport.receive_some(RECEIVE_BYTES_MAX))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = True
            return b""

    async def send(self, data: bytes) -> None:
        """Send a binary message in one frame; raises BrokenResourceError, also after a close frame."""
        await self._send_frame(Opcode.BINARY, data)

    async def ping(self) -> None:
        """Send a ping; its answer is ignored. If the client is gone, a ping fails sooner or later."""
        await self._send_frame(Opcode.PING, b"")

    async def close(self, code: int = CloseReason.NORMAL_CLOSURE) -> None:
        """Send a close frame, once; a lost connection is not an error."""
        if code in (CloseReason.NO_STATUS_RCVD, CloseReason.ABNORMAL_CLOSURE):
            payload = b""
        else:
            payload = struct.pack("!H", code)
        with contextlib.suppress(trio.BrokenResourceError):
            await self._send_frame(Opcode.CLOSE, payload)

    async def _send_frame(self, opcode: Opcode, payload: bytes) -> None:
        async with self._send_lock:
            if self._broken or self._sent_close:
                raise trio.BrokenResourceError("the WebSocket is closed")
            self._sent_close = opcode is Opcode.CLOSE
            # Until the whole frame is written, no other frame can be sent.
            self._broken = True
            try:
                await self._transport.send_all(_header(opcode, len(payload)) + payload)
            except trio.ClosedResourceError as exc:
                raise trio.BrokenResourceError("the WebSocket's connection is closed") from exc
            self._broken = False


def _header(opcode: Opcode, length: int) -> bytes:
    first = 0x80 | opcode
    if length < 126:
        return struct.pack("!BB", first, length)
    if length < 65536:
        return struct.pack("!BBH", first, 126, length)
    return struct.pack("!BBQ", first, 127, length)


class WebSocketStream(trio.abc.Stream):
    """The bytes of a WebSocket's messages as one stream, for a tunnelled SPDY connection."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return received data and ignore `max_bytes`: one read is bounded already."""
        while pieces := await self._websocket.receive():
            data = b"".join(piece.data for piece in pieces)
            if data:
                return data
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send a message."""
        await self._websocket.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: only a send shows whether it blocks."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Send a close frame with the code of a normal end."""
        await self._websocket.close()
