"""Calls of an agent that a person decides about in the console, while kubectl waits for it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from tests.console.browser.chromium import Chromium
from tests.console.browser.tab import Tab
from tests.console.browser.world import ConsoleWorld, Token
from tests.console.names import HOSTILE as HOSTILE_TEXTS
from tests.system.world import NAMESPACE

ANN, BEN = "ann@example.com", "ben@example.com"
POLICY = """
kind: Policy
metadata: {name: looked-at}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: changes, effect: ask, verbs: [patch, delete], resources: [configmaps], resourceNames: ["asked-*"],
       reason: changes are looked at, ask: {approvers: ["ann@example.com", "ben@example.com"], wait: 55s}}
"""
NUMBERS = count(1)
HOSTILE = "".join([*HOSTILE_TEXTS, "javascript:alert(1)", "x" * 3000])


@pytest.fixture(scope="module")
def approvers(console: ConsoleWorld) -> Iterator[tuple[Token, Token]]:
    """Two people who may approve what a policy of this module asks about."""
    file = console.world.folder / "looked-at.yaml"
    file.write_text(POLICY)
    console.world.admin("policy", "apply", str(file))
    yield (
        console.token("ann", "approver", "--person", ANN),
        console.token("ben", "approver", "--person", BEN),
    )
    console.world.admin("policy", "remove", "looked-at")


@pytest.fixture
def name(console: ConsoleWorld) -> str:
    """A config map that the agent may change once somebody has approved it."""
    name = f"asked-{next(NUMBERS)}"
    console.world.administrator("create", "configmap", name, f"--namespace={NAMESPACE}")
    return name


@contextmanager
def running(console: ConsoleWorld, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """The agent's kubectl, which ends with the block."""
    process = console.world.popen("tunnel", *args)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_there(console: ConsoleWorld, name: str) -> bool:
    where = ("configmap", name, f"--namespace={NAMESPACE}", "--ignore-not-found", "--output=name")
    return bool(console.world.administrator("get", *where))


def open_request(tab: Tab, name: str) -> None:
    """Wait for the request about an object in the list, and open it."""
    if not tab.page.url.endswith("/requests"):
        tab.open("/requests")
    tab.page.locator("#waiting-requests-rows tr", has_text=f"{NAMESPACE}/{name}").get_by_role(
        "link", name="Decide"
    ).click()
    tab.page.get_by_role("heading", name="Decision").wait_for()


def test_a_command_that_waits_succeeds_once_it_is_approved(
    console: ConsoleWorld, chromium: Chromium, approvers: tuple[Token, Token], name: str
) -> None:
    with console.signed_in(chromium, approvers[0]) as tab:
        tab.open("/requests")
        tab.page.locator("#live[data-state=on]").wait_for()
        with running(console, "delete", "configmap", name) as process:
            # The page is open already: the request and its number appear in it.
            tab.page.locator("#number-waiting", has_text="1 waiting").wait_for()
            open_request(tab, name)
            tab.page.get_by_text(f"kubectl --context tunnel delete configmaps {name}").wait_for()
            assert (is_there(console, name), process.poll()) == (True, None)
            tab.inspect()
            tab.page.get_by_role("button", name="Approve").click()
            tab.page.get_by_role("status").get_by_text("Approved.").wait_for()
            assert process.wait(20) == 0
            assert not is_there(console, name)
            tab.page.locator("#request-outcome", has_text=f"used approved by {ANN}").wait_for()
            tab.page.locator("#number-waiting").wait_for(state="hidden")


def test_a_command_that_is_denied_fails_with_the_approvers_words(
    console: ConsoleWorld, chromium: Chromium, approvers: tuple[Token, Token], name: str
) -> None:
    with (
        console.signed_in(chromium, approvers[0]) as tab,
        running(console, "delete", "configmap", name) as process,
    ):
        open_request(tab, name)
        tab.page.get_by_role("link", name="Deny").click()
        dialog = tab.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Deny").click()
        # Without a reason the form is not sent.
        dialog.get_by_label("Reason").fill("copy it first, please")
        tab.inspect()
        dialog.get_by_role("button", name="Deny").click()
        tab.page.locator("#request-outcome", has_text="copy it first, please").wait_for()
        _, err = process.communicate(timeout=20)
        assert (process.returncode, "copy it first, please" in err.decode()) == (1, True)
        assert is_there(console, name)


