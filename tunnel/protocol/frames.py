"""Bytes of the wire and back: the 12-byte header and every payload (PROTOCOL.md, "Frames").

Pure functions. Decoders raise RemoteProtocolError and nothing else, for any input; encoders trust their
caller, which is the core.
"""

from __future__ import annotations

import enum
import json
import re
import struct
from typing import Final, TypeGuard

import attrs

from tunnel.protocol.errors import Processed, RemoteProtocolError, StreamCode
from tunnel.protocol.window import INITIAL_WINDOW_BYTES, WINDOW_BYTES_MAX

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

_NONCE = re.compile(rf"(?:[0-9a-f]{{{2 * NONCE_BYTES}}})?")
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


# --- HELLO and WELCOME ---
#
# JSON, because they are said once and must stay open: unknown keys are ignored, missing ones have defaults.


@attrs.frozen
class Resume:
    """The session that a dialer would like to go on with."""

    session_id: str
    last_rx: int = 0
    """How many sequenced frames the dialer has received."""
    first_tx: int = 0
    """The number of the first frame that it can still send again."""
    next_tx: int = 0
    """The number of the first frame that it has never sent."""
    attempt: int = 0
    """Rises with each HELLO for this session, so that one that was held up on the way is known for it."""


@attrs.frozen
class Hello:
    """What the dialer says first: who it is, and what it can take."""

    versions: tuple[int, ...] = VERSIONS
    max_frame: int = MAX_FRAME_BYTES
    initial_window: int = INITIAL_WINDOW_BYTES
    max_streams: int = STREAMS_MAX
    features: tuple[str, ...] = ()
    cluster: str = ""
    instance: str = ""
    boot_id: str = ""
    nonce: str = ""
    """The session's: new for each, the same through its resumptions. Its meaning is the owner's business."""
    software: str = ""
    statement: str = ""
    """The dialer's statement about itself; opaque to the tunnel."""
    resume: Resume | None = None


@attrs.frozen
class Welcome:
    """What the listener answers."""

    version: int = VERSIONS[-1]
    session_id: str = ""
    resume_ttl_s: int = 0
    """0: the session ends with its transport."""
    max_frame: int = MAX_FRAME_BYTES
    initial_window: int = INITIAL_WINDOW_BYTES
    max_streams: int = STREAMS_MAX
    features: tuple[str, ...] = ()
    replica: str = ""
    """The listener's name among several behind one address; "" for one that is alone."""
    tunnels: int = 1
    """How many sessions the dialer is to keep at once, each to another replica."""
    boot_id: str = ""
    software: str = ""
    server_time_ms: int = 0
    resumed: bool = False
    """The session that the HELLO named goes on; the numbers are then the listener's, as in Resume."""
    last_rx: int = 0
    next_tx: int = 0


def hello(value: Hello) -> bytes:
    fields: dict[str, object] = {
        "versions": value.versions,
        "max_frame": value.max_frame,
        "initial_window": value.initial_window,
        "max_streams": value.max_streams,
        "features": value.features,
        "cluster": value.cluster,
        "instance": value.instance,
        "boot_id": value.boot_id,
        "nonce": value.nonce,
        "software": value.software,
        "statement": value.statement,
    }
    if value.resume is not None:
        fields["resume"] = {
            "session": value.resume.session_id,
            "last_rx": value.resume.last_rx,
            "first_tx": value.resume.first_tx,
            "next_tx": value.resume.next_tx,
            "attempt": value.resume.attempt,
        }
    return _greeting(HELLO, fields)


def welcome(value: Welcome) -> bytes:
    fields: dict[str, object] = {
        "version": value.version,
        "session": value.session_id,
        "resume_ttl_s": value.resume_ttl_s,
        "max_frame": value.max_frame,
        "initial_window": value.initial_window,
        "max_streams": value.max_streams,
        "features": value.features,
        "replica": value.replica,
        "tunnels": value.tunnels,
        "boot_id": value.boot_id,
        "software": value.software,
        "server_time_ms": value.server_time_ms,
        "resumed": value.resumed,
        "last_rx": value.last_rx,
        "next_tx": value.next_tx,
    }
    return _greeting(WELCOME, fields)


