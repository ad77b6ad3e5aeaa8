"""The HTTP server: HTTP/1.1 over TLS, one task per connection, its requests in sequence.

The handler gets an `Exchange` and returns the answer. That is a `Response` with a known body, a `Streamed`
one that is written over time, or an `Upgrade` that takes over the connection. While a `Streamed` answer is
written, its connection is also read, so that a client that disconnects ends its watch at once.
"""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote, unquote_plus

import attrs
import h11
import trio

from sandbox.objects import encode
from sandbox.status import BODY_BYTES_MAX, StatusError, internal_error, too_large

log = logging.getLogger("sandbox")

# net/http's MaxHeaderBytes in the API server.
HEAD_BYTES_MAX = 1024 * 1024
# The API server's IdleTimeout and ReadHeaderTimeout.
IDLE_S = 90.0
HEAD_S = 32.0
HANDSHAKE_S = 10.0
READ_BYTES = 64 * 1024
# How much of an unwanted body is read, so that a reset does not destroy the answer.
DRAIN_BYTES_MAX = 16 * 1024 * 1024
DRAIN_S = 2.0
# Maximum pipelined requests while a long answer is written; more stay in the socket.
PIPELINED_BYTES_MAX = 64 * 1024

_BROKEN_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")

Headers = Sequence[tuple[str, str]]
Send = Callable[[bytes], Awaitable[None]]


@attrs.frozen
class Request:
    """A request's head; header names in lower case, order and repetition kept."""

    method: str
    target: str
    path: str
    query: Mapping[str, Sequence[str]]
    headers: tuple[tuple[bytes, bytes], ...]

    def header(self, name: bytes) -> str:
        """Return the first value of a header, or the empty string."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")

    def header_values(self, name: bytes) -> list[str]:
        """Return the value of every line of a header."""
        return [value.decode("latin-1") for key, value in self.headers if key == name]

    def option(self, name: str) -> str:
        """Return the first value of a query parameter, or the empty string."""
        values = self.query.get(name, ())
        return values[0] if values else ""

    def flag(self, name: str) -> bool:
        """Return a boolean query parameter as the API server reads it."""
        return name in self.query and self.option(name).lower() not in ("false", "0")

    @property
    def wants_upgrade(self) -> bool:
        """True if the client requests an upgrade."""
        tokens = ",".join(self.header_values(b"connection")).lower()
        return "upgrade" in tokens and bool(self.header(b"upgrade"))


@attrs.frozen
class Response:
    """An answer with a known body."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Headers = ()
    # The answer to a refused upgrade is the last one on its connection.
    close: bool = False

    @classmethod
    def of_error(cls, error: StatusError) -> Response:
        """Return an error as its Status."""
        body = encode(error.to_json()) + b"\n"
        return cls(error.code, body, headers=[*error.headers, ("X-Content-Type-Options", "nosniff")])


@attrs.frozen
class Streamed:
    """An answer that is written over time; it ends cleanly when `produce` returns."""

    produce: Callable[[Send], Awaitable[None]]
    content_type: str = "application/json"
    status: int = 200
    headers: Headers = ()


@attrs.frozen
class Upgrade:
    """Hands over the connection: `serve` gets the stream and the bytes after the request."""

    serve: Callable[[trio.abc.Stream, bytes], Awaitable[None]]


Answer = Response | Streamed | Upgrade
Handler = Callable[["Exchange"], Awaitable[Answer]]


class ClientGone(Exception):
    """The client disconnected or broke the protocol in the middle of a request; it cannot be answered."""


class Exchange:
    """One request, and its body if the handler reads it."""

    def __init__(self, connection: Connection, request: Request, peer: str) -> None:
        self._connection = connection
        self.request = request
        self.peer = peer

    async def read_body(self) -> bytes:
        """Return the body; raises StatusError if it is too large, and ClientGone."""
        length = self.request.header(b"content-length")
        if length and int(length) > BODY_BYTES_MAX:
            raise too_large()
        body = bytearray()
        while data := await self._connection.receive_body():
            body += data
            if len(body) > BODY_BYTES_MAX:
                raise too_large()
        return bytes(body)


