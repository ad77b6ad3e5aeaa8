"""Requests to an ASGI application, in process: what a server would hand it and what it answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import attrs
import trio
from starlette.types import ASGIApp

from proxy.hub.admin.streams.cut import CutError


@attrs.frozen
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def scope_of(
    method: str,
    target: str,
    headers: dict[str, str] | None = None,
    state: dict[str, object] | None = None,
) -> MutableMapping[str, Any]:
    """Return the scope of a request; `state` is what another part of the hub has put there."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8444),
        "state": state or {},
    }


async def call(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: dict[str, str] | None = None,
    chunks: list[bytes] | None = None,
    before_the_last: Callable[[], Awaitable[object]] | None = None,
    state: dict[str, object] | None = None,
) -> Reply:
    """Send the body in chunks; `before_the_last` is what happens before its last one comes."""
    waiting = list(chunks or [b""])
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if not waiting:
            return {"type": "http.disconnect"}
        chunk = waiting.pop(0)
        if not waiting and before_the_last is not None:
            await before_the_last()
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    # A stream ends when its client leaves, which is after the request here.
    with suppress(CutError):
        await app(scope_of(method, target, headers, state), receive, send)
    start, *rest = sent
    return Reply(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in rest),
    )


@attrs.define(eq=False)
class Follower:
    """The client of an answer that has no end of its own, such as server-sent events."""

    status: int = 0
    headers: dict[str, str] = attrs.Factory(dict)
    ended: bool = False
    """Whether the answer is complete."""
    takes: trio.Event = attrs.Factory(trio.Event)
    """Not set: the client takes nothing, and `send` waits."""
    gone: trio.Event = attrs.Factory(trio.Event)
    """Set: the client has closed its connection."""
    _asked: bool = False
    _pieces: list[bytes] = attrs.Factory(list)
    _more: trio.Event = attrs.Factory(trio.Event)

    @classmethod
    def taking(cls) -> Follower:
        """Return a client that takes everything."""
        client = cls()
        client.takes.set()
        return client

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's receive."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's send."""
        await self.takes.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        self._pieces.append(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        self._more.set()

    async def piece(self) -> bytes:
        """Return what is sent next; b"" at the end."""
        while not self._pieces:
            if self.ended:
                return b""
            self._more = trio.Event()
            await self._more.wait()
        return self._pieces.pop(0)

    async def event(self) -> dict[str, str]:
        """Return the next event, by its fields; {} at the end. Each piece has one."""
        while piece := await self.piece():
            fields = dict(line.split(": ", 1) for line in piece.decode().splitlines() if ": " in line)
            if "data" in fields:
                return fields
        return {}
