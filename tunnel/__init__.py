"""The tunnel: many streams over one outbound WebSocket. The wire is described in PROTOCOL.md."""

from tunnel.handshake import hear_hello, read_hello
from tunnel.interruptions import Interruptions
from tunnel.protocol.connection import Role
from tunnel.protocol.connection.resumption import RESUME_TTL_S
from tunnel.protocol.connection.stream_feed import MODEST_USERS_MAX
from tunnel.protocol.errors import (
    CloseCode,
    LocalProtocolError,
    Processed,
    ProtocolError,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.frames import HEAD_BYTES_MAX, NONCE_BYTES, RESUME
from tunnel.protocol.greetings import Hello, Resume, Welcome
from tunnel.protocol.memory import Memory
from tunnel.protocol.streams import Context
from tunnel.refusals import Detached, Draining, Rejected, SessionClosed, TooManyStreams
from tunnel.session import Session, open_session
from tunnel.settings import Settings
from tunnel.stream import Stream, StreamReset
from tunnel.websocket.transport import Transport, TransportClosed, memory_transport_pair

__all__ = [
    "HEAD_BYTES_MAX",
    "MODEST_USERS_MAX",
    "NONCE_BYTES",
    "RESUME",
    "RESUME_TTL_S",
    "CloseCode",
    "Context",
    "Detached",
    "Draining",
    "Hello",
    "Interruptions",
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
    "hear_hello",
    "memory_transport_pair",
    "open_session",
    "read_hello",
]
