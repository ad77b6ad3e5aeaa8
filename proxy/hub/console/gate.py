"""The checks before the console's pages and before /v1 at its listener, and the headers of all answers.

A request is for the console's own host. A person's cookie reads /v1, and never changes anything there: a
change is a form of a page. An admin token counts at /v1 only if it was made with --remote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import msgspec

from proxy.hub.admin.asgi import Application, Message, Receive, Scope, Send
from proxy.hub.admin.operators import KNOWN, REMOTE
from proxy.hub.admin.verbs.callers import CALLER
from proxy.hub.console.origin import Origin
from proxy.hub.console.people import People, Person
from proxy.hub.console.sign_in import PERSON

_API = "/v1/"
_READS = "GET", "HEAD"

# Called with the person of an authenticated request.
Known = Callable[[Person], None]


@attrs.frozen
class Gate:
    """An ASGI application around the pages and the admin API."""

    origin: Origin
    people: People
    pages: Application
    api: Application
    headers: Mapping[bytes, bytes] = attrs.field(init=False)

    @headers.default
    def _headers_of_origin(self) -> Mapping[bytes, bytes]:
        return self.origin.headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the scope's state has the connection's KNOWN_PERSON and KNOWN."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._secured(message.get("headers", ()))}
            await send(message)

        await self._route(scope, receive, send_with_headers)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path, state = scope["headers"], scope["path"], scope["state"]
        known: Known = state.pop(KNOWN_PERSON)
        if not self.origin.is_for_it(headers):
            await _refuse(send, 421, "misdirected", f"the console is at {self.origin.url.decode()}")
            return
        if path.startswith(_API) and any(name == b"authorization" for name, _ in headers):
            state[REMOTE] = True
            await self.api(scope, receive, send)
            return
        # A token does not count for pages.
        del state[KNOWN]
        person = await self._person(headers)
        if person is not None:
            if why := self.people.directory.refusal():
                # Another hub may have ended the session.
                await _refuse(send, 503, "unconfirmed", why)
                return
            known(person)
        if path.startswith(_API):
            await self._read_api(person, scope, receive, send)
        elif scope["method"] not in {*_READS, "POST"}:
            await _refuse(send, 405, "method_not_allowed", "pages are read by GET, and changed by POST")
        elif scope["method"] == "POST" and (fault := self.origin.cross_site(headers)):
            # Each form's handler checks its token, and that again.
            await _refuse(send, 403, "cross_site", fault)
        else:
            state[PERSON] = person
            await self.pages(scope, receive, send)

    async def _person(self, headers: list[tuple[bytes, bytes]]) -> Person | None:
        cookie = self.origin.session_in(headers)
        return None if cookie is None else await self.people.look_up(cookie)

    async def _read_api(self, person: Person | None, scope: Scope, receive: Receive, send: Send) -> None:
        if person is None:
            await _refuse(send, 401, "unauthenticated", "sign in, or send an admin token made with --remote")
        elif scope["method"] not in _READS:
            await _refuse(send, 405, "method_not_allowed", "a session reads /v1; pages make changes")
        elif self.origin.is_read_by_another_site(scope["headers"]):
            await _refuse(send, 403, "cross_site", "another site's page may not read /v1")
        else:
            scope["state"][CALLER] = self.people.caller(person)
            await self.api(scope, receive, send)

    def _secured(self, headers: object) -> list[tuple[bytes, bytes]]:
        """Add the headers of all answers, and `no-store` where an answer has no `cache-control`."""
        assert isinstance(headers, (list, tuple))
        given = [(name.lower(), value) for name, value in headers]
        found = [(name, value) for name, value in given if name not in self.headers]
        found.extend(self.headers.items())
        if not any(name == b"cache-control" for name, _ in found):
            found.append((b"cache-control", b"no-store"))
        return found


# In the scope's state: a function, called with the person of an authenticated request.
KNOWN_PERSON = "known_person"


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = msgspec.json.encode({"error": {"code": code, "message": message}}) + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
