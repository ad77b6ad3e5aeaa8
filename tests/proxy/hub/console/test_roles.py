"""Every page and every path of the API, by every role, from the tables themselves."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from audit.store import AuditStore
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.console.app import ROUTES
from proxy.hub.admin.administration import ACTIONS
from proxy.hub.admin.verbs.verb import METRICS, OPENAPI
from proxy.hub.store.roles import Role
from tests.console.markup import text_of
from tests.fakes.admin import PEPPER, Bench, enrol, path_of, person_of
from tests.proxy.hub.console.browser import Browser

# Who may sign in: a token of the role `metrics` makes no code.
PEOPLE = [role for role in Role if role.may(Role.VIEWER)]


@pytest.fixture
async def browser(bench: Bench, request: pytest.FixtureRequest, tmp_path: Path) -> Browser:
    """A browser that is signed in with the role of the test, at a hub with something to show."""
    role: Role = request.getfixturevalue("role")
    with closing(AuditStore(tmp_path / "audit.db")):
        pass
    await enrol(bench)
    token = new_api_key(role.encode().ljust(32, b"."))
    digest = hash_key(token, PEPPER)
    await bench.directory.change(
        lambda store: store.add_admin_token(f"a-{role}", digest, role=role, person=person_of(role))
    )
    signed_in = Browser.at(bench)
    await signed_in.open(token)
    return signed_in


def target_of(path: str) -> str:
    """Return a path with names; those that the hub knows where a page of a thing is read."""
    names = {"agents": "sre-1", "clusters": "prod", "teams": "sre"}
    name = names.get(path.split("/")[1], "x")
    parts = [name if "{" in part else part for part in path.split("/")]
    return "/".join(parts)


@pytest.mark.parametrize("role", PEOPLE)
async def test_each_page_is_for_exactly_the_roles_of_its_route(browser: Browser, role: Role) -> None:
    await browser.ask("GET", "/")
    csrf = browser.person.csrf
    for route in ROUTES:
        form = {"csrf": csrf} if route.method == "POST" else None
        before = browser.bench.directory.current
        reply = await browser.ask(route.method, target_of(route.path), form)
        where = (role, route.method, route.path, reply.status)
        if role == route.role or (role.may(Role(route.role)) and not route.by_person):
            assert reply.status not in {401, 403}, where
            continue
        assert reply.status == 403, where
        shown = text_of(reply.body)
        holders = [route.role] if route.by_person else Role(route.role).holders
        assert all(str(holder) in shown for holder in holders), where
        assert browser.bench.directory.current is before, where


@pytest.mark.parametrize("role", PEOPLE)
async def test_a_session_reads_exactly_what_its_role_may_and_changes_nothing(
    browser: Browser, role: Role
) -> None:
    for endpoint in (OPENAPI, *ACTIONS):
        before = browser.bench.directory.current
        reply = await browser.ask(endpoint.method, path_of(endpoint))
        where = (role, endpoint.method, endpoint.path, reply.status)
        if endpoint.method != "GET":
            assert reply.status == 405, where
        elif role.may(endpoint.role):
            assert reply.status not in {401, 403, 405}, where
        else:
            assert reply.status == 403, where
            message = reply.json["error"]["message"]
            assert all(str(holder) in message for holder in endpoint.holders), where
        assert browser.bench.directory.current is before, where


@pytest.mark.parametrize("role", [Role.VIEWER])
async def test_a_page_is_for_nobody_without_a_session(browser: Browser, role: Role) -> None:
    stranger = browser.another()
    for route in ROUTES:
        form = {"csrf": "x"} if route.method == "POST" else None
        reply = await stranger.ask(route.method, target_of(route.path), form)
        assert reply.status == 303, (route.method, route.path)
        assert reply.headers["location"].startswith("/signin"), (route.method, route.path)
    for endpoint in (OPENAPI, *ACTIONS):
        assert (await stranger.ask(endpoint.method, path_of(endpoint))).status == 401, endpoint.path
    assert (await stranger.ask(METRICS.method, METRICS.path)).status == 303