def test_of_two_people_the_second_sees_who_was_first(
    console: ConsoleWorld, chromium: Chromium, approvers: tuple[Token, Token], name: str
) -> None:
    with (
        console.signed_in(chromium, approvers[0]) as first,
        console.signed_in(chromium, approvers[1]) as second,
        running(console, "delete", "configmap", name) as process,
    ):
        for tab in (first, second):
            open_request(tab, name)
        first.page.get_by_role("button", name="Approve").click()
        first.page.get_by_role("status").get_by_text("Approved.").wait_for()
        # The page that is open may know it by now, and have no button any more.
        second.page.locator("#approve").evaluate("form => form.requestSubmit()")
        second.page.get_by_role("alert").get_by_text("Nothing was changed.").wait_for()
        second.page.locator("#request-outcome", has_text=f"by {ANN}").wait_for()
        second.expected.append("status of 409")
        assert process.wait(20) == 0


def test_an_object_that_changes_after_it_was_shown_is_not_changed_by_the_approval(
    console: ConsoleWorld, chromium: Chromium, approvers: tuple[Token, Token], name: str
) -> None:
    where = ("configmap", name, f"--namespace={NAMESPACE}")
    with (
        console.signed_in(chromium, approvers[0]) as tab,
        running(console, "label", "configmap", name, "colour=blue", "--overwrite") as process,
    ):
        open_request(tab, name)
        tab.page.get_by_text("metadata.labels").first.wait_for()
        console.world.administrator("label", *where, "colour=red")
        tab.page.get_by_role("button", name="Approve").click()
        tab.page.locator("#request-outcome", has_text="out of date").wait_for()
        assert process.wait(60) == 1
        found = console.world.administrator("get", *where, "--output=jsonpath={.metadata.labels.colour}")
        assert found == b"red"


def test_a_hostile_difference_is_only_a_text(
    console: ConsoleWorld, chromium: Chromium, approvers: tuple[Token, Token], name: str
) -> None:
    # An annotation takes any text.
    patch = json.dumps({"metadata": {"annotations": {"note": HOSTILE}}})
    with (
        console.signed_in(chromium, approvers[0]) as tab,
        running(console, "patch", "configmap", name, "--type=merge", "-p", patch),
    ):
        open_request(tab, name)
        tab.page.get_by_text("<script>alert(1)</script>").first.wait_for()
        shown = tab.page.locator("main")
        assert shown.locator("img, script, style, [onerror]").count() == 0
        assert not {"\u202e", "\x1b"} & set(shown.inner_text())
        for link in shown.get_by_role("link").all():
            assert (link.get_attribute("href") or "").startswith("/")
        tab.inspect()


def test_who_may_not_approve_sees_who_may(
    console: ConsoleWorld, chromium: Chromium, approvers: tuple[Token, Token], name: str
) -> None:
    stranger = console.token("carl", "approver", "--person", "carl@example.com")
    viewer = console.token("watcher", "viewer")
    with running(console, "delete", "configmap", name) as process:
        with console.signed_in(chromium, approvers[0]) as tab:
            open_request(tab, name)
            path = tab.page.url.removeprefix(tab.origin)
        for who in (stranger, None):
            with console.signed_in(chromium, who) as tab:
                tab.open(path)
                tab.page.get_by_text(re.compile(f"{ANN} or {BEN}")).wait_for()
                assert tab.page.get_by_role("button", name="Approve").count() == 0
        with console.signed_in(chromium, viewer) as tab:
            tab.open(path)
            tab.page.get_by_text("This page takes the role approver or admin").wait_for()
            assert tab.page.locator("#number-waiting").count() == 0
            tab.expected.append("status of 403")
        assert (process.poll(), is_there(console, name)) == (None, True)
