"""HELLO and WELCOME, the first frame of each side (PROTOCOL.md, "Frames").

Pure functions, as in `frames`. JSON, because they are said once and must stay open: unknown keys are ignored,
missing ones have defaults.
"""

from __future__ import annotations

import json
import re
from typing import TypeGuard

import attrs

from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.frames import (
    HELLO,
    MAX_FRAME_BYTES,
    MAX_FRAME_LIMIT_BYTES,
    MIN_FRAME_BYTES,
    NONCE_BYTES,
    STREAMS_MAX,
    TEXT_CHARACTERS_MAX,
    VERSIONS,
    WELCOME,
    header,
)
from tunnel.protocol.window import INITIAL_WINDOW_BYTES, WINDOW_BYTES_MAX

_NONCE = re.compile(rf"(?:[0-9a-f]{{{2 * NONCE_BYTES}}})?")


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