class Connection:
    """One client's connection, until it ends."""

    def __init__(self, stream: trio.abc.Stream, handler: Handler, peer: str) -> None:
        self._stream = stream
        self._handler = handler
        self._peer = peer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        # The answer to HEAD has the headers of a body but no body.
        self._bodiless = False

    async def serve(self) -> None:
        """Answer requests until one side closes."""
        try:
            while (request := await self._next_request()) is not None:
                exchange = Exchange(self, request, self._peer)
                if not await self._answer(exchange, await self._handled(exchange)):
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as exc:
            await self._refuse(exc)

    async def _next_request(self) -> Request | None:
        """Return the next request; None if the client is done, or idle for too long."""
        deadline_s = HEAD_S if self._http.trailing_data[0] else IDLE_S
        with trio.move_on_after(deadline_s):
            event = await self._next_event()
            if isinstance(event, h11.Request):
                self._bodiless = event.method == b"HEAD"
                return _request(event)
        return None

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                assert not isinstance(event, type) or event is h11.PAUSED
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._receive()

    async def _receive(self) -> None:
        try:
            self._http.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))
        except trio.BrokenResourceError as exc:
            raise ClientGone from exc

    async def receive_body(self) -> bytes:
        """Return the next bytes of the request's body, and none at its end; raises ClientGone."""
        event = await self._next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.ConnectionClosed):
            raise ClientGone
        return b""

    async def _handled(self, exchange: Exchange) -> Answer:
        try:
            return await self._handler(exchange)
        except StatusError as error:
            return Response.of_error(error)
        except (h11.RemoteProtocolError, ClientGone):
            raise
        except Exception as exc:
            log.exception("%s %s failed", exchange.request.method, exchange.request.target)
            return Response.of_error(internal_error(str(exc)))

    async def _answer(self, exchange: Exchange, answer: Answer) -> bool:
        """Write an answer; True if the connection can be reused."""
        match answer:
            case Upgrade():
                return await self._upgrade(exchange, answer)
            case Streamed():
                return await self._stream_out(answer)
            case Response():
                return await self._respond(answer)

    async def _respond(self, answer: Response) -> bool:
        whole = self._rest_of_body_is_here() and not answer.close
        headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
        if not whole:
            headers.append(("Connection", "close"))
        events: list[h11.Event] = [_head(answer.status, answer.content_type, headers)]
        if not self._bodiless:
            events.append(h11.Data(data=answer.body))
        events.append(h11.EndOfMessage())
        await self._write(b"".join(self._http.send(event) or b"" for event in events))
        if not whole:
            await self._drain()
        return self._reusable()

    def _rest_of_body_is_here(self) -> bool:
        """Skip the received rest of a body that the handler did not read; True if that is all of it."""
        while self._http.their_state is h11.SEND_BODY:
            if self._http.next_event() is h11.NEED_DATA:
                return False
        return True

    def _reusable(self) -> bool:
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _drain(self) -> None:
        """Read on for a moment: closing with unread bytes resets the connection, and destroys the answer."""
        left = DRAIN_BYTES_MAX
        with trio.move_on_after(DRAIN_S):
            while left > 0 and (data := await self._read_raw()):
                left -= len(data)

    async def _read_raw(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except trio.BrokenResourceError:
            return b""

    async def _stream_out(self, answer: Streamed) -> bool:
        """Write a streamed answer until it ends or the client disconnects."""
        if not self._rest_of_body_is_here():
            return False
        headers = [*answer.headers, ("Transfer-Encoding", "chunked")]
        await self._send(_head(answer.status, answer.content_type, headers))
        ahead = bytearray()
        finished = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_client, ahead, nursery.cancel_scope)
            with contextlib.suppress(ClientGone):
                await answer.produce(self._send_data)
                finished = True
            nursery.cancel_scope.cancel()
        if not finished:
            return False
        await self._send(h11.EndOfMessage())
        if ahead:
            self._http.receive_data(bytes(ahead))
        return self._reusable()

    async def _watch_client(self, ahead: bytearray, scope: trio.CancelScope) -> None:
        """Keep pipelined data, and end the answer when the client disconnects."""
        while len(ahead) < PIPELINED_BYTES_MAX:
            data = await self._read_raw()
            if not data:
                scope.cancel()
                return
            ahead += data

    async def _upgrade(self, exchange: Exchange, answer: Upgrade) -> bool:
        if not self._rest_of_body_is_here():
            return False
        try:
            await answer.serve(self._stream, self._http.trailing_data[0])
        except UpgradeRefused as refused:
            return await self._respond(attrs.evolve(refused.response, close=True))
        return False

    async def _refuse(self, exc: h11.RemoteProtocolError) -> None:
        """Answer invalid HTTP as net/http does, and close."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        status = exc.error_status_hint
        body = f"{status} {_reason(status)}".encode()
        await self._send(
            _head(
                status,
                "text/plain; charset=utf-8",
                [("Content-Length", str(len(body))), ("Connection", "close")],
            )
        )
        await self._send(h11.Data(data=body))
        await self._drain()

    async def _send_data(self, data: bytes) -> None:
        if data and not self._bodiless:
            await self._send(h11.Data(data=data))

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ClientGone from exc


class UpgradeRefused(Exception):
    """Raised by an `Upgrade` before it writes anything: the connection ends with this answer instead."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


