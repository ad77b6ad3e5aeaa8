"""The codes that cross the wire, and the two kinds of protocol error.

Three kinds of trouble, three fates: a stream fault RESETs that stream with a StreamCode; a fault of the
peer's protocol ends the session with a CloseCode (RemoteProtocolError); a mistake of our own caller raises
LocalProtocolError and leaves the session as it was.
"""

from __future__ import annotations

import enum


class StreamCode(enum.IntEnum):
    """Why a stream was RESET (PROTOCOL.md, "Stream codes")."""

    CANCEL = 0
    INTERNAL = 1
    REFUSED = 2
    TIMEOUT = 3
    DIAL_FAILED = 4
    UPSTREAM_RESET = 5
    UNAUTHENTICATED = 6
    FORBIDDEN = 7
    FLOW_CONTROL = 8
    STREAM_CLOSED = 9
    TOO_LARGE = 10
    DRAINING = 11
    DEADLINE = 12
    REVOKED = 13
    DETACH_EXPIRED = 14
    OVERLOADED = 15
    PROTOCOL = 16


class Processed(enum.IntEnum):
    """Whether what the stream asked for may have happened. NO is a promise: nothing reached the upstream."""

    NO = 0
    MAYBE = 1
    YES = 2


class CloseCode(enum.IntEnum):
    """Why a session ends: the code of GOAWAY and of the WebSocket's close frame (PROTOCOL.md, "Close
    codes")."""

    NORMAL = 1000
    PROTOCOL = 4400
    AUTH = 4401
    FORBIDDEN = 4403
    HELLO_TIMEOUT = 4408
    SUPERSEDED = 4409
    RESUME_UNKNOWN = 4410
    LIMITS = 4413
    SLOW_DOWN = 4429
    DRAINING = 4503


class ProtocolError(Exception):
    """The parent of both: what was done is not in the protocol."""


class LocalProtocolError(ProtocolError):
    """Our own caller asked for something that the protocol forbids; nothing was sent and nothing changed."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the session cannot go on."""

    def __init__(self, message: str, close_code: CloseCode = CloseCode.PROTOCOL) -> None:
        super().__init__(message)
        self.close_code = close_code


class FlowControlError(Exception):
    """The peer sent more on one stream than it was granted. Internal: it becomes RESET(FLOW_CONTROL)."""


class IllegalTransition(Exception):
    """A half of a stream cannot do this in the state it is in. Internal: see `state.after`."""
