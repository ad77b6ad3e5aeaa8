"""The tunnel: many streams over one outbound WebSocket. The wire is described in PROTOCOL.md."""

from tunnel.protocol.connection import Role
from tunnel.protocol.errors import (
    CloseCode,
    LocalProtocolError,
    Processed,
    ProtocolError,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.frames import HEAD_BYTES_MAX, Hello, Resume, Welcome
from tunnel.protocol.memory import Memory
from tunnel.protocol.streams import Context
from tunnel.session import (
    Draining,
    Rejected,
    Session,
    SessionClosed,
    Settings,
    TooManyStreams,
    open_session,
)
from tunnel.stream import Stream, StreamReset
from tunnel.transport import Transport, TransportClosed, memory_transport_pair

__all__ = [
    "HEAD_BYTES_MAX",
    "CloseCode",
    "Context",
    "Draining",
    "Hello",
    "LocalProtocolError",
    "Memory",
    "Processed",
    "ProtocolError",
    "Rejected",
    "RemoteProtocolError",
    "Resume",
    "Role",
    "Session",
    "SessionClosed",
    "Settings",
    "Stream",
    "StreamCode",
    "StreamReset",
    "TooManyStreams",
    "Transport",
    "TransportClosed",
    "Welcome",
    "memory_transport_pair",
    "open_session",
]