def _head(status: int, content_type: str, headers: Headers) -> h11.Response:
    lines = [("Content-Type", content_type)] if content_type else []
    lines += [*headers, ("Date", formatdate(usegmt=True))]
    return h11.Response(status_code=status, reason=_reason(status), headers=lines)


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase


def _request(event: h11.Request) -> Request:
    """Convert h11's event; raises RemoteProtocolError for ambiguous requests that h11 accepts."""
    headers = tuple(event.headers)
    names = [name for name, _ in headers]
    if b"content-length" in names and b"transfer-encoding" in names:
        raise h11.RemoteProtocolError("a request has one length")
    target = event.target.decode("latin-1")
    if not target.startswith("/"):
        raise h11.RemoteProtocolError("only paths are served here")
    path, _, query = target.partition("?")
    return Request(
        method=event.method.decode("ascii"),
        target=target,
        path=unquote(path),
        query=_parameters(query),
        headers=headers,
    )


def _parameters(query: str) -> dict[str, list[str]]:
    """Parse a query as Go's net/url does: a pair with a semicolon or a broken escape is dropped."""
    found: dict[str, list[str]] = {}
    for pair in query.split("&"):
        if pair and ";" not in pair and _BROKEN_ESCAPE.search(pair) is None:
            name, _, value = pair.partition("=")
            found.setdefault(unquote_plus(name), []).append(unquote_plus(value))
    return found


async def serve_connections(
    listeners: Sequence[trio.SocketListener], context: ssl.SSLContext, handler: Handler
) -> None:
    """Serve until cancelled."""

    async def serve_one(tcp: trio.SocketStream) -> None:
        try:
            peer = str(tcp.socket.getpeername()[0])
        except OSError:
            # Reset before it was accepted: the client is gone.
            await trio.aclose_forcefully(tcp)
            return
        stream = trio.SSLStream(tcp, context, server_side=True)
        try:
            with trio.fail_after(HANDSHAKE_S):
                await stream.do_handshake()
            await Connection(stream, handler, peer).serve()
            with trio.move_on_after(1):
                await stream.aclose()
        except (ClientGone, trio.BrokenResourceError, trio.TooSlowError):
            pass
        except Exception:
            log.exception("a connection of %s failed", peer)
        finally:
            await trio.aclose_forcefully(stream)

    await trio.serve_listeners(serve_one, list(listeners))
