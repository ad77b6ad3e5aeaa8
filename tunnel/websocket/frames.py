"""The frames of an open WebSocket: a short way for whole binary messages, wsproto's decoder for the others.

A tunnel is made of whole binary messages, so they are packed and unpacked here; every other byte (control
frames, fragments, text, all that is malformed) goes to wsproto as it came. What wsproto would refuse, it
still refuses.

RFC 6455 has the client mask every byte it sends, and the relay is the client, so each downloaded byte is
masked once and unmasked once. In pure Python that costs about a second of CPU per gigabyte on each side, more
than TLS; the C function of the `websockets` package (the extra `speed`) costs 0.02.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from importlib.machinery import ExtensionFileLoader, PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Final, Protocol

from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason, XorMaskerSimple

from tunnel.protocol.streams import SMALL_BYTES
from tunnel.websocket.transport import MESSAGE_BYTES_MAX

__all__ = ["FrameReader", "apply_mask", "apply_mask_slowly", "encode_binary"]

Control = Ping | Pong | BytesMessage | CloseConnection
"""What is no whole message."""


class _Mask(Protocol):
    def __call__(self, data: bytes | bytearray | memoryview, mask: bytes, /) -> bytes: ...


def apply_mask_slowly(data: bytes | bytearray | memoryview, mask: bytes, /) -> bytes:
    """Return `data` xor `mask` repeated (RFC 6455 5.3), in pure Python."""
    return bytes(XorMaskerSimple(mask).process(bytearray(data)))


def _fastest_mask() -> _Mask:
    """Return the function of the C extension, or the slow one where it is not installed or does not load.

    The extension is loaded without its package, which imports importlib.metadata: 13 ms of CPU, a twentieth
    of a relay's start.
    """
    package = find_spec("websockets")
    spec = package and PathFinder.find_spec("websockets.speedups", package.submodule_search_locations)
    if not spec or not isinstance(spec.loader, ExtensionFileLoader):
        return apply_mask_slowly
    try:
        extension = module_from_spec(spec)
        spec.loader.exec_module(extension)
    except ImportError:
        # It was built for another C library or processor.
        return apply_mask_slowly
    mask: _Mask = extension.apply_mask
    return mask


apply_mask: Final[_Mask] = _fastest_mask()

# RFC 6455 5.2: FIN and opcode 2; the three reserved bits are zero, since no extension is negotiated.
_WHOLE_BINARY: Final = 0x82
_FIN: Final = 0x80
_OPCODE: Final = 0x0F
_FIRST_CONTROL_OPCODE: Final = 0x8
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127
_UINT16_MAX: Final = 0xFFFF


class FrameReader:
    """Turns received bytes into messages, pings and the end.

    `connection` is wsproto's, open, and has been given no byte of a frame yet. A violation is an end as
    well: a CloseConnection that the peer did not send, with the code that tells it what it has broken.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # What the second byte of the peer's frames has beside the length: only a client's are masked.
        self._mask_bit = 0 if connection.client else _MASKED
        # Received, and not looked at from `_at` on.
        self._data = b""
        self._at = 0
        # A plain message whose payload is not whole: what is there of it, how much is not, and its key.
        self._parts: list[bytes | memoryview] = []
        self._missing = 0
        self._key = b""
        # The rest of a frame that wsproto decodes, and whether it is a control frame.
        self._passing = 0
        self._passes_control = False
        # Between the fragments of a message RFC 6455 allows no other data frame: wsproto judges them all.
        self._fragmented = False
        self._fragments = bytearray()
        self._happened: deque[bytes | Control] = deque()
        self._ended = False
        self.drained = True
        """There is no event until something is fed; where it is False there may be none either."""
        self.of_messages = False
        """Bytes of a message were taken since this was last set to False: nothing but the peer itself
        sends those, while a middlebox may send and answer control frames for a peer that is long gone."""

    def feed(self, data: bytes) -> None:
        """Take received bytes. All that came before has been asked for by `next_event`."""
        self.drained = False
        missing = self._missing
        if missing:
            self.of_messages = True
        if missing > len(data):
            self._missing = missing - len(data)
            parts = self._parts
            if len(data) + len(parts[-1]) <= SMALL_BYTES:
                # A peer that sends byte by byte would cost 40 bytes of Python object for each of them.
                data = b"".join((parts.pop(), data))
            parts.append(data)
            return
        if missing:
            self._parts.append(data[:missing] if missing == len(data) else memoryview(data)[:missing])
            payload = b"".join(self._parts)
            self._happened.append(apply_mask(payload, self._key) if self._mask_bit else payload)
            self._parts = []
            self._missing = 0
            self._data = data
            self._at = missing
        else:
            # What is left is a torn header at most.
            self._data = self._data + data if self._data else data

    def next_event(self) -> bytes | Control | None:
        """Return what comes next: a whole message, a ping, or the end; None when more must be received.

        A pong and a fragment that ends no message come as well, for nothing but to be counted: thousands fit
        into what is fed at once. Behind an end there is nothing any more.
        """
        while True:
            if self._happened:
                return self._happened.popleft()
            if self._ended:
                self._data = b""
                return None
            data, at = self._data, self._at
            size = len(data)
            if at == size:
                # What was read is not kept alive until the next read.
                self._data, self._at = b"", 0
                return None
            if self._passing:
                self._pass()
                continue
            # The header, as RFC 6455 5.2 has it; one that is torn waits.
            if size < at + 2:
                break
            first, second = data[at], data[at + 1]
            length = second & _LENGTH
            payload_at = at + 2
            plain = first == _WHOLE_BINARY and second & _MASKED == self._mask_bit and not self._fragmented
            if length >= _LENGTH_16:
                payload_at += 2 if length == _LENGTH_16 else 8
                if size < payload_at:
                    break
                code, length = length, int.from_bytes(data[at + 2 : payload_at])
                # Any length has one form (the shortest), and any message a limit.
                shortest = _LENGTH_16 if code == _LENGTH_16 else _UINT16_MAX + 1
                plain = plain and shortest <= length <= MESSAGE_BYTES_MAX
            if not plain:
                self._passing = payload_at - at + (4 if second & _MASKED else 0) + length
                self._passes_control = first & _OPCODE >= _FIRST_CONTROL_OPCODE
                if not self._passes_control:
                    self._fragmented = not first & _FIN
                continue
            if self._mask_bit:
                payload_at += 4
                if size < payload_at:
                    break
                self._key = data[payload_at - 4 : payload_at]
            end = payload_at + length
            self.of_messages = True
            if end > size:
                self._parts.append(memoryview(data)[payload_at:])
                self._missing = end - size
                self._data, self._at = b"", 0
                return None
            payload = data[payload_at:end]
            if end == size:
                # As nearly always: with that, all that was read is gone.
                self._data, self._at = b"", 0
                self.drained = True
            else:
                self._at = end
            return apply_mask(payload, self._key) if self._mask_bit else payload
        self._data, self._at = data[at:], 0
        return None

    def _pass(self) -> None:
        """Give wsproto what has come of its frame, and take what it makes of that."""
        start = self._at
        if not self._passes_control:
            self.of_messages = True
        self._at = end = min(start + self._passing, len(self._data))
        self._passing -= end - start
        self._connection.receive_data(self._data[start:end])
        for event in self._connection.events():
            if isinstance(event, BytesMessage):
                self._take_fragment(event)
            elif isinstance(event, TextMessage):
                self._end(CloseConnection(CloseReason.UNSUPPORTED_DATA, "only binary messages"))
            elif isinstance(event, CloseConnection):
                self._end(event)
            elif isinstance(event, (Ping, Pong)):
                self._happened.append(event)
            if self._ended:
                return

    def _take_fragment(self, event: BytesMessage) -> None:
        self._fragments += event.data
        if len(self._fragments) > MESSAGE_BYTES_MAX:
            reason = f"a message exceeds {MESSAGE_BYTES_MAX} bytes"
            self._end(CloseConnection(CloseReason.MESSAGE_TOO_BIG, reason))
        elif event.message_finished:
            self._happened.append(bytes(self._fragments))
            self._fragments = bytearray()
        else:
            self._happened.append(event)

    def _end(self, event: CloseConnection) -> None:
        """A Close frame or a violation: nothing that follows counts."""
        self._happened.append(event)
        self._ended = True
        self._data, self._at = b"", 0
        self._fragments = bytearray()


def encode_binary(payload: bytes | bytearray, *, masked: bool) -> bytes:
    """Return one unfragmented binary frame; `masked` by a fresh unpredictable key, as a client must."""
    mask_bit = _MASKED if masked else 0
    length = len(payload)
    assert length <= MESSAGE_BYTES_MAX, f"{length} bytes exceed a message of {MESSAGE_BYTES_MAX}"
    if length < _LENGTH_16:
        header = bytes((_WHOLE_BINARY, mask_bit | length))
    elif length <= _UINT16_MAX:
        header = struct.pack("!BBH", _WHOLE_BINARY, mask_bit | _LENGTH_16, length)
    else:
        header = struct.pack("!BBQ", _WHOLE_BINARY, mask_bit | _LENGTH_64, length)
    if not masked:
        return header + payload
    key = os.urandom(4)
    return b"".join((header, key, apply_mask(payload, key)))
