"""How late a followed event is on the screen: `python -m tests.console.browser.late [PER_S] [SECONDS]`.

An agent makes calls at a rate (40 a second for 10 s by default), and a browser follows the trail. Prints how
long after the end of its call a row was painted. Of a rate above some hundreds a second, the page shows the
newest rows alone.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
from pathlib import Path

from tests.console.browser.chromium import Chromium, find_chromium, running_chromium
from tests.console.browser.flood import flood
from tests.console.browser.world import ConsoleWorld, running_console
from tests.system.world import NAMESPACE

PER_S, SECONDS = 40, 10.0
# The rows that a frame has brought, once the next frame begins, which is when that one has been painted.
NOTE = """() => {
    window.late = [];
    new MutationObserver(changes => {
        const times = changes.flatMap(change => [...change.addedNodes])
            .flatMap(node => node.querySelector ? [node.querySelector("time").dateTime] : []);
        requestAnimationFrame(() => window.late.push(...times.map(time => Date.now() - Date.parse(time))));
    }).observe(document.querySelector("[data-follow]"), {childList: true});
}"""


def measure(console: ConsoleWorld, chromium: Chromium, per_s: int, seconds: float) -> list[float]:
    """Follow the calls; returns how late each row was, in ms."""
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/"
    with console.signed_in(chromium) as tab:
        tab.open("/audit?follow=1")
        tab.page.locator("#live[data-state=on]").wait_for()
        tab.page.evaluate(NOTE)
        working = threading.Thread(
            target=flood, args=(console.client, f"{path}many"), kwargs={"per_s": per_s, "seconds": seconds}
        )
        working.start()
        # Playwright waits, so that the page is not disturbed.
        while working.is_alive():
            tab.page.wait_for_timeout(200)
        console.client.get(f"{path}last")
        tab.page.locator("tbody tr", has_text="configmaps last").wait_for()
        tab.page.wait_for_timeout(200)
        found: list[float] = tab.page.evaluate("window.late")
    return sorted(found)


def main() -> int:
    """Print the figures; returns the exit code."""
    program = find_chromium()
    if program is None:
        return 1
    per_s = int(sys.argv[1]) if len(sys.argv) > 1 else PER_S
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    with (
        tempfile.TemporaryDirectory() as folder,
        running_chromium(program) as chromium,
        running_console(Path(folder)) as console,
    ):
        late = chromium.run(measure, console, chromium, per_s, seconds)
    p99 = late[int(len(late) * 0.99)]
    median = statistics.median(late)
    print(f"{len(late)} rows: median {median:.0f} ms, p99 {p99:.0f} ms, longest {late[-1]:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
