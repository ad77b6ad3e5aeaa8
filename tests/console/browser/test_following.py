"""A page that follows the trail, while it grows by a thousand events a second."""

from __future__ import annotations

import threading

from tests.console.browser.chromium import Chromium
from tests.console.browser.flood import Flood, flood
from tests.console.browser.world import ConsoleWorld
from tests.system.world import NAMESPACE

PER_S, SECONDS = 1000, 10.0
# The page keeps the newest rows.
ROWS_MAX = 200
# Chosen by a client, on every page that shows its calls.
HOSTILE = "<img src=x onerror=alert(1)><style>*{display:none}</style>{{7*7}}"
# How long a frame may take on a machine whose cores are shared: a frozen page takes all of it.
FRAME_MS_MAX = 2_000
# Measures the longest time between two frames.
FRAMES = """() => {
    let last = performance.now();
    window.longest = 0;
    const frame = now => {
        window.longest = Math.max(window.longest, now - last);
        last = now;
        requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
}"""


def test_a_thousand_events_a_second_are_followed(console: ConsoleWorld, chromium: Chromium) -> None:
    ended: list[Flood] = []
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/"

    def work() -> None:
        ended.append(flood(console.client, f"{path}many", per_s=PER_S, seconds=SECONDS))

    with console.signed_in(chromium) as tab:
        tab.open("/audit?follow=1")
        tab.page.locator("#live[data-state=on]").wait_for()
        tab.page.evaluate(FRAMES)
        working = threading.Thread(target=work)
        working.start()
        tab.page.locator("tbody tr", has_text="configmaps many").first.wait_for()
        # The page can be used meanwhile.
        tab.page.keyboard.press("?")
        tab.page.locator("#help[open]").wait_for()
        tab.page.keyboard.press("Escape")
        working.join()
        [done] = ended
        assert done.calls > PER_S, "the machine is too busy for this test"
        # A client's own texts are among them, and the last event arrives.
        console.client.get(f"{path}last", f"User-Agent: {HOSTILE}")
        tab.page.locator("tbody tr", has_text="configmaps last").wait_for()
        assert tab.page.locator("tbody tr").count() <= ROWS_MAX
        assert tab.page.evaluate("window.longest") < FRAME_MS_MAX
        tab.check()
        tab.page.locator("tbody tr", has_text="configmaps last").locator("a[href^='/audit/']").click()
        tab.page.get_by_text(HOSTILE).first.wait_for()
        assert tab.page.locator("main img, main style").count() == 0
