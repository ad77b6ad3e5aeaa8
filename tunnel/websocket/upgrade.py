"""The handshake of a WebSocket (RFC 6455), at both ends, and the headers of a tunnel's upgrade."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.utilities import ProtocolError, RemoteProtocolError

from tunnel.net.connect import tune
from tunnel.websocket.transport import Transport
from tunnel.websocket.websocket_transport import WebSocketTransport

__all__ = [
    "AT_HEADER",
    "ELSEWHERE_HEADER",
    "HUB_TIME_HEADER",
    "SESSION_HEADER",
    "SUBPROTOCOL",
    "TUNNEL_PATH",
    "WebSocketRefused",
    "accept_websocket",
    "dial_websocket",
]

SUBPROTOCOL: Final = "hawse.v1"

# Where hubs answer, below the path of their URL.
TUNNEL_PATH: Final = "/v1/tunnel"

# Names the session that a relay comes back to, so that a hub that limits how many it accepts can let these in
# first.
SESSION_HEADER: Final = b"hawse-session"

# In a dial that resumes a session: the id of the session's hub. In a hub's answer: the id of the hub that the
# answer is from.
AT_HEADER: Final = b"hawse-at"

# In a dial for one more tunnel: the ids of the hubs, separated by commas, to which the relay has one.
ELSEWHERE_HEADER: Final = b"hawse-elsewhere"

# The hub's time as it tells it to a relay whose clock is wrong, in the refusal of its upgrade.
HUB_TIME_HEADER: Final = b"hawse-hub-time"

# h11, which parses the head, takes bare line feeds as well, and has this bound for a head that does not end.
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_HEAD_BYTES_MAX: Final = 16 * 1024
_HTTP: Final = b"HTTP/1."

_Headers = Sequence[tuple[bytes, bytes]]


class WebSocketRefused(Exception):
    """There is no WebSocket: the handshake was refused, or did not end as RFC 6455 demands.

    `status` and `headers` are those of the answer, `status` is None when there was none. The text is one line
    and holds nothing of the request.
    """

    def __init__(self, reason: str, *, status: int | None = None, headers: _Headers = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


@asynccontextmanager
async def dial_websocket(
    stream: trio.abc.Stream, *, host: str, target: str, headers: _Headers = ()
) -> AsyncIterator[Transport]:
    """Make a WebSocket client of `stream`, and close it at the end.

    `host` is the Host header, `headers` go with the request. Raises WebSocketRefused. The caller sets the
    deadline for the handshake.
    """
    async with stream:
        tune(stream)
        try:
            connection, leftover, answer_headers = await _ask(stream, host, target, headers)
        except (ProtocolError, h11.ProtocolError, UnicodeError) as exc:
            raise WebSocketRefused(f"no WebSocket handshake: {exc}") from exc
        transport = WebSocketTransport(connection, stream, leftover)
        transport.answer_headers = answer_headers
        try:
            yield transport
        finally:
            # Cancelled, it closes before its first checkpoint.
            await transport.aclose()  # noqa: ASYNC102


@asynccontextmanager
async def accept_websocket(
    stream: trio.abc.Stream, *, request_head: bytes, leftover: bytes = b"", headers: _Headers = ()
) -> AsyncIterator[Transport]:
    """Make a WebSocket server of `stream`, and close it at the end.

    The upgrade request has been read already: `request_head` is its head with the empty line, `leftover` what
    came behind it. `headers` go with the 101. Raises WebSocketRefused, after answering with 400, when it is
    no handshake for us.
    """
    async with stream:
        tune(stream)
        try:
            connection = await _answer(stream, request_head, headers)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise WebSocketRefused("the client left before the answer to its upgrade") from None
        # A client must wait for the 101. If one does not, its frames count all the same.
        transport = WebSocketTransport(connection, stream, leftover)
        try:
            yield transport
        finally:
            # Cancelled, it closes before its first checkpoint.
            await transport.aclose()  # noqa: ASYNC102


async def _ask(
    stream: trio.abc.Stream, host: str, target: str, headers: _Headers
) -> tuple[Connection, bytes, _Headers]:
    """Send the client's handshake and read the server's; returns what came behind it and its headers, too."""
    upgrade = WSConnection(ConnectionType.CLIENT)
    request = Request(host=host, target=target, subprotocols=[SUBPROTOCOL], extra_headers=list(headers))
    received = b""
    end = None
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(upgrade.send(request))
        while end is None and len(received) <= _HEAD_BYTES_MAX:
            data = await stream.receive_some(_HEAD_BYTES_MAX)
            if not data:
                break
            received += data
            end = _END_OF_HEAD.search(received)
    if not received:
        raise WebSocketRefused("the connection ended before an answer to the upgrade")
    if not received.startswith(_HTTP[: len(received)]):
        raise WebSocketRefused("what answers speaks no HTTP")
    # wsproto gets no byte of a frame here: its decoder would keep it, and we not know where the next begins.
    head_bytes = len(received) if end is None else end.end()
    upgrade.receive_data(received[:head_bytes])
    for event in upgrade.events():
        if isinstance(event, AcceptConnection):
            if event.subprotocol != SUBPROTOCOL:
                reason = f"the answer to the upgrade lacks the subprotocol {SUBPROTOCOL}"
                raise WebSocketRefused(reason, status=101)
            assert upgrade.connection is not None
            return upgrade.connection, received[head_bytes:], tuple(event.extra_headers)
        if isinstance(event, RejectConnection):
            # The status and the headers say enough; the body has no bound.
            reason = f"the answer to the upgrade is {event.status_code} instead of 101"
            raise WebSocketRefused(reason, status=event.status_code, headers=tuple(event.headers))
    raise WebSocketRefused("the connection ended before an answer to the upgrade")


async def _answer(stream: trio.abc.Stream, request_head: bytes, headers: _Headers) -> Connection:
    """Answer the client's handshake."""
    upgrade = WSConnection(ConnectionType.SERVER)
    fault: Exception | None = None
    try:
        upgrade.receive_data(request_head)
    except (ProtocolError, UnicodeError) as exc:
        fault = exc
    if fault is not None:
        hint = fault.event_hint if isinstance(fault, RemoteProtocolError) else None
        await stream.send_all(upgrade.send(hint or RejectConnection(status_code=400)))
        raise WebSocketRefused(f"no WebSocket handshake: {fault}", status=400) from fault
    request = next(upgrade.events(), None)
    assert isinstance(request, Request), "a whole head"
    if SUBPROTOCOL not in request.subprotocols:
        text = f"the upgrade request does not offer the subprotocol {SUBPROTOCOL}"
        body = text.encode()
        length = (b"content-length", b"%d" % len(body))
        answer = RejectConnection(400, [(b"content-type", b"text/plain"), length], has_body=True)
        await stream.send_all(upgrade.send(answer) + upgrade.send(RejectData(body)))
        raise WebSocketRefused(text, status=400)
    accepted = AcceptConnection(subprotocol=SUBPROTOCOL, extra_headers=list(headers))
    await stream.send_all(upgrade.send(accepted))
    assert upgrade.connection is not None
    return upgrade.connection
