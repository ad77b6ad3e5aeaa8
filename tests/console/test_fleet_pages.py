"""The pages of agents, clusters, teams and policies over the real API."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import trio
import trio.testing
from starlette.types import ASGIApp

from auth.apikey import hash as hash_key
from proxy.console.app import console_app
from proxy.hub.admin.simulation.job import Outcome
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.store.roles import Role
from tests.console.fakes import CSRF, FakePerson, FakeSignIn
from tests.console.fleet_data import READERS, SIMULATED
from tests.console.markup import faults_of, text_of
from tests.console.world import open_world
from tests.fakes.admin import PEPPER, Bench
from tests.fakes.asgi import Reply, call


@asynccontextmanager
async def world(
    folder: Path, role: Role = Role.ADMIN, **size: object
) -> AsyncIterator[tuple[Bench, ASGIApp]]:
    async with open_world(folder, **size) as bench:  # type: ignore[arg-type]  # counts and flags
        yield bench, app_for(bench, FakeSignIn(FakePerson(role)))


def app_for(bench: Bench, sign_in: FakeSignIn) -> ASGIApp:
    return console_app(bench.app, sign_in, "hub.example", bench.clock)


async def post(app: ASGIApp, target: str, **fields: str) -> Reply:
    return await call(app, "POST", target, chunks=[urlencode({**fields, "csrf": CSRF}).encode()])


async def shown(app: ASGIApp, target: str) -> str:
    reply = await call(app, "GET", target)
    assert reply.status == 200, (target, reply.status, text_of(reply.body))
    return text_of(reply.body)


async def test_an_empty_hub_says_what_comes_first(tmp_path: Path) -> None:
    async with world(tmp_path, clusters=0, agents=0, calls=0, events=0) as (_, app):
        assert "hawse admin agent add NAME" in await shown(app, "/agents")
        assert "Add the first one" in await shown(app, "/clusters")
        assert "hawse admin team add NAME" in await shown(app, "/teams")
        # Nothing is asked for, so the form is not at fault.
        assert "Check " not in (await shown(app, "/add-cluster")).partition("The cluster")[2]


async def test_a_page_of_many_agents_leads_to_the_others(tmp_path: Path) -> None:
    async with world(tmp_path, agents=103, calls=0, events=0) as (_, app):
        first = await call(app, "GET", "/agents?team=platform")
        text = text_of(first.body)
        assert re.search(r"1–\d+ of \d+|Team platform", text)
        page = unescape((await call(app, "GET", "/agents")).body.decode())
        assert "1–100 of 103" in page
        [following] = re.findall(r'rel="next" href="([^"]+)"', page)
        last = unescape((await call(app, "GET", "/agents?offset=100")).body.decode())
        assert following == "/agents?offset=100"
        assert ("101–103 of 103" in last, 'rel="next"' in last) == (True, False)
        assert len(re.findall(r'<a class="name"', last)) == 3
        # A filter in a link stays when one searches.
        assert b'<input type="hidden" name="team" value="platform">' in first.body


async def test_a_code_is_shown_once_and_a_key_is_revoked(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        made = await post(app, "/agents/oncall-helper/code")
        [code] = set(re.findall(r"hwc_\w+", made.body.decode()))
        assert made.headers["cache-control"] == "no-store"
        agent, _ = bench.directory.current.codes_by_hash[hash_key(code, PEPPER)]
        assert agent.name == "oncall-helper"
        again = await call(app, "GET", "/agents/oncall-helper/code")
        for page in (again, await call(app, "GET", "/agents/oncall-helper")):
            assert code.encode() not in page.body
        assert "1 unused code" in text_of((await call(app, "GET", "/agents/oncall-helper")).body)
        trail = [event.note for event in bench.recorder.events]
        assert not any(code in note for note in trail)
        # A key is revoked once.
        key = (await bench.ok("GET", "/v1/agents/deploy-bot"))["keys"][0]["id"]
        path = f"/agents/deploy-bot/keys/{key}/revoke"
        assert "hws_abc123" in await shown(app, path)
        done = await post(app, path)
        assert (done.status, "Revoked" in await shown(app, done.headers["location"])) == (303, True)
        assert "revoked already" in await shown(app, path)
        assert (await post(app, path)).status == 409


async def test_a_page_has_what_the_role_may(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        sign_in = FakeSignIn()
        app = app_for(bench, sign_in)
        for role, may in (
            (Role.VIEWER, set[str]()),
            (Role.OPERATOR, {"Lock"}),
            (Role.AUDITOR, {"Audit"}),
            (Role.ADMIN, {"Lock", "Audit", "One-time code", "Revoke"}),
        ):
            sign_in.who = FakePerson(role)
            page = (await call(app, "GET", "/agents/deploy-bot")).body.decode()
            main = page.partition("<main")[2]
            there = {part for part in ("Lock", "Audit", "One-time code", "Revoke") if f">{part}<" in main}
            assert there == may, role
            assert ("takes the role auditor or admin" in main) == ("Audit" not in may)
            check = await shown(app, "/policy-check")
            assert ("Checking takes the role admin" in check) == (role is not Role.ADMIN)
            assert ("takes the role auditor" in check) == ("Audit" not in may)
            if role is not Role.ADMIN:
                assert (await post(app, "/agents/deploy-bot/code")).status == 403
                assert (await post(app, "/policy-check", text=READERS)).status == 403
        # The rest of the page stands while the trail cannot be searched.
        (tmp_path / "audit.db").write_bytes(b"not a trail" * 400)
        assert "cannot be searched now" in await shown(app, "/agents/deploy-bot")


async def test_a_cluster_turns_green_when_its_relay_comes(tmp_path: Path) -> None:
    async with world(tmp_path, requests=0) as (bench, app):
        # The navigation has the number of requests, here a hidden "0 waiting".
        page = "/add-cluster?name=new-1&teams=platform"
        waits = await shown(app, page)
        assert waits.count("waiting") == 1 + 3
        assert "hawse admin cluster add new-1 --team platform" in waits
        await bench.ok("POST", "/v1/clusters", {"name": "new-1", "teams": ["platform"]})
        assert (await shown(app, page)).count("waiting") == 1 + 2
        now = bench.clock.now
        bench.operations.live.append(RelayInfo("new-1", "pod-1", "0.1.0", "192.0.2.9", now, now, 1.0, 0))
        ready = await shown(app, page)
        assert (ready.count("waiting"), "The cluster is ready" in ready, "pod-1" in ready) == (1, True, True)


async def test_a_policy_is_shown_as_it_was_and_a_text_is_checked(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        old = await call(app, "GET", "/policies/payments-readers?version=2")
        assert b'id="rule-no-secret"' in old.body
        assert "This is version 2. Version 5 is in force" in text_of(old.body)
        now = await call(app, "GET", "/policies/payments-readers")
        assert b'id="rule-no-secrets"' in now.body
        assert "Version 5 is in force" not in text_of(now.body)
        assert "edited" in await shown(app, "/policy-diff?before=2&after=5")
        assert "Nothing differs" in await shown(app, "/policy-diff?before=2&after=2")
        # A text is checked, and nothing is changed.
        before = bench.directory.current.bundle
        # As a browser sends it.
        text = READERS.replace("\n", "\r\n")
        wrong = await post(app, "/policy-check", text=text.replace("effect: deny", "effect: dny"))
        assert ('"dny" is not one of allow, deny' in text_of(wrong.body), faults_of(wrong.body)) == (True, [])
        valid = await post(app, "/policy-check", text=text.replace("search]", "serch]"), only="1")
        said = text_of(valid.body)
        assert "names team serch, which does not exist" in said
        assert "hawse admin policy apply --only policy.yaml" in said
        same = await post(app, "/policy-check", text=text)
        assert "It is valid and changes nothing" in text_of(same.body)
        assert READERS.split("\n")[0] in text_of(same.body)
        assert bench.directory.current.bundle is before


async def test_a_simulation_is_followed_cancelled_and_refused(tmp_path: Path) -> None:
    async with world(tmp_path, Role.AUDITOR) as (bench, app):
        bench.work.go, bench.work.outcome = trio.Event(), Outcome(SIMULATED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.simulations.run)
            started = await post(app, "/policy-simulations", text=READERS, span="7d", agent="deploy-bot")
            page = started.headers["location"]
            await trio.testing.wait_all_tasks_blocked()
            going = await call(app, "GET", page)
            assert "1 of 2 events" in text_of(going.body)
            assert b'data-live="simulation"' in going.body
            assert (bench.work.jobs[0].agent, bench.work.jobs[0].since) == (
                "deploy-bot",
                bench.clock.now - 7 * 86400,
            )
            bench.work.go.set()
            await trio.testing.wait_all_tasks_blocked()
            done = await call(app, "GET", page)
            assert "It would newly deny 41 calls, ask about 2 calls, and allow 3 calls." in text_of(done.body)
            assert (b'data-live="simulation"' in done.body, faults_of(done.body)) == (False, [])
            assert page.encode() in (await call(app, "GET", "/policy-check")).body
            nursery.cancel_scope.cancel()
        # One that is refused keeps the text in the form.
        for _ in range(4):
            started = await post(app, "/policy-simulations", text=READERS)
        refused = await post(app, "/policy-simulations", text="kind: Policy # mine")
        assert "# mine" in text_of(refused.body)
        path = started.headers["location"]
        cancelled = await post(app, f"{path}/cancel")
        assert "It was cancelled" in await shown(app, cancelled.headers["location"].partition("?")[0])
        assert (await post(app, f"{path}/cancel")).status == 409