def decode_hello(payload: bytes) -> Hello:
    fields = _Fields.parse(payload)
    resume = fields.nested("resume")
    return Hello(
        versions=fields.numbers("versions", VERSIONS),
        max_frame=fields.number("max_frame", MAX_FRAME_BYTES, MIN_FRAME_BYTES, MAX_FRAME_LIMIT_BYTES),
        initial_window=fields.number("initial_window", INITIAL_WINDOW_BYTES, 1, WINDOW_BYTES_MAX),
        max_streams=fields.number("max_streams", STREAMS_MAX, 1, 2**31),
        features=fields.texts("features"),
        cluster=fields.text("cluster"),
        instance=fields.text("instance"),
        boot_id=fields.text("boot_id"),
        nonce=fields.nonce(),
        software=fields.text("software"),
        statement=fields.text("statement"),
        resume=None
        if resume is None
        else Resume(
            resume.text("session"),
            resume.number("last_rx", 0),
            resume.number("first_tx", 0),
            resume.number("next_tx", 0),
            resume.number("attempt", 0),
        ),
    )


def decode_welcome(payload: bytes) -> Welcome:
    fields = _Fields.parse(payload)
    return Welcome(
        version=fields.number("version", VERSIONS[-1]),
        session_id=fields.text("session"),
        resume_ttl_s=fields.number("resume_ttl_s", 0),
        max_frame=fields.number("max_frame", MAX_FRAME_BYTES, MIN_FRAME_BYTES, MAX_FRAME_LIMIT_BYTES),
        initial_window=fields.number("initial_window", INITIAL_WINDOW_BYTES, 1, WINDOW_BYTES_MAX),
        max_streams=fields.number("max_streams", STREAMS_MAX, 1, 2**31),
        features=fields.texts("features"),
        replica=fields.text("replica"),
        tunnels=fields.number("tunnels", 1, least=1),
        boot_id=fields.text("boot_id"),
        software=fields.text("software"),
        server_time_ms=fields.number("server_time_ms", 0),
        resumed=fields.flag("resumed"),
        last_rx=fields.number("last_rx", 0),
        next_tx=fields.number("next_tx", 0),
    )


def _greeting(frame_type: int, fields: dict[str, object]) -> bytes:
    payload = json.dumps(fields, separators=(",", ":")).encode("ascii")
    return header(frame_type, 0, 0, len(payload)) + payload


def _is_plain(value: object) -> TypeGuard[str]:
    # A lone surrogate is legal in JSON, and a log line that holds one raises; a line feed forges one.
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS_MAX:
        return False
    return value.isascii() and value.isprintable()


@attrs.frozen
class _Fields:
    """A decoded JSON object, asked for its values by name, type and range."""

    values: dict[str, object]

    @classmethod
    def parse(cls, payload: bytes) -> _Fields:
        try:
            decoded: object = json.loads(payload.decode("utf-8"))
        except (ValueError, RecursionError) as exc:
            raise RemoteProtocolError("the greeting is not JSON") from exc
        return cls.of(decoded)

    @classmethod
    def of(cls, decoded: object) -> _Fields:
        if not isinstance(decoded, dict):
            raise RemoteProtocolError("the greeting is not a JSON object")
        return cls({str(name): value for name, value in decoded.items()})

    def number(self, name: str, default: int, least: int = 0, most: int = 2**63) -> int:
        value = self.values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise RemoteProtocolError(f"the greeting's {name} is not a number from {least} to {most}")
        return value

    def text(self, name: str) -> str:
        value = self.values.get(name, "")
        if not _is_plain(value):
            raise RemoteProtocolError(
                f"the greeting's {name} is not printable ASCII of at most {TEXT_CHARACTERS_MAX} characters"
            )
        return value

    def nonce(self) -> str:
        value = self.text("nonce")
        if _NONCE.fullmatch(value) is None:
            raise RemoteProtocolError(f"the greeting's nonce is not {NONCE_BYTES} bytes in lower hexadecimal")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise RemoteProtocolError(f"the greeting's {name} is neither true nor false")
        return value

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.values.get(name, default)
        if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
            raise RemoteProtocolError(f"the greeting's {name} is not a list of numbers")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name, ())
        if not isinstance(value, list | tuple) or not all(_is_plain(item) for item in value):
            raise RemoteProtocolError(f"the greeting's {name} is not a list of names")
        return tuple(value)

    def nested(self, name: str) -> _Fields | None:
        value = self.values.get(name)
        return None if value is None else _Fields.of(value)
