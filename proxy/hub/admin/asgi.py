"""A thin ASGI 3 bridge: an application on this package's HTTP/1.1 server. HTTP scopes only.

It exists because one client must never affect another connection or a tunnel. In the existing servers for
trio, one malformed upgrade can cancel the nursery around the server. Here an application runs in the task of
its connection. An exception from it becomes a 500, or a cut when its answer has begun, and no task outlives
the request.
"""

from __future__ import annotations

import http
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import trio

from proxy.exchange.server import ServerConnection
from proxy.hub.admin.streams.cut import CutError
from proxy.message.failure import InboundBroken, StreamCode
from proxy.message.head import HeadError, Headers, RequestHead, ResponseHead, check_framing
from proxy.message.strict import BadRequest

# The types in the ASGI specification.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = tuple[str, int]

# An administrator's request is a small JSON document.
REQUEST_BODY_BYTES_MAX = 1 << 20

_log = logging.getLogger(__name__)


class ApplicationError(Exception):
    """The application broke the ASGI protocol."""


async def serve_connection(
    app: Application,
    stream: trio.abc.Stream,
    *,
    scheme: str = "https",
    client: Address | None = None,
    server: Address | None = None,
) -> None:
    """Serve one connection until it ends, and close it. No client's or application's fault makes it raise."""
    connection = ServerConnection(stream)
    try:
        while True:
            try:
                request = await connection.next_request()
            except BadRequest as exc:
                await refuse(connection, exc.status, exc.message)
                continue
            if request is None:
                return
            await serve_request(app, connection, request, scheme=scheme, client=client, server=server)
    except InboundBroken:
        return
    finally:
        await connection.aclose()


async def serve_request(
    app: Application,
    connection: ServerConnection,
    request: RequestHead,
    *,
    scheme: str = "https",
    client: Address | None = None,
    server: Address | None = None,
    headers: Headers = (),
) -> None:
    """Let the application answer one request; raises InboundBroken when the client is gone.

    An answer that the application does not make gets `headers` too.
    """
    if request.upgrade is not None:
        status = 426 if request.upgrade.lower() == b"websocket" else 400
        await refuse(connection, status, "no upgrade is served", headers)
        return
    length = request.body_length
    if length is not None and length > REQUEST_BODY_BYTES_MAX:
        message = f"the request's body is larger than {REQUEST_BODY_BYTES_MAX} bytes"
        await refuse(connection, 413, message, headers)
        return
    call = _Call(connection, request, headers)
    try:
        await app(_scope(request, scheme, client, server), call.receive, call.send)
        if not call.ended:
            raise ApplicationError("the application returned before its answer was complete")
    except CutError:
        await call.give_up(500, "the answer was cut")
    except Exception:
        # The only wrapper around an application: its fault ends this request and nothing else. A client's
        # fault arrives here too; the application may have wrapped it in a group or another exception.
        if call.client_failure is not None:
            await call.give_up(*call.client_failure)
            return
        _log.exception("the application failed at %s %s", request.method, request.target.partition(b"?")[0])
        await call.give_up(500, "internal error")


class _Call:
    """The two callables of one ASGI call."""

    def __init__(self, connection: ServerConnection, request: RequestHead, headers: Headers) -> None:
        self._connection = connection
        self._headers = headers
        self._request = request
        self._received = 0
        self._body_ended = False
        self._head: ResponseHead | None = None
        self._begun = False
        self.ended = False
        self.client_failure: tuple[int, str] | None = None
        """The status and message of a client's fault, if that made the application fail."""

    async def receive(self) -> Message:
        if self._body_ended or self.ended:
            # The application waits for the client's disconnect.
            if not self.ended:
                await self._connection.wait_disconnect()
            await trio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}
        try:
            data = await self._connection.receive_body()
        except InboundBroken as exc:
            # No fault of the application's, even if it raises. Its traceback would be 3 KB of log, and a
            # request of any client can be cut.
            self.client_failure = 400, exc.failure.reason
            if exc.failure.code is StreamCode.CANCEL:
                self._body_ended = True
                return {"type": "http.disconnect"}
            raise
        self._received += len(data)
        if self._received > REQUEST_BODY_BYTES_MAX:
            self.client_failure = 413, f"the request's body is larger than {REQUEST_BODY_BYTES_MAX} bytes"
            raise ApplicationError("the client's body is too large")
        self._body_ended = not data
        return {"type": "http.request", "body": data, "more_body": bool(data)}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.client_failure is not None:
            # A framework's own answer to the client's fault is dropped.
            await trio.lowlevel.checkpoint()
        elif kind == "http.response.start" and self._head is None:
            # Buffered until the first body bytes, so that a small answer is one write.
            self._head = _response_head(message)
        elif kind == "http.response.body" and self._head is not None and not self.ended:
            body = bytes(message.get("body", b""))
            end = not message.get("more_body", False)
            await self._send_body(body, end)
        else:
            raise ApplicationError(f"the application sent {kind!r} out of order")

    async def _send_body(self, body: bytes, end: bool) -> None:
        assert self._head is not None, "checked by the caller"
        begun, self._begun = self._begun, True
        try:
            if begun:
                await self._connection.send_body(body, end=end)
            else:
                await self._connection.send_head(self._head, body, end=end)
        except InboundBroken as exc:
            self.client_failure = 400, exc.failure.reason
            raise
        self.ended = end

    async def give_up(self, status: int, message: str) -> None:
        """End the application's answer: with a status if nothing was sent, by a cut if a part was."""
        if self.ended:
            return
        if self._begun:
            await self._connection.cut()
            return
        self._begun = self.ended = True
        await refuse(self._connection, status, message, self._headers)


async def refuse(connection: ServerConnection, status: int, message: str, headers: Headers = ()) -> None:
    """Answer a request with a text, without an application."""
    body = message.encode("utf-8") + b"\n"
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    if status == 426:
        own.append((b"connection", b"close"))
    phrase = http.HTTPStatus(status).phrase.encode("ascii")
    await connection.answer(ResponseHead.of(status, phrase, (*own, *headers)), body)


def _scope(request: RequestHead, scheme: str, client: Address | None, server: Address | None) -> Scope:
    raw_path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method.decode("ascii"),
        "scheme": scheme,
        # Decoded once, as the specification requires; invalid UTF-8 becomes U+FFFD.
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": list(request.headers),
        "client": client,
        "server": server,
        "state": {},
    }


def _response_head(message: Message) -> ResponseHead:
    status = int(message["status"])
    if not 200 <= status <= 599:
        raise ApplicationError(f"the application answered with status {status}")
    headers = tuple((bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ()))
    # The connection does the framing; the application's content-length is kept.
    headers = tuple(header for header in headers if header[0] not in {b"transfer-encoding", b"connection"})
    try:
        check_framing(headers)
        phrase = http.HTTPStatus(status).phrase.encode("ascii")
    except HeadError as exc:
        raise ApplicationError(str(exc)) from exc
    except ValueError:
        phrase = b""
    return ResponseHead.of(status, phrase, headers)
