"""Live calls: the table, and ending calls."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import attrs
from starlette.types import ASGIApp

from proxy.console.app import console_app
from proxy.console.pages.calls import ROWS_MAX
from proxy.hub.store.roles import Role
from tests.console.fakes import CSRF, FakePerson, FakeSignIn
from tests.console.markup import text_of
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


async def test_a_call_that_has_ended_meanwhile_is_said_to_have(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        one = bench.sessions.live.pop()
        asked = await call(app, "GET", f"/calls/end?id={one.id}")
        assert "Already ended" in text_of(asked.body)
        ended = await post(app, "/calls/end", id=one.id, reason="too long", csrf=CSRF)
        shown = await call(app, "GET", ended.headers["location"])
        assert "This call had ended already. Nothing was changed." in text_of(shown.body)


async def test_all_calls_of_an_agent_are_ended(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        agent = bench.sessions.live[0].agent
        count = sum(one.agent == agent for one in bench.sessions.live)
        asked = await call(app, "GET", f"/calls/end?agent={agent}")
        assert f"End {count} call" in text_of(asked.body)
        ended = await post(app, "/calls/end", agent=agent, reason="too long", csrf=CSRF)
        shown = await call(app, "GET", ended.headers["location"])
        assert f"Ended {count} call" in text_of(shown.body)


async def test_a_refused_reason_is_shown_in_the_words_of_the_api(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        refused = await post(app, "/calls/end", id="x", reason=" ", csrf=CSRF)
        assert refused.status == 422
        assert "Nothing was changed The reason is 1 to 200 printable characters." in text_of(refused.body)


async def test_an_agent_is_locked_and_unlocked(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        for verb, state in (("lock", "locked"), ("unlock", "active")):
            assert "deploy-bot?" in text_of((await call(app, "GET", f"/agents/deploy-bot/{verb}")).body)
            done = await post(app, f"/agents/deploy-bot/{verb}", csrf=CSRF)
            assert (done.status, done.headers["location"].partition("?")[0]) == (303, "/agents/deploy-bot")
            assert bench.directory.current.agents_by_name["deploy-bot"].state == state


async def test_of_many_calls_the_newest_are_shown(tmp_path: Path) -> None:
    async with open_world(tmp_path, calls=ROWS_MAX + 1, events=1) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        page = (await call(app, "GET", "/calls")).body
        assert page.count(b'<tr id="row-') == ROWS_MAX
        oldest, *others = bench.sessions.live
        assert oldest.id.encode() not in page
        assert page.index(others[-1].id.encode()) < page.index(others[0].id.encode())
        assert f"{ROWS_MAX + 1} calls under way, the newest {ROWS_MAX} of them here" in text_of(page)
        # An open page reads them each few seconds, so it asks for no others.
        answer = await bench.ok("GET", f"/v1/sessions?limit={ROWS_MAX}")
        assert (len(answer["sessions"]), answer["total"]) == (ROWS_MAX, ROWS_MAX + 1)
        assert answer["sessions"][0]["id"] == others[0].id


async def test_hubs_that_did_not_answer_are_named(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        bench.sessions.beside = 1
        assert "1 replaced hub still finishing" in text_of((await call(app, "GET", "/calls")).body)


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


async def test_a_stated_reason_is_shown_as_a_claim(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        assert "claims:" not in text_of((await call(app, "GET", "/calls")).body)
        live = bench.sessions.live
        live[0] = attrs.evolve(live[0], claimed_reason="the <b>pod</b> hangs")
        assert "claims: the <b>pod</b> hangs" in text_of((await call(app, "GET", "/calls")).body)
