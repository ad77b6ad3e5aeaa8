from __future__ import annotations

import attrs
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from audit.record import Event
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.console.app import ROUTES
from proxy.hub.console.people import Person
from proxy.hub.store.roles import Role
from tests.fakes.admin import PEPPER, TOKEN, Bench
from tests.proxy.hub.console.browser import Browser

REMOTE = new_api_key(b"r" * 32)


@pytest.fixture
async def browser(bench: Bench) -> Browser:
    """Signed in as an admin."""
    found = Browser.at(bench)
    await found.open()
    assert (await found.ask("GET", "/")).status == 200
    return found


async def add_remote_token(bench: Bench) -> None:
    digest = hash_key(REMOTE, PEPPER)
    await bench.directory.change(
        lambda store: store.add_admin_token("remote", digest, role=Role.ADMIN, remote=True)
    )


ANSWERS = [
    ("GET", "/", 200),
    ("GET", "/signin", 200),
    ("GET", "/none", 404),
    ("GET", "/v1/teams", 200),
    ("GET", "/v1/none", 404),
    ("DELETE", "/", 405),
    ("DELETE", "/v1/teams/x", 405),
    ("POST", "/signout", 403),
]


@pytest.mark.parametrize(("method", "target", "status"), ANSWERS)
async def test_every_answer_has_the_headers(browser: Browser, method: str, target: str, status: int) -> None:
    reply = await browser.ask(method, target)
    assert reply.status == status
    for name, value in browser.gate.headers.items():
        assert reply.headers[name.decode()] == value.decode()
    assert reply.headers["cache-control"] == "no-store"


async def test_an_asset_is_kept_by_browsers(browser: Browser) -> None:
    page = (await browser.ask("GET", "/")).body.decode()
    path = page.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    reply = await browser.ask("GET", path)
    assert "immutable" in reply.headers["cache-control"]
    assert "content-security-policy" in reply.headers


async def test_another_host_is_not_answered(browser: Browser) -> None:
    # As after DNS rebinding: the browser would send no cookie, and the page has another origin.
    for target in ("/", "/v1/teams", "/signin"):
        assert (await browser.ask("GET", target, host="evil.example")).status == 421


CHANGES = sorted({route.path for route in ROUTES if route.method == "POST"} | {"/signout"})


def changes(bench: Bench) -> list[Event]:
    """Return the events but those of reads: the page of a refusal reads how many requests wait."""
    return [event for event in bench.recorder.events if event.req is None or event.req.verb != "list"]


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_needs_the_origin_and_the_token_of_the_session(
    browser: Browser, bench: Bench, path: str
) -> None:
    target = path.format(name="x", id="x", eid="x")
    csrf = browser.person.csrf
    other = browser.another()
    await other.open()
    await other.ask("GET", "/")
    events = len(changes(bench))
    foreign = {"sec_fetch_site": "cross-site"}
    for form, headers in (
        ({"csrf": csrf}, foreign),
        ({"csrf": csrf}, {"sec_fetch_site": "same-site"}),
        ({"csrf": csrf}, {"sec_fetch_site": "", "origin": "https://evil.example"}),
        ({"csrf": csrf}, {"sec_fetch_site": ""}),
        ({"csrf": other.person.csrf}, {}),
        ({"csrf": ""}, {}),
        ({}, {}),
    ):
        reply = await browser.ask("POST", target, form, **headers)
        assert reply.status == 403, (form, headers)
    assert len(changes(bench)) == events
    assert (await browser.ask("GET", "/")).status == 200


async def test_a_page_that_checks_nothing_is_not_open_to_other_sites(browser: Browser) -> None:
    asked: list[str] = []

    async def careless(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["method"])
        await Response("done")(scope, receive, send)

    browser.gate = attrs.evolve(browser.gate, pages=careless)
    assert (await browser.ask("POST", "/", {}, sec_fetch_site="cross-site")).status == 403
    assert (await browser.ask("PUT", "/", {})).status == 405
    assert asked == []
    assert (await browser.ask("POST", "/", {})).status == 200


