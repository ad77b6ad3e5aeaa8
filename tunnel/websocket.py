"""The transport over a WebSocket (RFC 6455): trio-websocket on our own streams.

trio-websocket does the handshake and the life cycle. What it leaves open is closed here, each met in its
source: its reader may end before the handshake does, and then nobody wakes who waits for it; a refusal is
read to its end, however long; a connection that the peer broke is never closed; a cancelled send leaves
half a frame, and the next one is sent behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import h11
import trio
import wsproto.events
import wsproto.utilities
from trio_websocket import CloseReason, ConnectionClosed, ConnectionRejected, WebSocketConnection
from wsproto import ConnectionType
from wsproto.connection import ConnectionState

from tunnel.net import peer_address, tune
from tunnel.transport import MESSAGE_BYTES_MAX, Transport, TransportClosed
from tunnel.websocket_frames import FastWSConnection

__all__ = ["SUBPROTOCOL", "WebSocketRefused", "accept_websocket", "dial_websocket"]

SUBPROTOCOL: Final = "hawse.v1"

# The session's reader takes each message at once, so one place would do. A few let a burst of small messages
# through without a task switch for each; more would only be memory for a peer to fill.
MESSAGE_QUEUE: Final = 8

# Under the size from which memory comes from mmap; a TLS wakeup brings no more.
RECEIVE_BYTES_MAX: Final = 64 * 1024

# For both Close frames. A peer that is alive answers within a round trip; for any other there is no reason
# to wait.
CLOSE_S: Final = 2.0

_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006
_UNSUPPORTED_DATA: Final = 1003

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
    connection = _Connection(
        stream,
        FastWSConnection(ConnectionType.CLIENT),
        host=host,
        path=target,
        client_subprotocols=[SUBPROTOCOL],
        client_extra_headers=list(headers),
        message_queue_size=MESSAGE_QUEUE,
        max_message_size=MESSAGE_BYTES_MAX,
        receive_buffer_size=RECEIVE_BYTES_MAX,
    )
    async with _running(connection, stream) as transport:
        await connection.wait_open()
        if connection.subprotocol != SUBPROTOCOL:
            raise WebSocketRefused(
                f"the answer to the upgrade lacks the subprotocol {SUBPROTOCOL}", status=101
            )
        yield transport


@asynccontextmanager
async def accept_websocket(
    stream: trio.abc.Stream, *, request_head: bytes, leftover: bytes = b""
) -> AsyncIterator[Transport]:
    """Make a WebSocket server of `stream`, and close it at the end.

    The upgrade request has been read already: `request_head` is its head with the empty line, `leftover` what
    came behind it. Raises WebSocketRefused, after answering with 400, when it is no handshake for us.
    """
    replay = _Replay(stream, request_head, leftover)
    connection = _Connection(
        replay,
        FastWSConnection(ConnectionType.SERVER),
        message_queue_size=MESSAGE_QUEUE,
        max_message_size=MESSAGE_BYTES_MAX,
        receive_buffer_size=RECEIVE_BYTES_MAX,
    )
    async with _running(connection, stream) as transport:
        await connection.accept_request()
        replay.upgraded.set()
        yield transport


@asynccontextmanager
async def _running(connection: _Connection, stream: trio.abc.Stream) -> AsyncIterator[_WebSocketTransport]:
    """Run the reader of `connection` around the body, and close everything behind it."""
    tune(stream)
    transport = _WebSocketTransport(connection, stream, peer_address(stream))
    failure: Exception | None = None
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(connection.run_reader)
        try:
            yield transport
        except Exception as exc:
            # Raised again outside of the nursery, which would wrap it in a group.
            failure = exc
        await transport.aclose()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _WebSocketTransport(Transport):
    def __init__(self, connection: _Connection, stream: trio.abc.Stream, peer_name: str) -> None:
        self.peer_name = peer_name
        self._connection = connection
        self._stream = stream
        self._ending: tuple[int | None, str] | None = None
        self._closing = False

    async def send(self, message: bytes) -> None:
        assert len(message) <= MESSAGE_BYTES_MAX, (
            f"{len(message)} bytes exceed a message of {MESSAGE_BYTES_MAX}"
        )
        if self._ending is not None:
            raise TransportClosed(*self._ending)
        try:
            await self._connection.send_message(message)
        except (ConnectionClosed, wsproto.utilities.LocalProtocolError):
            raise self._closed() from None
        except BaseException:
            # Half a frame may be on its way, and nothing can follow it.
            self._ending = (None, "a send was cancelled")
            await trio.aclose_forcefully(self._stream)
            raise

    async def receive(self) -> bytes:
        try:
            message = await self._connection.get_message()
        except ConnectionClosed:
            raise self._closed() from None
        if isinstance(message, str):
            await self.aclose(_UNSUPPORTED_DATA, "only binary messages")
            raise self._closed()
        return message

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self._closing:
            await trio.lowlevel.checkpoint()
            return
        self._closing = True
        if self._ending is None and self._connection.closed is None:
            self._ending = (code, reason)
        try:
            with trio.move_on_after(CLOSE_S):
                await self._connection.aclose(code, reason)
        finally:
            await self._stream.aclose()

    def _closed(self) -> TransportClosed:
        if self._ending is None:
            self._ending = self._connection.ending()
        return TransportClosed(*self._ending)


class _Connection(WebSocketConnection):
    """trio-websocket's connection, with an end that everybody sees."""

    _fault: str | None = None
    _refusal: WebSocketRefused | None = None
    _waiting: trio.CancelScope | None = None

    async def run_reader(self) -> None:
        try:
            await self._reader_task()
        except ConnectionRejected as exc:
            reason = f"the answer to the upgrade is {exc.status_code} instead of 101"
            self._refusal = WebSocketRefused(reason, status=exc.status_code, headers=exc.headers)
        except (wsproto.utilities.ProtocolError, h11.ProtocolError, UnicodeError) as exc:
            self._fault = f"no WebSocket handshake: {_first_fault(exc)}"
        except ConnectionClosed:
            pass
        finally:
            # Whatever anybody waits for now will not come.
            self._close_handshake.set()
            if self._waiting is not None:
                self._waiting.cancel()

    async def wait_open(self) -> None:
        """Wait for the server's answer. Raises WebSocketRefused."""
        with trio.CancelScope() as self._waiting:
            await self._open_handshake.wait()
        self._waiting = None
        if not self._open_handshake.is_set():
            if self._refusal is not None:
                raise self._refusal
            raise WebSocketRefused(self._fault or "the connection ended before an answer to the upgrade")

    async def accept_request(self) -> None:
        """Answer the client's request. Raises WebSocketRefused."""
        request = None
        with trio.CancelScope() as self._waiting:
            request = await self._get_request()
        self._waiting = None
        if request is None:
            # wsproto has found fault with the request, and trio-websocket has answered it.
            raise WebSocketRefused(self._fault or "the upgrade request is no WebSocket handshake", status=400)
        try:
            if SUBPROTOCOL not in request.proposed_subprotocols:
                text = f"the upgrade request does not offer the subprotocol {SUBPROTOCOL}"
                await request.reject(
                    400, extra_headers=[(b"content-type", b"text/plain")], body=text.encode()
                )
                raise WebSocketRefused(text, status=400)
            await request.accept(subprotocol=SUBPROTOCOL)
        except ConnectionClosed:
            raise WebSocketRefused("the client left before the answer to its upgrade") from None

    async def _handle_reject_connection_event(self, event: wsproto.events.RejectConnection) -> None:
        # The status and the headers say enough; the body has no bound.
        raise ConnectionRejected(event.status_code, tuple(event.headers), body=None)

    async def _handle_close_connection_event(self, event: wsproto.events.CloseConnection) -> None:
        if self._wsproto.state is ConnectionState.OPEN:
            # The peer has broken the protocol. trio-websocket notes that, and does not tell the peer.
            self._close_reason = CloseReason(event.code, event.reason)
            with suppress(ConnectionClosed):
                await self._send(event.response())
        await super()._handle_close_connection_event(event)

    def ending(self) -> tuple[int | None, str]:
        """Return the code and the reason with which the connection ended."""
        closed: CloseReason | None = self._close_reason
        if closed is None or closed.code == _ABNORMAL:
            return None, self._fault or "the connection ended without a Close frame"
        if closed.code == _NO_STATUS:
            return None, "the peer closed without a code"
        return closed.code, closed.reason or closed.name


def _first_fault(exc: BaseException) -> BaseException:
    """Return what was wrong with the peer's handshake.

    trio-websocket tries to answer it with a refusal, also as a client, and fails in that.
    """
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, wsproto.utilities.RemoteProtocolError):
            return cause
        cause = cause.__context__
    return exc


class _Replay(trio.abc.Stream):
    """`stream`, with what was read of it before in front again."""

    def __init__(self, stream: trio.abc.Stream, request_head: bytes, leftover: bytes) -> None:
        self._stream = stream
        self._head = request_head
        self._leftover = leftover
        # A client must wait for the 101. If one does not, its frames wait here: wsproto would take them for
        # the body of the request, and lose them.
        self.upgraded = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._head:
            await trio.lowlevel.checkpoint()
            head, self._head = self._head, b""
            return head
        if not self.upgraded.is_set():
            await self.upgraded.wait()
        if self._leftover:
            await trio.lowlevel.checkpoint()
            leftover, self._leftover = self._leftover, b""
            return leftover
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
