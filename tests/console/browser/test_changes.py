"""Changes by people: open calls that they end, and requests that only look like theirs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.console.browser.chromium import Chromium
from tests.console.browser.tab import Tab
from tests.console.browser.world import ConsoleWorld
from tests.system.world import AGENT, POD

SHELL = "echo at work; exec sleep 600"
# A page of another origin on this machine. Cookies do not know ports, so its requests have the session's.
FOREIGN = "http://127.0.0.1:1"


@contextmanager
def live_exec(console: ConsoleWorld) -> Iterator[subprocess.Popen[bytes]]:
    """An exec of the agent that has printed a line; it ends with the block."""
    process = console.world.popen("tunnel", "exec", POD, "--", "sh", "-c", SHELL)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def exec_ids(console: ConsoleWorld) -> list[str]:
    return [str(row["id"]) for row in console.world.session_rows(agent=AGENT) if "exec" in str(row["kind"])]


def ask_to_end(tab: Tab, call: str) -> None:
    """Click on the button of a call's row, and give a reason."""
    tab.open("/calls")
    tab.page.locator(f"#row-{call}").get_by_role("link", name="End").click()
    tab.page.get_by_label("Reason").fill("runs too long")


def test_a_live_exec_is_ended_and_leaves_the_table(console: ConsoleWorld, chromium: Chromium) -> None:
    operator = console.token("ender", "operator")
    with live_exec(console) as process, console.signed_in(chromium, operator) as tab:
        [call] = exec_ids(console)
        ask_to_end(tab, call)
        tab.inspect()
        tab.page.get_by_role("button", name="End call").click()
        tab.page.get_by_text("Ended 1 call").wait_for()
        tab.page.locator(f"#row-{call}").wait_for(state="detached")
        assert process.wait(20) != 0
    events = console.world.audit_rows("--limit", "200")
    [killed] = [one for one in events if one["kind"] == "session.killed" and one["eid"] == call]
    assert "runs too long" in str(killed["resp"])


def test_a_table_that_is_open_shows_calls_that_come_and_go(console: ConsoleWorld, chromium: Chromium) -> None:
    with console.signed_in(chromium) as tab:
        tab.open("/calls")
        with live_exec(console):
            [call] = exec_ids(console)
            tab.page.locator(f"#row-{call}").wait_for()
        tab.page.locator(f"#row-{call}").wait_for(state="detached")


def test_of_two_people_who_end_a_call_one_is_told_that_it_has_ended(
    console: ConsoleWorld, chromium: Chromium
) -> None:
    with (
        live_exec(console) as process,
        console.signed_in(chromium) as first,
        console.signed_in(chromium) as second,
    ):
        [call] = exec_ids(console)
        ask_to_end(first, call)
        ask_to_end(second, call)
        for tab in (first, second):
            tab.page.get_by_role("button", name="End call").click()
        first.page.get_by_text("Ended 1 call").wait_for()
        second.page.get_by_text("had ended already").wait_for()
        assert process.wait(20) != 0


@pytest.mark.parametrize("target", ["/calls/end", "/signout"])
def test_a_form_of_another_origin_changes_nothing(
    console: ConsoleWorld, chromium: Chromium, target: str
) -> None:
    with live_exec(console) as process, console.signed_in(chromium) as tab:
        [call] = exec_ids(console)
        tab.open(f"/calls/end?id={call}")
        token = tab.page.locator("#confirm input[name=csrf]").input_value()
        # Even with the token of the session.
        form = (
            f'<form method=post action="{console.origin}{target}">'
            f'<input name=csrf value="{token}"><input name=id value="{call}"><input name=reason value=x>'
            "<button>Win a prize</button></form>"
        )
        tab.page.route(f"{FOREIGN}/**", lambda route: route.fulfill(body=form, content_type="text/html"))
        tab.page.goto(f"{FOREIGN}/")
        with tab.page.expect_response(f"{console.origin}{target}") as response:
            tab.page.get_by_role("button", name="Win a prize").click()
        assert response.value.status == 403
        assert any(name == "cookie" for name in response.value.request.all_headers())
        assert exec_ids(console) == [call]
        assert process.poll() is None
        tab.open("/calls")
        tab.page.locator(f"#row-{call}").wait_for()
        tab.expected += [FOREIGN, "status of 403"]


@pytest.mark.parametrize("token", ["", "A" * 43])
def test_a_change_without_the_token_of_the_session_is_refused(
    console: ConsoleWorld, chromium: Chromium, token: str
) -> None:
    with live_exec(console), console.signed_in(chromium) as tab:
        [call] = exec_ids(console)
        tab.open(f"/calls/end?id={call}")
        field = tab.page.locator("#confirm input[name=csrf]")
        field.evaluate("(field, token) => { field.value = token }", token)
        tab.page.get_by_label("Reason").fill("no token")
        tab.page.get_by_role("button", name="End call").click()
        tab.page.get_by_role("heading", name="Nothing was changed").wait_for()
        assert exec_ids(console) == [call]
        tab.expected.append("status of 403")


def test_a_script_changes_nothing_by_the_api(console: ConsoleWorld, chromium: Chromium) -> None:
    with console.signed_in(chromium) as tab:
        ask = "(path) => fetch(path, {method: 'POST', body: '{}'}).then(answer => answer.status)"
        assert tab.page.evaluate(ask, f"/v1/agents/{AGENT}/lock") == 405
        assert tab.page.evaluate("fetch('/v1/agents').then(answer => answer.status)") == 200
        tab.expected.append("status of 405")
