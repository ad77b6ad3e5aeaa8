"""Live calls: the table, and ending calls."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

from starlette.types import ASGIApp

from proxy.console.app import console_app
from proxy.hub.store.roles import Role
from tests.console.fakes import CSRF, FakePerson, FakeSignIn
from tests.console.world import open_world
from tests.fakes.asgi import Reply, call


async def post(app: ASGIApp, target: str, **fields: str) -> Reply:
    return await call(app, "POST", target, chunks=[urlencode(fields).encode()])


async def test_a_call_is_ended_with_its_reason(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        one = bench.sessions.live[0]
        asked = await call(app, "GET", f"/calls/end?id={one.id}")
        assert one.agent.encode() in asked.body
        ended = await post(app, "/calls/end", id=one.id, reason="too long", csrf=CSRF)
        assert ended.status == 303
        assert b"Ended 1 call." in (await call(app, "GET", ended.headers["location"])).body
        [killed] = bench.sessions.killed
        assert (killed["id"], killed["reason"]) == (one.id, "killed by the operator ops: too long")


async def test_nothing_is_ended_without_the_token_of_the_session(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        one = bench.sessions.live[0]
        refused = await post(app, "/calls/end", id=one.id, reason="too long", csrf="another")
        assert refused.status == 403
        assert bench.sessions.killed == []


async def test_a_page_that_the_role_may_not_see_names_the_roles_that_may(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        sign_in = FakeSignIn(FakePerson(Role.VIEWER))
        app = console_app(bench.app, sign_in, "hub.example", bench.clock)
        refused = await call(app, "GET", "/calls")
        assert refused.status == 403
        assert b"<strong>operator</strong> or <strong>admin</strong>" in refused.body
