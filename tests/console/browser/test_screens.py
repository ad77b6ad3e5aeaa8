"""Every screen of the console by axe, in light and dark, on a desk and a phone; and with hostile texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from proxy.console.app import ROUTES
from sandbox.demo.processes import Daemons, free_port
from tests.console.browser.chromium import Chromium
from tests.console.browser.tab import LOOKS, Tab, new_tab
from tests.console.fleet_data import OF_HOSTILE_NAMES, READERS


def request(number: int) -> str:
    """The page of a request of tests.console.request_data."""
    return f"/requests/0199a1b2-0000-7cc3-98c4-{number:012x}"


# The pages of the hub that tests.console.dev makes up, by the routes that have them.
SCREENS = {
    "/": ["/"],
    "/requests": ["/requests", "/requests?state=denied&agent=oncall-helper", "/requests?state=used&offset=9"],
    "/requests/{id}": [request(2), request(3), request(4), request(9), request(13), "/requests/none"],
    "/requests/{id}/deny": [f"{request(0)}/deny"],
    "/requests/{id}/revoke": [f"{request(7)}/revoke", f"{request(13)}/revoke"],
    "/calls": ["/calls", "/calls?agent=deploy-bot"],
    "/calls/end": ["/calls/end?agent=deploy-bot", "/calls/end?id=ended"],
    "/audit": [
        "/audit",
        "/audit?follow=1",
        "/audit?status=4xx&q=pods",
        "/audit?q=nothing+has+this",
        "/audit?since=never",
    ],
    "/audit/{eid}": ["EVENT", "/audit/none"],
    "/decision": [
        "/decision",
        "/decision?agent=rightsizer&cluster=staging&verb=get&resource=secrets&namespace=shop",
        "/decision?agent=rightsizer&cluster=staging&verb=delete&resource=pods&name=web&namespace=shop",
    ],
    "/agents": ["/agents", "/agents?q=bot"],
    "/agents/{name}": ["/agents/deploy-bot", "/agents/triage", "/agents/nobody"],
    "/agents/{name}/code": ["/agents/deploy-bot/code"],
    "/agents/{name}/keys/{id}/revoke": ["/agents/deploy-bot/keys/none/revoke"],
    "/agents/{name}/lock": ["/agents/deploy-bot/lock"],
    "/agents/{name}/unlock": ["/agents/triage/unlock"],
    "/clusters": ["/clusters"],
    "/clusters/{name}": ["/clusters/dev", "/clusters/staging"],
    "/add-cluster": ["/add-cluster"],
    "/teams": ["/teams"],
    "/teams/{name}": ["/teams/platform"],
    "/policies": ["/policies"],
    "/policies/{name}": ["/policies/payments-readers", "/policies/none"],
    "/policy-versions": ["/policy-versions"],
    "/policy-diff": ["/policy-diff?before=3&after=4"],
    "/policy-check": ["/policy-check"],
    "/policy-simulations/{id}": ["/policy-simulations/none"],
}
# Not pages: the stream that a followed audit page reads, and parts that pages read again.
PARTS = {"/audit/stream", "/requests/waiting", "/requests/{id}/state"}
PATHS = [path for paths in SCREENS.values() for path in paths]
# Of the same hub before anything is enrolled.
EMPTY = ["/", "/requests", "/calls", "/audit", "/decision", "/agents", "/clusters", "/teams", "/policies"]
PHONE_IN_DARK = LOOKS[3]


# Hubs that are made up: as usual, without anything enrolled, and with hostile texts.
HUBS = {
    "usual": [],
    "empty": ["--clusters=0", "--agents=0", "--calls=0", "--events=0"],
    "hostile": ["--hostile"],
    "approver": ["--role=approver"],
}


@attrs.frozen
class Hubs:
    """The made-up hubs, each of which starts when it is needed."""

    daemons: Daemons
    origins: dict[str, str] = attrs.Factory(dict)

    def origin(self, kind: str) -> str:
        """Where the pages of a hub are."""
        if kind not in self.origins:
            argv = [
                sys.executable,
                "-m",
                "tests.console.dev",
                f"--port={free_port()}",
                "--rate=0",
                *HUBS[kind],
            ]
            started = self.daemons.start(kind, argv, cwd=Path(__file__).parents[3])
            self.origins[kind] = started.wait_for("http://").rstrip("/")
        return self.origins[kind]


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hubs]:
    with Daemons(tmp_path_factory.mktemp("hubs")) as daemons:
        yield Hubs(daemons)


def show(tab: Tab, path: str) -> None:
    """Open a page of a made-up hub. An error page is a console error, which is what was asked for."""
    if path == "EVENT":
        tab.open("/audit")
        path = tab.page.locator("a[href^='/audit/']").first.get_attribute("href") or ""
        assert path
    tab.open(path)
    tab.expected.append(f"({tab.origin}{path})")


def test_every_page_of_the_routes_is_among_the_screens() -> None:
    assert {route.path for route in ROUTES if route.method == "GET"} - PARTS == set(SCREENS)


@pytest.mark.parametrize("path", PATHS)
def test_a_screen_has_no_violation(hubs: Hubs, chromium: Chromium, path: str) -> None:
    with new_tab(chromium.browser, hubs.origin("usual")) as tab:
        show(tab, path)
        tab.inspect()
        tab.check()


@pytest.mark.parametrize("path", EMPTY)
def test_a_screen_without_rows_has_no_violation(hubs: Hubs, chromium: Chromium, path: str) -> None:
    with new_tab(chromium.browser, hubs.origin("empty")) as tab:
        show(tab, path)
        tab.inspect([LOOKS[0], PHONE_IN_DARK])
        tab.check()


@pytest.mark.parametrize("path", ["/requests", request(2), request(3), request(4), f"{request(0)}/deny"])
def test_a_screen_of_an_approver_has_no_violation(hubs: Hubs, chromium: Chromium, path: str) -> None:
    with new_tab(chromium.browser, hubs.origin("approver")) as tab:
        tab.open(path)
        for details in tab.page.locator("main details").all():
            details.locator("summary").click()
        tab.inspect()
        tab.check()


@pytest.mark.parametrize("path", PATHS)
def test_a_hostile_text_is_only_a_text(hubs: Hubs, chromium: Chromium, path: str) -> None:
    with new_tab(chromium.browser, hubs.origin("hostile")) as tab:
        show(tab, path)
        assert tab.page.locator("main img, main [style], main script, main [onerror]").count() == 0
        tab.inspect([PHONE_IN_DARK])
        tab.check()


@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_a_screen_that_a_form_leads_to_has_no_violation(hubs: Hubs, chromium: Chromium, kind: str) -> None:
    texts = [
        OF_HOSTILE_NAMES.replace("[write]", "[read]"),
        READERS.replace("effect: deny", "effect: <script>alert(1)</script>\u202e"),
    ]
    with new_tab(chromium.browser, hubs.origin(kind)) as tab:
        for text, button, found in (
            (texts[0], "Check", ".changed"),
            (texts[1], "Check", ".atline"),
            (READERS, "Simulate", ".verdict"),
        ):
            tab.open("/policy-check")
            tab.page.locator("textarea").fill(text)
            tab.page.get_by_role("button", name=button, exact=True).click()
            tab.page.locator(found).first.wait_for()
            assert tab.page.locator("main img, main [style], main script, main [onerror]").count() == 0
            tab.inspect()
        tab.open("/agents/deploy-bot/code")
        tab.page.get_by_role("button", name="Make the code").click()
        tab.page.locator("main", has_text="hwc_").wait_for()
        tab.inspect()
        tab.check()


def test_a_filter_of_rows_says_how_many_match(hubs: Hubs, chromium: Chromium) -> None:
    with new_tab(chromium.browser, hubs.origin("usual")) as tab:
        tab.open("/policies")
        rows = tab.page.locator("#policies tbody tr")
        tab.page.keyboard.press("/")
        tab.page.keyboard.type("migrations")
        tab.page.get_by_role("status").get_by_text(f"1 of {rows.count()} match").wait_for()
        assert [row.is_visible() for row in rows.all()].count(True) == 1
        tab.check()


def test_the_pages_are_used_by_keyboard(hubs: Hubs, chromium: Chromium) -> None:
    with new_tab(chromium.browser, hubs.origin("usual")) as tab:
        keys, focused = tab.page.keyboard, tab.page.locator(":focus")
        tab.open("/")
        keys.press("Tab")
        assert focused.inner_text() == "Skip to the content"
        keys.press("Enter")
        keys.press("Tab")
        # The first link below the heading, and not one of the navigation.
        assert focused.evaluate("element => element.closest('main') !== null")
        keys.press("g")
        keys.press("l")
        tab.page.wait_for_url(f"{tab.origin}/calls")
        end = tab.page.get_by_role("link", name="End").first
        end.focus()
        assert focused.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
        keys.press("Enter")
        tab.page.get_by_role("dialog").wait_for()
        # It begins in its field, and leads back to where it was asked for.
        keys.type("too long")
        assert tab.page.get_by_label("Reason").input_value() == "too long"
        keys.press("Escape")
        tab.page.get_by_role("dialog").wait_for(state="hidden")
        assert focused.get_attribute("href") == end.get_attribute("href")
        tab.check()


def test_a_table_fits_a_tablet(hubs: Hubs, chromium: Chromium) -> None:
    with new_tab(chromium.browser, hubs.origin("usual")) as tab:
        for path in ("/calls", "/agents", "/clusters/staging"):
            tab.open(path)
            for width in (768, 1024, 1100, 1280):
                tab.look(width, "light")
                table = tab.page.locator(".table").first
                assert table.evaluate("e => e.scrollWidth <= e.clientWidth"), (path, width)
