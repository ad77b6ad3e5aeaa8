"""Signing in by a one-time URL, and what an attacker could make of it."""

from __future__ import annotations

from tests.console.browser.chromium import Chromium
from tests.console.browser.tab import Tab, new_tab
from tests.console.browser.world import ConsoleWorld, sign_in


def session_of(tab: Tab) -> dict[str, object]:
    """The cookie of the session."""
    [cookie] = [one for one in tab.page.context.cookies() if one["name"].startswith("hawse-")]
    return dict(cookie)


def test_one_click_signs_in_and_the_code_leaves_the_address(
    console: ConsoleWorld, chromium: Chromium
) -> None:
    with new_tab(chromium.browser, console.origin) as tab:
        tab.page.goto(console.url())
        said = tab.page.get_by_text("You will be signed in")
        said.wait_for()
        assert "admin" in said.inner_text()
        assert tab.page.url == f"{console.origin}/signin"
        tab.inspect()
        tab.page.get_by_role("button", name="Sign in").click()
        tab.page.get_by_role("heading", name="Overview").wait_for()
        cookie = session_of(tab)
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
        tab.page.get_by_role("button", name="Sign out").click()
        tab.page.wait_for_url(f"{console.origin}/signin**")
        # On the page of the sign-in, another URL only changes the fragment.
        tab.page.goto(console.url())
        said.wait_for()
        assert tab.page.url == f"{console.origin}/signin"
        tab.open("/calls")
        assert tab.page.url == f"{console.origin}/signin?next=%2Fcalls"
        tab.check()


def test_a_code_signs_in_once(console: ConsoleWorld, chromium: Chromium) -> None:
    url = console.url()
    with (
        new_tab(chromium.browser, console.origin) as first,
        new_tab(chromium.browser, console.origin) as second,
    ):
        # The second browser has seen the page before the first one clicks.
        second.page.goto(url)
        second.page.get_by_text("You will be signed in").wait_for()
        sign_in(first, url)
        second.page.get_by_role("button", name="Sign in").click()
        second.page.locator(".fault").wait_for()
        second.open("/")
        assert second.page.url == f"{console.origin}/signin"
        # The browser logs the refusal itself.
        second.expected.append(f"({console.origin}/signin)")
        first.check()
        second.check()


def test_a_session_that_was_planted_is_not_the_one_that_signs_in(
    console: ConsoleWorld, chromium: Chromium
) -> None:
    attacker = console.token("planter", "viewer")
    with (
        console.signed_in(chromium, attacker) as planted,
        new_tab(chromium.browser, console.origin) as victim,
    ):
        cookie = session_of(planted)
        for value in (cookie["value"], "A" * 43):
            # A page that is open would notice the foreign cookie, and lead to the sign-in by itself.
            victim.page.goto("about:blank")
            # One that the browser has given takes the same keys.
            victim.page.context.add_cookies([{**cookie, "value": value}])  # type: ignore[list-item, typeddict-item]
            sign_in(victim, console.url())
            assert session_of(victim)["value"] not in {cookie["value"], "A" * 43}
        planted.open("/calls")
        planted.page.get_by_text("takes the role operator").wait_for()
        planted.expected.append("status of 403")
