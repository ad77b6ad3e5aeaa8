"""wsproto with a short way for the one kind of frame that a tunnel is made of: whole binary messages.

RFC 6455 has the client mask every byte it sends, and the relay is the client, so each downloaded byte is
masked once and unmasked once. In pure Python that costs about a second of CPU per gigabyte on each side, more
than TLS; the C function of the `websockets` package (the extra `speed`) costs 0.02.

wsproto offers no hook for the mask, but its WSConnection is a plain sans-IO object, and so is this one: whole
binary frames are packed and unpacked here, and every other byte of the connection (the handshake, control
frames, fragments, text, all that is malformed) goes to wsproto's strict decoder as it came. What wsproto
would refuse, it still refuses.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Generator
from typing import Final, Protocol

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event
from wsproto.frame_protocol import XorMaskerSimple

from tunnel.transport import MESSAGE_BYTES_MAX

__all__ = ["FastWSConnection", "apply_mask", "apply_mask_slowly"]


class _Mask(Protocol):
    def __call__(self, data: bytes | bytearray | memoryview, mask: bytes, /) -> bytes: ...


def apply_mask_slowly(data: bytes | bytearray | memoryview, mask: bytes, /) -> bytes:
    """Return `data` xor `mask` repeated (RFC 6455 5.3), in pure Python."""
    return bytes(XorMaskerSimple(mask).process(bytearray(data)))


def _fastest_mask() -> _Mask:
    try:
        from websockets.speedups import apply_mask
    except ImportError:
        return apply_mask_slowly
    return apply_mask


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

# h11, which parses the head, takes bare line feeds as well.
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")

# h11's own bound for a head that does not end.
_HEAD_BYTES_MAX: Final = 16 * 1024


class FastWSConnection(WSConnection):
    """A WSConnection whose whole binary messages of up to MESSAGE_BYTES_MAX take the short way."""

    def __init__(self, connection_type: ConnectionType) -> None:
        super().__init__(connection_type)
        # Received, and neither delivered nor given to wsproto yet. At most one message and one read.
        self._received = bytearray()
        self._head_passed = False
        # The rest of a frame that wsproto decodes.
        self._passing_bytes = 0
        # Between the fragments of a message, RFC 6455 allows no other data frame: wsproto judges them all.
        self._fragmented = False
        self._sending_fragments = False
        self._ended = False

    def send(self, event: Event) -> bytes:
        """Return the bytes for `event`, as WSConnection does."""
        if not isinstance(event, BytesMessage):
            return super().send(event)
        if self._sending_fragments or not event.message_finished or self.state is not ConnectionState.OPEN:
            self._sending_fragments = not event.message_finished
            return super().send(event)
        return encode_binary(event.data, masked=self.client)

    def receive_data(self, data: bytes | None) -> None:
        """Take received bytes, as WSConnection does."""
        if data is None:
            super().receive_data(data)
            return
        self._received += data
        if self.connection is None:
            self._pass_handshake()

    def events(self) -> Generator[Event, None, None]:
        """Yield what has happened, as WSConnection does."""
        while True:
            for event in super().events():
                if isinstance(event, CloseConnection):
                    # A Close frame or a violation: nothing that follows counts.
                    self._ended = True
                yield event
            if self.connection is None:
                return
            if self._ended or self.state not in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                self._received.clear()
                return
            if not self._received:
                return
            if self._passing_bytes:
                self._pass_frame()
                continue
            size = _frame_size(self._received)
            if size is None:
                return
            header_bytes, payload_bytes = size
            if not self._is_plain_message(payload_bytes):
                self._passing_bytes = header_bytes + payload_bytes
                if self._received[0] & _OPCODE < _FIRST_CONTROL_OPCODE:
                    self._fragmented = not self._received[0] & _FIN
                self._pass_frame()
            elif len(self._received) >= header_bytes + payload_bytes:
                yield BytesMessage(data=self._take_message(header_bytes, payload_bytes))
            else:
                return

    def _pass_handshake(self) -> None:
        """Give wsproto the head of the handshake, and no byte of a frame that came with it.

        Its decoder would keep the start of a frame for itself, and we would not know where the next begins.
        """
        if not self._head_passed:
            end = _END_OF_HEAD.search(self._received)
            if end is None and len(self._received) <= _HEAD_BYTES_MAX:
                return
            self._head_passed = True
            self._pass(len(self._received) if end is None else end.end())
        if self.client and self.connection is None:
            # The answer is a refusal, and the rest its body.
            self._pass(len(self._received))

    def _is_plain_message(self, payload_bytes: int) -> bool:
        """Tell whether the frame at the front is a whole binary message that wsproto would accept.

        That is: masked as the role has it, and its length in the shortest form.
        """
        first, second = self._received[0], self._received[1]
        if first != _WHOLE_BINARY or self._fragmented or (second & _MASKED == 0) is not self.client:
            return False
        code = second & _LENGTH
        if code == _LENGTH_16:
            return payload_bytes >= _LENGTH_16
        if code == _LENGTH_64:
            return _UINT16_MAX < payload_bytes <= MESSAGE_BYTES_MAX
        return True

    def _take_message(self, header_bytes: int, payload_bytes: int) -> bytes:
        end = header_bytes + payload_bytes
        with memoryview(self._received) as view, view[header_bytes:end] as payload:
            if self.client:
                message = bytes(payload)
            else:
                message = apply_mask(payload, bytes(view[header_bytes - 4 : header_bytes]))
        del self._received[:end]
        return message

    def _pass_frame(self) -> None:
        count = min(self._passing_bytes, len(self._received))
        self._passing_bytes -= count
        self._pass(count)

    def _pass(self, count: int) -> None:
        data = bytes(self._received[:count])
        del self._received[:count]
        super().receive_data(data)


def encode_binary(payload: bytes | bytearray, *, masked: bool) -> bytes:
    """Return one unfragmented binary frame; `masked` by a fresh unpredictable key, as a client must."""
    mask_bit = _MASKED if masked else 0
    length = len(payload)
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


def _frame_size(received: bytearray) -> tuple[int, int] | None:
    """Return the sizes of header and payload of the frame at the front, or None while the header is torn."""
    if len(received) < 2:
        return None
    code = received[1] & _LENGTH
    mask_bytes = 4 if received[1] & _MASKED else 0
    extended_bytes = {_LENGTH_16: 2, _LENGTH_64: 8}.get(code, 0)
    start = 2 + extended_bytes + mask_bytes
    if len(received) < start:
        return None
    if not extended_bytes:
        return start, code
    return start, int.from_bytes(received[2 : 2 + extended_bytes])
