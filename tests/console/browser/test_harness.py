"""The tests of pages can fail: each fault of a page is noticed, and a page without one passes."""

from __future__ import annotations

import pytest

from tests.console.browser.chromium import Chromium
from tests.console.browser.tab import LOOKS, new_tab

ORIGIN = "https://console.example"
POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-1'; style-src 'self'; connect-src https:; img-src https:"
)
GOOD = "<!doctype html><html lang=en><title>Page</title><main><h1>Page</h1><p>Text</p></main>"


def faults(chromium: Chromium, body: str) -> str:
    """What the harness says of a page after its look at it; empty if nothing."""
    with new_tab(chromium.browser, ORIGIN) as tab:
        headers = {"content-type": "text/html", "content-security-policy": POLICY}
        tab.page.route("**/*", lambda route: route.fulfill(body=body, headers=headers))
        tab.open("/")
        try:
            tab.inspect(LOOKS[:1])
            tab.page.wait_for_load_state("networkidle")
            tab.check()
        except AssertionError as error:
            return str(error)
        return ""


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        pytest.param(GOOD, "", id="good"),
        pytest.param(GOOD.replace(" lang=en", ""), "html-has-lang", id="axe"),
        pytest.param(GOOD + '<p style="color: red">', "policy: style-src", id="style"),
        pytest.param(GOOD + "<script>alert(1)</script>", "policy: script-src-elem inline", id="script"),
        pytest.param(GOOD + '<p onclick="alert(1)">', "policy: script-src-attr", id="handler"),
        pytest.param(GOOD + "<script nonce=1>alert(1)</script>", "dialog: 1", id="dialog"),
        pytest.param(
            GOOD + "<script nonce=1>missing()</script>", "script: missing is not defined", id="error"
        ),
        pytest.param(
            GOOD + "<script nonce=1>console.error('broken')</script>", "console: broken", id="console"
        ),
        pytest.param(
            GOOD + "<script nonce=1>fetch('https://elsewhere.example/')</script>",
            "request: https://elsewhere.example/",
            id="request",
        ),
    ],
)
def test_the_harness_notices(chromium: Chromium, body: str, fault: str) -> None:
    said = faults(chromium, body)
    assert fault in said if fault else said == "", said


def test_the_harness_notices_a_page_that_is_wider_than_a_phone(chromium: Chromium) -> None:
    with new_tab(chromium.browser, ORIGIN) as tab:
        wide = GOOD.replace("<p>", "<pre>" + "wide " * 200 + "</pre><p>")
        tab.page.route("**/*", lambda route: route.fulfill(body=wide, content_type="text/html"))
        tab.open("/")
        with pytest.raises(AssertionError, match=r"^390 dark: the page is \d+ px wide$"):
            tab.inspect([(390, "dark")])
