"""Requests for approval: the list, the page of one, and decisions about it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import attrs
import pytest
from starlette.types import ASGIApp

from proxy.console.app import console_app
from proxy.hub.approvals.request import Request, State
from proxy.hub.store.roles import Role
from tests.console.fakes import CSRF, FakePerson, FakeSignIn
from tests.console.markup import faults_of, text_of
from tests.console.request_data import OTHER, PERSON
from tests.console.world import open_world
from tests.fakes.admin import Bench
from tests.fakes.asgi import Reply, call

APPROVER = FakePerson(Role.APPROVER, approves_as=OTHER)


@asynccontextmanager
async def world(
    folder: Path, who: FakePerson = APPROVER, **size: int
) -> AsyncIterator[tuple[Bench, ASGIApp]]:
    async with open_world(folder, events=1, **size) as bench:
        yield bench, app_of(bench, who)


def app_of(bench: Bench, who: FakePerson) -> ASGIApp:
    return console_app(bench.app, FakeSignIn(who), "hub.example", bench.clock)


def the(bench: Bench, state: State, what: str = "") -> Request:
    """A request in this state."""
    return next(one for one in bench.requests.found if one.state is state and what in one.new.what)


async def page(app: ASGIApp, path: str) -> bytes:
    reply = await call(app, "GET", path)
    assert reply.status == 200, (path, reply.status, text_of(reply.body))
    assert faults_of(reply.body) == []
    return reply.body


async def call_of(app: ASGIApp, path: str) -> bytes:
    """A part of a page, whose button belongs to a form of the page."""
    return (await call(app, "GET", path)).body


async def post(app: ASGIApp, target: str, **fields: str) -> Reply:
    return await call(app, "POST", target, chunks=[urlencode({"csrf": CSRF, **fields}).encode()])


def form_of(body: bytes) -> dict[str, str]:
    """The fields of the form that approves."""
    [form] = re.findall(r'<form id="approve".*?</form>', body.decode(), re.DOTALL)
    return {name: unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form)}


def rows_of(body: bytes, table: str) -> list[str]:
    """The ids of the rows of a table."""
    [rows] = re.findall(rf'<tbody id="{table}-rows".*?</tbody>', body.decode(), re.DOTALL)
    return re.findall(r'<tr id="row-([^"]+)"', rows)


def ids(requests: Sequence[Request]) -> list[str]:
    return [one.id for one in requests]


async def test_those_that_wait_come_first_and_of_these_the_oldest(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        body = await page(app, "/requests")
        found = bench.requests.found
        waiting = [one for one in found if one.state is State.PENDING]
        assert rows_of(body, "waiting-requests") == ids(waiting)
        others = [one for one in reversed(found) if one.state is not State.PENDING]
        assert rows_of(body, "decided-requests") == ids(others)
        assert re.search(rf"Requests\s+{len(waiting)} waiting", text_of(body))
        number = await page(app, "/requests/waiting")
        assert text_of(number) == f"{len(waiting)} waiting"


async def test_filters_are_in_the_address(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        denied = await page(app, "/requests?state=denied")
        assert rows_of(denied, "decided-requests") == [the(bench, State.DENIED).id]
        assert b"waiting-requests" not in denied
        waiting = await page(app, "/requests?state=pending&agent=deploy-bot")
        agent_id = bench.directory.current.agents_by_name["deploy-bot"].id
        expected = [one for one in bench.requests.found if one.new.agent_id == agent_id]
        assert rows_of(waiting, "waiting-requests") == ids(
            [one for one in expected if one.state is State.PENDING]
        )
        assert b"decided-requests" not in waiting
        assert 'href="/requests?state=pending"' in unescape(waiting.decode())
        assert "None of these waits" in text_of(
            await page(app, "/requests?state=pending&agent=cost-reporter")
        )


async def test_without_requests_the_list_says_how_to_ask(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        bench.requests.found.clear()
        body = await page(app, "/requests")
        assert "Nothing waits" in text_of(body)
        assert "effect: ask" in text_of(body)
        assert re.search(r'id="number-waiting"[^>]* hidden>', body.decode())


async def test_ten_thousand_requests_are_pages_of_a_hundred(tmp_path: Path) -> None:
    async with world(tmp_path, requests=10_000) as (bench, app):
        first = await page(app, "/requests")
        assert len(rows_of(first, "decided-requests")) == 100
        assert len(rows_of(first, "waiting-requests")) <= 100
        second = await page(app, "/requests?offset=100")
        assert b"waiting-requests" not in second
        decided = [one for one in reversed(bench.requests.found) if one.state is not State.PENDING]
        assert rows_of(second, "decided-requests") == ids(decided[100:200])
        assert "101–200" in text_of(second)
        assert 'href="/requests?offset=200"' in second.decode()
        far = await page(app, "/requests?offset=90000")
        assert rows_of(far, "decided-requests") == ["none-decided"]


async def test_the_page_of_a_request_has_what_an_approver_needs(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.PENDING, "search-indexer")
        owner = bench.directory.current.agents_by_name["search-indexer"].owner
        body = await page(app, f"/requests/{one.id}")
        text = text_of(body)
        # Flags come before all else that the call does.
        assert text.index("runs privileged") < text.index("What it would do") < text.index("1.8.2")
        for part in (
            one.new.what, one.new.reason, one.new.view.summary, *one.new.view.left_out, *one.new.view.notes,
            f"the agent's owner, {owner}", OTHER, one.new.shown, "payments",
            f"{one.new.method} {one.new.target}",
        ):  # fmt: skip
            assert part in text, part
        assert 'href="/policies/shop-changes?version=4#rule-risky"' in body.decode()
        assert form_of(body) == {"csrf": CSRF, "shown": one.new.shown}
        assert "What the agent sends after the call has begun is not seen" in text_of(
            await page(app, f"/requests/{the(bench, State.PENDING, 'exec').id}")
        )


async def test_the_state_is_read_again_without_the_difference(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.PENDING, "checkout")
        path = f"/requests/{one.id}/state"
        assert f'data-from="{path}"' in (await page(app, f"/requests/{one.id}")).decode()
        assert b'form="approve"' in await call_of(app, path)
        await bench.requests.decide(one.id, approve=True, by=PERSON, answer="", shown=one.new.shown)
        after = await call_of(app, path)
        assert f"approved by {PERSON}" in text_of(after)
        assert b"spec.replicas" not in after


async def test_a_request_is_approved_as_it_was_shown(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.PENDING, "checkout")
        form = form_of(await page(app, f"/requests/{one.id}"))
        done = await post(app, f"/requests/{one.id}/approve", **form)
        assert (done.status, done.headers["location"].partition("?")[0]) == (303, f"/requests/{one.id}")
        after = await bench.requests.get(one.id)
        assert (after.state, after.decided_by) == (State.APPROVED, OTHER)
        text = text_of(await page(app, done.headers["location"]))
        assert f"approved by {OTHER}" in text
        assert b'form="approve"' not in await page(app, f"/requests/{one.id}")


async def test_a_request_that_changed_since_it_was_read_is_not_approved(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.PENDING, "checkout")
        form = form_of(await page(app, f"/requests/{one.id}"))
        changed = attrs.evolve(one, new=attrs.evolve(one.new, effect="f" * 64))
        bench.requests.found[bench.requests.found.index(one)] = changed
        refused = await post(app, f"/requests/{one.id}/approve", **form)
        assert refused.status == 409
        assert faults_of(refused.body) == []
        assert "Nothing was changed." in text_of(refused.body)
        assert (await bench.requests.get(one.id)).state is State.PENDING
        # The page is the new one, and so is what it would approve.
        assert form_of(refused.body)["shown"] == changed.new.shown != form["shown"]


@pytest.mark.parametrize(("verb", "fields"), [("approve", {}), ("deny", {"reason": "no"})])
async def test_of_two_people_the_second_sees_who_was_first(
    tmp_path: Path, verb: str, fields: dict[str, str]
) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.PENDING, "checkout")
        form = form_of(await page(app, f"/requests/{one.id}"))
        await bench.requests.decide(one.id, approve=True, by=PERSON, answer="", shown=one.new.shown)
        late = await post(app, f"/requests/{one.id}/{verb}", **{**form, **fields})
        assert late.status == 409
        assert "Nothing was changed." in text_of(late.body)
        assert f"approved by {PERSON}" in text_of(late.body)
        asked = await call(app, "GET", f"/requests/{one.id}/deny")
        assert "This was decided meanwhile" in text_of(asked.body)


async def test_a_denial_needs_words_which_the_page_shows(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.PENDING, "shop/web")
        asked = await page(app, f"/requests/{one.id}/deny")
        assert b'name="reason"' in asked
        assert (await post(app, f"/requests/{one.id}/deny", reason=" ")).status == 422
        assert (await bench.requests.get(one.id)).state is State.PENDING
        done = await post(app, f"/requests/{one.id}/deny", reason="take a snapshot first")
        text = text_of(await page(app, done.headers["location"]))
        assert f"denied by {OTHER}" in text
        assert "take a snapshot first" in text


async def test_an_approval_is_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.APPROVED)
        assert b"/revoke" in await page(app, f"/requests/{one.id}")
        assert one.new.what in text_of(await page(app, f"/requests/{one.id}/revoke"))
        done = await post(app, f"/requests/{one.id}/revoke")
        assert "revoked" in text_of(await page(app, done.headers["location"]))
        assert (await bench.requests.get(one.id)).state is State.REVOKED


@pytest.mark.parametrize("verb", ["approve", "deny", "revoke"])
async def test_nothing_is_decided_without_the_token_of_the_session(tmp_path: Path, verb: str) -> None:
    async with world(tmp_path) as (bench, app):
        one = the(bench, State.APPROVED if verb == "revoke" else State.PENDING)
        refused = await post(app, f"/requests/{one.id}/{verb}", csrf="x", shown=one.new.shown, reason="no")
        assert refused.status == 403
        assert (await bench.requests.get(one.id)).state is one.state


@pytest.mark.parametrize("role", [Role.VIEWER, Role.AUDITOR, Role.OPERATOR])
async def test_other_roles_neither_see_nor_decide(tmp_path: Path, role: Role) -> None:
    async with world(tmp_path, FakePerson(role)) as (bench, app):
        one = the(bench, State.PENDING)
        for path in ("/requests", "/requests/waiting", f"/requests/{one.id}", f"/requests/{one.id}/deny"):
            assert (await call(app, "GET", path)).status == 403
        for verb in ("approve", "deny", "revoke"):
            refused = await post(app, f"/requests/{one.id}/{verb}", shown=one.new.shown, reason="no")
            assert refused.status == 403
        assert (await bench.requests.get(one.id)).state is State.PENDING
        assert b"number-waiting" not in (await call(app, "GET", "/agents")).body


async def test_an_admin_sees_and_denies_but_does_not_approve(tmp_path: Path) -> None:
    async with world(tmp_path, FakePerson(Role.ADMIN)) as (bench, app):
        one = the(bench, State.PENDING, "checkout")
        body = await page(app, f"/requests/{one.id}")
        assert b'form="approve"' not in body
        assert "token add" in text_of(body)
        refused = await post(app, f"/requests/{one.id}/approve", shown=one.new.shown)
        assert refused.status == 403
        assert (await bench.requests.get(one.id)).state is State.PENDING
        denied = await post(app, f"/requests/{one.id}/deny", reason="not today")
        assert denied.status == 303


async def test_a_person_who_may_not_approve_reads_who_may(tmp_path: Path) -> None:
    stranger = FakePerson(Role.APPROVER, approves_as="linus@example.com")
    async with world(tmp_path, stranger) as (bench, app):
        one = the(bench, State.PENDING, "checkout")
        body = await page(app, f"/requests/{one.id}")
        assert b'form="approve"' not in body
        assert OTHER in text_of(body).partition("Why it asks")[0]
        refused = await post(app, f"/requests/{one.id}/approve", shown=one.new.shown)
        assert refused.status == 403
        assert (await bench.requests.get(one.id)).state is State.PENDING


async def test_a_difference_that_is_too_large_cannot_be_approved(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        body = await page(app, f"/requests/{the(bench, State.PENDING, 'dashboards').id}")
        assert b'form="approve"' not in body
        assert "too large" in text_of(body)


async def test_what_a_request_has_shown_is_said_to_be_deleted(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        text = text_of(await page(app, f"/requests/{the(bench, State.CANCELLED).id}"))
        assert "No longer kept" in text
        assert "cancelled" in text


async def test_a_request_that_is_none_is_not_found(tmp_path: Path) -> None:
    async with world(tmp_path) as (_, app):
        for path in ("/requests/none", "/requests/none/deny"):
            assert (await call(app, "GET", path)).status == 404
        assert (await post(app, "/requests/none/approve", shown="x")).status == 404


async def test_the_overview_leads_to_those_that_wait(tmp_path: Path) -> None:
    async with world(tmp_path) as (_, app):
        body = (await call(app, "GET", "/")).body
        assert re.search(r'<a class="plainlink" href="/requests">Requests</a>', body.decode())
        assert "requests wait for approval" in text_of(body)


async def test_a_stated_reason_is_shown_as_a_claim(tmp_path: Path) -> None:
    async with world(tmp_path) as (bench, app):
        stated = the(bench, State.PENDING, "shop/checkout")
        shown = text_of(await page(app, f"/requests/{stated.id}"))
        assert "claimed reason the checkout loops, and its queue is full" in " ".join(shown.split())
        other = the(bench, State.PENDING, "shop/web")
        assert "claimed reason" not in text_of(await page(app, f"/requests/{other.id}"))
