"""The first message of each side on a new transport.

A dialer that has lost its transport names its session in the HELLO on the next one. So the listener must
read the HELLO to know whether an old session goes on or a new one begins, and the dialer must read the
WELCOME. Both receive the first message before they have a session for it (`hear_hello`, `say_hello`) and
hand it to the session: an old one resumes with it, a new one begins its greeting with it (`greet`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from tunnel.protocol import frames, greetings
from tunnel.protocol.connection import Connection, Phase, Role
from tunnel.protocol.errors import CloseCode, RemoteProtocolError
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.refusals import FAREWELL_S, Rejected, SessionClosed, farewell_of
from tunnel.settings import GREETING_S, Settings
from tunnel.websocket.transport import Transport, TransportClosed

__all__ = ["greet", "hear_hello", "read_hello", "read_welcome", "say_hello", "turn_away"]


async def hear_hello(transport: Transport) -> bytes:
    """Return the first message of a dialer, for `read_hello`.

    Raises SessionClosed when it leaves, or sends nothing for GREETING_S, and RemoteProtocolError for
    anything but a HELLO, after telling the dialer.
    """
    try:
        message = await _receive(transport)
        read_hello(message)
    except (SessionClosed, RemoteProtocolError) as exc:
        with trio.CancelScope(shield=True):
            await turn_away(transport, exc)
        raise
    return message


async def say_hello(transport: Transport, hello: Hello) -> bytes:
    """Greet a listener; returns its first message, for `read_welcome`.

    Raises Rejected when the listener does not want this dialer, SessionClosed when no answer comes, and
    RemoteProtocolError for anything but a WELCOME, after telling the listener.
    """
    try:
        await transport.send(greetings.hello(hello))
    except TransportClosed as exc:
        raise _ended(exc) from exc
    message = await _receive(transport)
    try:
        frame_type, payload = frames.first_frame(message)
        if frame_type == frames.GOAWAY:
            _, code, _, retry_after_ms, reason = frames.decode_goaway(payload)
            raise Rejected(code, reason, retry_after_ms)
        read_welcome(message)
    except RemoteProtocolError as exc:
        with trio.CancelScope(shield=True):
            await turn_away(transport, exc)
        raise
    return message


async def turn_away(transport: Transport, exc: SessionClosed | RemoteProtocolError) -> None:
    """Close a transport that no session uses, and tell the peer why, as at any session's end.

    It takes 2 FAREWELL_S at most.
    """
    code, reason = farewell_of(exc)
    with trio.move_on_after(FAREWELL_S), suppress(TransportClosed):
        await transport.send(frames.goaway(0, code, 0, 0, reason))
    with trio.move_on_after(FAREWELL_S):
        await transport.aclose(code, reason)


def read_hello(message: bytes) -> Hello:
    """The HELLO that a message is; raises RemoteProtocolError."""
    payload = _greeting(message, frames.HELLO)
    if len(message) > frames.HEADER_BYTES + len(payload):
        # A session that goes on would not count the other frames, and so misnumber all that follow.
        raise RemoteProtocolError("a HELLO is not alone in its message")
    return greetings.decode_hello(payload)


def read_welcome(message: bytes) -> Welcome:
    """The WELCOME that a message begins with; raises RemoteProtocolError."""
    return greetings.decode_welcome(_greeting(message, frames.WELCOME))


async def greet(
    connection: Connection,
    transport: Transport,
    settings: Settings,
    *,
    hello: Hello,
    answer_hello: Callable[[Hello], Welcome] | None,
    message: bytes | None,
) -> None:
    """Open the core of a new session: the dialer says `hello`, the listener answers by `answer_hello`.

    `message` is the peer's first, when it was received already; a dialer has said its hello then. Raises
    Rejected, SessionClosed and RemoteProtocolError. What has to be sent to the peer for these, or for a
    cancellation, is left in the core.
    """
    with trio.move_on_after(settings.hello_timeout_s):
        try:
            if connection.role is Role.DIALER:
                await _greet_as_dialer(connection, transport, settings.stated_in(hello), message)
            else:
                await _greet_as_listener(connection, transport, settings, answer_hello, message)
            return
        except TransportClosed as exc:
            raise _ended(exc) from exc
    reason = f"no greeting within {settings.hello_timeout_s:g} s"
    connection.reject(CloseCode.HELLO_TIMEOUT, reason)
    raise SessionClosed(CloseCode.HELLO_TIMEOUT, reason)


async def _greet_as_dialer(
    connection: Connection, transport: Transport, hello: Hello, message: bytes | None
) -> None:
    connection.handshake.say_hello(hello)
    said = connection.data_to_send(connection.message_bytes, trio.current_time())
    if message is None:
        await transport.send(said)
    while connection.status.phase is Phase.GREETING:
        connection.receive_message(message or await transport.receive(), trio.current_time())
        message = None
        refusal = connection.handshake.refusal
        if refusal is not None:
            raise Rejected(refusal.code, refusal.reason, refusal.retry_after_ms)


async def _greet_as_listener(
    connection: Connection,
    transport: Transport,
    settings: Settings,
    answer_hello: Callable[[Hello], Welcome] | None,
    message: bytes | None,
) -> None:
    while connection.handshake.peer_hello is None:
        connection.receive_message(message or await transport.receive(), trio.current_time())
        message = None
    hello = connection.handshake.peer_hello
    try:
        welcome = Welcome() if answer_hello is None else answer_hello(hello)
    except Rejected as exc:
        connection.reject(exc.close_code, exc.reason, exc.retry_after_ms)
        raise
    welcome = attrs.evolve(
        settings.stated_in(welcome),
        session_id=welcome.session_id or uuid.uuid4().hex,
        server_time_ms=round(time.time() * 1000),
    )
    connection.handshake.say_welcome(welcome, hello)


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