async def test_a_sign_in_from_another_site_is_refused(browser: Browser) -> None:
    # Login CSRF: the victim would act in the attacker's session.
    victim = browser.another()
    code = await browser.open_code()
    for headers in ({"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "", "origin": "null"}):
        for target in ("/signin", "/signin/offer"):
            reply = await victim.ask("POST", target, {"code": code}, **headers)
            assert reply.status == 403
            assert "set-cookie" not in reply.headers
    assert (await victim.redeem(code)).status == 303


async def test_a_session_reads_v1_and_changes_nothing_there(browser: Browser) -> None:
    assert (await browser.ask("GET", "/v1/teams")).status == 200
    assert (await browser.ask("HEAD", "/v1/teams")).status == 200
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        reply = await browser.ask(method, "/v1/teams", {"csrf": browser.person.csrf, "name": "x"})
        assert reply.status == 405
    assert not browser.bench.directory.current.teams_by_name


async def test_v1_is_for_no_page_of_another_site(browser: Browser) -> None:
    assert (await browser.ask("GET", "/v1/teams", sec_fetch_site="same-origin")).status == 200
    assert (await browser.ask("GET", "/v1/teams", sec_fetch_site="none")).status == 200
    for site in ("cross-site", "same-site"):
        assert (await browser.ask("GET", "/v1/teams", sec_fetch_site=site)).status == 403
    # A link leads to a page.
    assert (await browser.ask("GET", "/", sec_fetch_site="cross-site")).status == 200


async def test_nothing_but_pages_and_v1_is_there(browser: Browser, bench: Bench) -> None:
    await add_remote_token(bench)
    for target in ("/metrics", "/healthz"):
        assert (await browser.ask("GET", target)).status == 404
        reply = await browser.another().ask("GET", target, authorization=f"Bearer {REMOTE}")
        assert reply.status == 303


async def test_an_admin_token_counts_if_it_was_made_for_it(browser: Browser, bench: Bench) -> None:
    await add_remote_token(bench)
    program = browser.another()
    reply = await program.ask("GET", "/v1/teams", authorization=f"Bearer {TOKEN}")
    assert (reply.status, reply.json["error"]["code"]) == (403, "not_remote")
    assert bench.recorder.events[-1].actor.name == "local"
    assert (await program.ask("GET", "/v1/teams", authorization=f"Bearer {REMOTE}")).status == 200
    reply = await program.ask("DELETE", "/v1/tokens/x", authorization=f"Bearer {REMOTE}")
    assert reply.status == 404
    assert program.known[0] is None
    assert isinstance(program.known[1], str)
    # At the admin listener both count.
    assert (await bench.ask("GET", "/v1/teams", token=REMOTE)).status == 200


async def test_a_token_does_not_lend_a_session_its_role(browser: Browser, bench: Bench) -> None:
    await add_remote_token(bench)
    reply = await browser.ask("DELETE", "/v1/tokens/x", authorization="Bearer nonsense")
    assert reply.status == 401
    # Nor does it open a page.
    assert (await browser.another().ask("GET", "/", authorization=f"Bearer {REMOTE}")).status == 303


async def test_a_state_that_is_not_confirmed_opens_nothing(browser: Browser, bench: Bench) -> None:
    code = await browser.open_code()
    bench.directory.age.withhold("the database is away")
    for target in ("/", "/v1/teams"):
        reply = await browser.ask("GET", target)
        assert (reply.status, reply.json["error"]["message"]) == (503, "the database is away")
    assert (await browser.another().redeem(code)).status == 503
    # The page for signing in is for anybody.
    assert (await browser.another().ask("GET", "/signin")).status == 200
    bench.directory.age.withhold("")
    assert (await browser.ask("GET", "/")).status == 200


async def test_a_connection_knows_its_person(browser: Browser) -> None:
    stranger = browser.another()
    await stranger.ask("GET", "/signin")
    await stranger.ask("GET", "/v1/teams")
    assert stranger.known == []
    person = browser.known[-1]
    assert isinstance(person, Person)
    assert person.name == "local"
