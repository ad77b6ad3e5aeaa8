"""Bytes of the wire and back: the 12-byte header and every payload (PROTOCOL.md, "Frames").

Pure functions. Decoders raise RemoteProtocolError and nothing else, for any input; encoders trust their
caller, which is the core.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from tunnel.protocol.errors import Processed, RemoteProtocolError, StreamCode

HEADER: Final = struct.Struct(">BBHII")
HEADER_BYTES: Final = 12

FIN: Final = 0x01
ACK_FLAG: Final = 0x02
IN_LINE: Final = 0x04
CRITICAL: Final = 0x80

# Types below are sequenced, known or not, or two versions would count differently.
UNSEQUENCED_FROM: Final = 0x10


class FrameType(enum.IntEnum):
    DATA = 0x00
    OPEN = 0x01
    HEAD = 0x02
    WINDOW = 0x03
    RESET = 0x04
    CONTEXT = 0x05
    HELLO = 0x10
    WELCOME = 0x11
    ACK = 0x12
    PING = 0x13
    GOAWAY = 0x14


# Plain ints: looking a member up in an enum costs as much as packing the header.
DATA: Final = int(FrameType.DATA)
OPEN: Final = int(FrameType.OPEN)
HEAD: Final = int(FrameType.HEAD)
WINDOW: Final = int(FrameType.WINDOW)
RESET: Final = int(FrameType.RESET)
CONTEXT: Final = int(FrameType.CONTEXT)
HELLO: Final = int(FrameType.HELLO)
WELCOME: Final = int(FrameType.WELCOME)
ACK: Final = int(FrameType.ACK)
PING: Final = int(FrameType.PING)
GOAWAY: Final = int(FrameType.GOAWAY)

# Large enough for a DATA frame that carries a whole wakeup's bytes of one stream.
MAX_FRAME_BYTES: Final = 128 * 1024
# What HELLO may negotiate at most.
MAX_FRAME_LIMIT_BYTES: Final = 1024 * 1024
# One WebSocket message: what a peer can make us hold of it before a frame is looked at.
MESSAGE_BYTES_MAX: Final = 1024 * 1024
# Below, a frame could not hold a CONTEXT or a HELLO.
MIN_FRAME_BYTES: Final = 16 * 1024
# What Kubernetes allows for a request's head; kubectl sends 60 KB of URL for a long exec command.
HEAD_BYTES_MAX: Final = 1024 * 1024
CONTEXT_BYTES_MAX: Final = 8 * 1024
REASON_BYTES_MAX: Final = 200
# HELLO and WELCOME are a few hundred bytes; this leaves room for what later versions say.
GREETING_BYTES_MAX: Final = 16 * 1024
# Of a text in it: the longest is a pod's name, of 253. It is in logs, lists and headers, again and again.
TEXT_CHARACTERS_MAX: Final = 256
# Drawn at random, no two are ever the same.
NONCE_BYTES: Final = 16
STREAMS_MAX: Final = 16_384
VERSIONS: Final = (1,)
# The feature of HELLO and WELCOME: a session may go on over another transport.
RESUME: Final = "resume"

_OPEN = struct.Struct(">BBHIIII")
_HEAD = struct.Struct(">BBHIII")
# What stands before the part of the head in an OPEN and a HEAD, their header included.
OPEN_PREFIX_BYTES: Final = _OPEN.size
HEAD_PREFIX_BYTES: Final = _HEAD.size
_U32_PAIR = struct.Struct(">II")
_U32 = struct.Struct(">I")
_WINDOW = struct.Struct(">BBHIII")
_RESET = struct.Struct(">HB")
_U64 = struct.Struct(">Q")
_PING = struct.Struct(">QQQ")
_GOAWAY = struct.Struct(">IHII")


def header(frame_type: int, flags: int, stream_id: int, length: int) -> bytes:
    return HEADER.pack(frame_type, flags, 0, stream_id, length)


def open_prefix(stream_id: int, context: int, head_length: int, part_length: int, flags: int) -> bytes:
    """Everything of an OPEN but the part of the head that it carries; `part_length` bytes must follow."""
    return _OPEN.pack(OPEN, flags, 0, stream_id, 8 + part_length, context, head_length)


def head_prefix(stream_id: int, head_length: int, part_length: int, flags: int) -> bytes:
    return _HEAD.pack(HEAD, flags, 0, stream_id, 4 + part_length, head_length)


def window(stream_id: int, delta: int) -> bytes:
    return _WINDOW.pack(WINDOW, 0, 0, stream_id, 4, delta)


def reset(stream_id: int, code: StreamCode, processed: Processed, reason: str, *, in_line: bool) -> bytes:
    payload = _RESET.pack(code, processed) + encode_reason(reason)
    return header(RESET, IN_LINE if in_line else 0, stream_id, len(payload)) + payload


def context(index: int, group: int, payload: bytes) -> bytes:
    return header(CONTEXT, 0, 0, 8 + len(payload)) + _U32_PAIR.pack(index, group) + payload


def ack(received: int) -> bytes:
    return header(ACK, 0, 0, 8) + _U64.pack(received)


def ping(opaque: int, received: int, clock_ms: int, *, answer: bool) -> bytes:
    return header(PING, ACK_FLAG if answer else 0, 0, 24) + _PING.pack(opaque, received, clock_ms)


def goaway(last_id: int, code: int, drain_ms: int, retry_after_ms: int, reason: str) -> bytes:
    payload = _GOAWAY.pack(last_id, code, drain_ms, retry_after_ms) + encode_reason(reason)
    return header(GOAWAY, 0, 0, len(payload)) + payload


def encode_reason(reason: str) -> bytes:
    """UTF-8, cut to REASON_BYTES_MAX at a character's boundary."""
    encoded = reason.encode("utf-8", "replace")
    if len(encoded) > REASON_BYTES_MAX:
        encoded = encoded[:REASON_BYTES_MAX].decode("utf-8", "ignore").encode("utf-8")
    return encoded


