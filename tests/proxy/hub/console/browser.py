"""A browser at the console: the gate around the real pages and the real admin API, in process."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import urlencode

import attrs
from starlette.types import Receive, Scope, Send

from proxy.console.app import console_app
from proxy.hub.admin.operators import KNOWN
from proxy.hub.console.gate import KNOWN_PERSON, Gate
from proxy.hub.console.origin import Origin
from proxy.hub.console.people import People, Person
from proxy.hub.console.sign_in import ConsoleSignIn
from tests.fakes.admin import PEPPER, TOKEN, Bench
from tests.fakes.admin_bench import CONSOLE_URL
from tests.fakes.asgi import Reply, call

HOST = CONSOLE_URL.removeprefix("https://")
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


@attrs.define
class Browser:
    """One browser; each of its requests is a connection's first."""

    bench: Bench
    sign_in: ConsoleSignIn
    gate: Gate
    cookie: str = ""
    known: list[Person | str | None] = attrs.Factory(list)
    """What the requests have shown to their connections."""

    @classmethod
    def at(cls, bench: Bench) -> Self:
        """A browser at a hub with the store of a bench."""
        origin = Origin.of(CONSOLE_URL)
        people = People(bench.directory, PEPPER, bench.clock)
        sign_in = ConsoleSignIn(people, origin, bench.recorder, bench.spread)
        pages = console_app(bench.app, sign_in, "hub.example", bench.clock)
        return cls(bench, sign_in, Gate(origin, people, pages, bench.app))

    def another(self) -> Browser:
        """Another browser, at the same hub."""
        return Browser(self.bench, self.sign_in, self.gate)

    async def ask(self, method: str, target: str, form: dict[str, str] | None = None, **more: str) -> Reply:
        """Ask as this browser; `more` are headers, with _ for -, which replace the browser's own."""
        headers = {"host": HOST, **({"cookie": self.cookie} if self.cookie else {})}
        headers |= SAME_ORIGIN if form is not None else {}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        headers = {name: value for name, value in headers.items() if value}
        chunks = None if form is None else [urlencode(form).encode()]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = {KNOWN_PERSON: self.known.append, KNOWN: self.known.append}
            await self.gate(scope, receive, send)

        return await call(app, method, target, headers=headers, chunks=chunks)

    async def open_code(self, token: str = TOKEN, **body: int) -> str:
        """Ask the admin API for a code."""
        made: Any = await self.bench.ask("POST", "/v1/console/codes", body, token=token)
        assert made.status == 201, made.body
        code: str = made.json["code"]
        return code

    async def redeem(self, code: str) -> Reply:
        """Post a code, as the click does."""
        reply = await self.ask("POST", "/signin", {"code": code})
        if "set-cookie" in reply.headers:
            self.cookie = reply.headers["set-cookie"].partition(";")[0]
        return reply

    async def open(self, token: str = TOKEN) -> None:
        """Sign in with the role of a token."""
        assert (await self.redeem(await self.open_code(token))).status == 303

    @property
    def person(self) -> Person:
        """Who this browser was at its last request."""
        person = next(each for each in reversed(self.known) if isinstance(each, Person))
        return person
