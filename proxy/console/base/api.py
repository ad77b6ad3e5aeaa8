"""The admin API as the pages use it: in process, on behalf of the person who asks.

The API checks the person's role and records what is done, as for any other client. So all
that a page shows is in the API, and the command line can do the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode

import attrs
import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# In the scope's state, where the API finds who asks instead of a bearer token.
CALLER = "caller"

Answer = dict[str, Any]


def at(path: str, *names: str) -> str:
    """Return a path with these names in place of its `{}`: `at("/v1/agents/{}", name)`."""
    return path.format(*(quote(name, safe="") for name in names))


class ApiError(Exception):
    """A refusal of the API."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@attrs.frozen
class Api:
    """Asks the API for one person, during one request. Paths are percent-encoded; see `at`."""

    app: ASGIApp = attrs.field(repr=False)
    caller: object = attrs.field(repr=False)
    request: Request = attrs.field(repr=False)
    """The browser's request. The trail names its address and user agent."""

    async def get(self, path: str, **query: object) -> Answer:
        """Return an answer; raises ApiError. A value that is None or empty is left out of the query."""
        given = {name: str(value) for name, value in query.items() if value not in (None, "")}
        return await self._ask("GET", path, urlencode(given), b"")

    async def post(self, path: str, body: Mapping[str, object] | None = None) -> Answer:
        """Make a change; raises ApiError."""
        return await self._ask("POST", path, "", msgspec.json.encode(body or {}))

    async def delete(self, path: str) -> Answer:
        """Remove something; raises ApiError."""
        return await self._ask("DELETE", path, "", b"")

    async def stream(self, path: str, receive: Receive, send: Send, **query: object) -> None:
        """Answer the browser with a stream of the API; `send` may rewrite it."""
        given = {name: str(value) for name, value in query.items() if value not in (None, "")}
        scope = self._scope("GET", path, urlencode(given))
        # A browser that reconnects says where it was.
        ids = self.request.headers.getlist("last-event-id")
        scope["headers"] += [(b"last-event-id", value.encode("latin-1")) for value in ids]
        await self.app(scope, receive, send)

    async def _ask(self, method: str, path: str, query: str, body: bytes) -> Answer:
        sent: list[Message] = []
        received = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return received.pop() if received else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(self._scope(method, path, query), receive, send)
        status = int(sent[0]["status"])
        answer = msgspec.json.decode(b"".join(message.get("body", b"") for message in sent[1:]))
        if status >= 400:
            error = answer["error"]
            raise ApiError(status, error["code"], error["message"])
        assert isinstance(answer, dict)
        return answer

    def _scope(self, method: str, path: str, query: str) -> Scope:
        agents = [
            (b"user-agent", value.encode("latin-1")) for value in self.request.headers.getlist("user-agent")
        ]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [*agents, (b"content-type", b"application/json")],
            "client": self.request.scope.get("client"),
            "server": self.request.scope.get("server"),
            "state": {CALLER: self.caller},
        }