def decode_reason(encoded: bytes) -> str:
    if len(encoded) > REASON_BYTES_MAX:
        raise RemoteProtocolError(f"a reason of {len(encoded)} bytes exceeds {REASON_BYTES_MAX}")
    text = encoded.decode("utf-8", "replace")
    # It ends in logs and on terminals, where a control character is an attack.
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    )


def first_frame(message: bytes) -> tuple[int, bytes]:
    """The type and payload of the frame that a message begins with, which is the session's."""
    if len(message) < HEADER_BYTES:
        raise RemoteProtocolError(f"{len(message)} bytes are no frame")
    frame_type, _, reserved, stream_id, length = HEADER.unpack_from(message)
    if reserved:
        raise RemoteProtocolError(f"the reserved bytes of a header are {reserved}")
    if stream_id:
        raise RemoteProtocolError(f"frame type {frame_type} on stream {stream_id} before the greeting")
    payload = message[HEADER_BYTES : HEADER_BYTES + length]
    if len(payload) < length:
        raise RemoteProtocolError(f"a frame of {length} bytes is cut at {len(payload)}")
    return int(frame_type), payload


def decode_open(payload: bytes) -> tuple[int, int, bytes]:
    """The context's index, the length of the whole head, and the part of it that is here."""
    if len(payload) < 8:
        raise RemoteProtocolError(f"OPEN of {len(payload)} bytes")
    index, head_length = _U32_PAIR.unpack_from(payload)
    return index, head_length, payload[8:]


def decode_head(payload: bytes) -> tuple[int, bytes]:
    if len(payload) < 4:
        raise RemoteProtocolError(f"HEAD of {len(payload)} bytes")
    (head_length,) = _U32.unpack_from(payload)
    return head_length, payload[4:]


def decode_window(payload: bytes) -> int:
    if len(payload) != 4:
        raise RemoteProtocolError(f"WINDOW of {len(payload)} bytes")
    (delta,) = _U32.unpack(payload)
    return int(delta)


def decode_reset(payload: bytes) -> tuple[StreamCode, Processed, str]:
    """A code that we do not know is a later version's, and INTERNAL to us; the number stays in the reason."""
    if len(payload) < 3:
        raise RemoteProtocolError(f"RESET of {len(payload)} bytes")
    number, processed_number = _RESET.unpack_from(payload)
    reason = decode_reason(payload[3:])
    try:
        code = StreamCode(number)
    except ValueError:
        code, reason = StreamCode.INTERNAL, f"code {number}: {reason}"
    processed = Processed(processed_number) if processed_number <= 2 else Processed.MAYBE
    return code, processed, reason


def decode_context(payload: bytes) -> tuple[int, int, bytes]:
    if not 8 <= len(payload) <= 8 + CONTEXT_BYTES_MAX:
        raise RemoteProtocolError(f"CONTEXT of {len(payload)} bytes")
    index, group = _U32_PAIR.unpack_from(payload)
    return index, group, payload[8:]


def decode_ack(payload: bytes) -> int:
    if len(payload) != 8:
        raise RemoteProtocolError(f"ACK of {len(payload)} bytes")
    (received,) = _U64.unpack(payload)
    return int(received)


def decode_ping(payload: bytes) -> tuple[int, int, int]:
    if len(payload) != 24:
        raise RemoteProtocolError(f"PING of {len(payload)} bytes")
    opaque, received, clock_ms = _PING.unpack(payload)
    return opaque, received, clock_ms


def decode_goaway(payload: bytes) -> tuple[int, int, int, int, str]:
    if len(payload) < _GOAWAY.size:
        raise RemoteProtocolError(f"GOAWAY of {len(payload)} bytes")
    last_id, code, drain_ms, retry_after_ms = _GOAWAY.unpack_from(payload)
    return last_id, code, drain_ms, retry_after_ms, decode_reason(payload[_GOAWAY.size :])
