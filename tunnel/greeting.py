"""The first word of each side on a new transport, before it is known which session it belongs to.

A dialer that has lost its transport names its session in the HELLO on the next one. Only when the listener
has read that does it know whether an old session goes on or a new one begins, and only the WELCOME tells the
dialer. So both hear the first message here, and hand it on to that session.
"""

from __future__ import annotations

import trio

from tunnel.protocol import frames
from tunnel.protocol.errors import CloseCode, RemoteProtocolError
from tunnel.protocol.frames import Hello, Welcome
from tunnel.refusals import Rejected, SessionClosed
from tunnel.transport import Transport, TransportClosed

# PROTOCOL.md, "Limits": for the peer's first message.
GREETING_S = 10.0


async def hear_hello(transport: Transport) -> bytes:
    """Return the first message of a dialer, for `read_hello`. Raises SessionClosed after GREETING_S."""
    return await _receive(transport)


async def say_hello(transport: Transport, hello: Hello) -> bytes:
    """Greet a listener; returns its first message, for `read_welcome`.

    Raises Rejected when the listener does not want this dialer, SessionClosed when no answer comes, and
    RemoteProtocolError for anything but a WELCOME.
    """
    try:
        await transport.send(frames.hello(hello))
    except TransportClosed as exc:
        raise _ended(exc) from exc
    message = await _receive(transport)
    frame_type, payload = frames.first_frame(message)
    if frame_type == frames.GOAWAY:
        _, code, _, retry_after_ms, reason = frames.decode_goaway(payload)
        raise Rejected(code, reason, retry_after_ms)
    read_welcome(message)
    return message


def read_hello(message: bytes) -> Hello:
    """The HELLO that a message begins with; raises RemoteProtocolError."""
    return frames.decode_hello(_greeting(message, frames.HELLO))


def read_welcome(message: bytes) -> Welcome:
    """The WELCOME that a message begins with; raises RemoteProtocolError."""
    return frames.decode_welcome(_greeting(message, frames.WELCOME))


def _greeting(message: bytes, expected: int) -> bytes:
    frame_type, payload = frames.first_frame(message)
    if frame_type != expected:
        raise RemoteProtocolError(f"frame type {frame_type} before the greeting")
    if len(payload) > frames.GREETING_BYTES_MAX:
        raise RemoteProtocolError(f"a greeting of {len(payload)} bytes exceeds {frames.GREETING_BYTES_MAX}")
    return payload


async def _receive(transport: Transport) -> bytes:
    with trio.move_on_after(GREETING_S):
        try:
            return await transport.receive()
        except TransportClosed as exc:
            raise _ended(exc) from exc
    raise SessionClosed(CloseCode.HELLO_TIMEOUT, f"no greeting within {GREETING_S:g} s")


def _ended(exc: TransportClosed) -> SessionClosed:
    return SessionClosed(exc.code, f"the transport ended in the greeting: {exc.reason}")
