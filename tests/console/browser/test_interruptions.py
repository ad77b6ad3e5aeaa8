"""What an open page does when the hub or the person's role goes away."""

from __future__ import annotations

from tests.console.browser.chromium import Chromium
from tests.console.browser.world import ConsoleWorld


def test_a_page_survives_a_restart_of_the_hub(console: ConsoleWorld, chromium: Chromium) -> None:
    with console.signed_in(chromium) as tab:
        tab.page.locator("#live[data-state=on]").wait_for()
        # Gone on a page that was loaded again.
        tab.page.evaluate("document.body.dataset.mark = 'kept'")
        assert console.world.hub is not None
        console.world.hub.stop()
        tab.page.locator("#offline").get_by_text("The hub does not answer").wait_for()
        tab.inspect()
        console.world.start_hub()
        tab.page.locator("#live[data-state=on]").wait_for()
        tab.page.locator("#offline").wait_for(state="hidden")
        assert tab.page.evaluate("document.body.dataset.mark") == "kept"
        tab.open("/calls")
        tab.page.get_by_role("heading", name="Live calls").wait_for()
        tab.expected += ["net::ERR_", "status of 503"]
    console.world.wait_for_tunnel()


def test_a_token_that_is_removed_ends_the_session_of_an_open_page(
    console: ConsoleWorld, chromium: Chromium
) -> None:
    operator = console.token("leaver", "operator")
    with console.signed_in(chromium, operator) as tab:
        tab.open("/calls")
        tab.page.locator("#live[data-state=on]").wait_for()
        console.world.admin("token", "remove", operator.name)
        tab.page.wait_for_url(f"{console.origin}/signin**", timeout=10_000)
        tab.open("/")
        assert tab.page.url.startswith(f"{console.origin}/signin")
        # The stream of changes ended, and was refused.
        tab.expected.append(f"({console.origin}/v1/stream)")


def test_a_role_may_not_see_a_page_and_is_told_which_may(console: ConsoleWorld, chromium: Chromium) -> None:
    with console.signed_in(chromium, console.token("onlooker", "viewer")) as tab:
        for path, role in (("/calls", "operator"), ("/audit", "auditor")):
            tab.open(path)
            tab.page.locator("main").get_by_text(role).first.wait_for()
            tab.inspect()
        tab.expected.append("status of 403")
