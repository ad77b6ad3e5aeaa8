"""Writes the pictures of the console in docs/images: `make screenshots`.

They show the made-up hub of tests.console.dev, whose time stands still, so that a picture changes only with
what it shows. PICTURED has the digests of the templates, styles and scripts that they were made from;
test_screenshots.py fails when one of those has changed since.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
from playwright.sync_api import Browser

from sandbox.demo.processes import Daemons, free_port
from tests.console.browser.chromium import MISSING, find_chromium, running_chromium
from tests.console.browser.tab import Tab, new_tab

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "docs" / "images"
PICTURED = IMAGES / "pictured.json"
CONSOLE = ROOT / "proxy" / "console"
# Of every picture.
FRAME = ("templates/base.html", "templates/macros.html", "static/console.css", "static/console.js")
DESK, PHONE = (1280, 800), (390, 760)
# The made-up hub's time begins with its start.
NOW = 1_800_000_000.0
# A change of a Deployment, among those that wait (tests.console.request_data).
REQUEST = "/requests/0199a1b2-0000-7cc3-98c4-000000000002"


@attrs.frozen
class Picture:
    """A page, and how it is shown."""

    name: str
    path: str
    templates: tuple[str, ...]
    scheme: str = "light"
    size: tuple[int, int] = DESK
    # A link on the page of `path`, which leads to the page that is shown.
    link: str = ""
    role: str = "admin"

    @property
    def sources(self) -> tuple[str, ...]:
        """The files that it is made from, below the console's folder."""
        return *FRAME, *(f"templates/{name}.html" for name in self.templates)


PICTURES = (
    Picture("overview-light", "/", ("overview",)),
    Picture("overview-dark", "/", ("overview",), "dark"),
    Picture("calls", "/calls", ("calls",), "dark"),
    Picture("audit", "/audit", ("audit", "events")),
    Picture("event", "/audit?status=403", ("event", "events"), link="a[href^='/audit/']"),
    Picture(
        "decision",
        "/decision?agent=rightsizer&cluster=staging&verb=get&resource=secrets&name=card-key&namespace=shop",
        ("decision",),
    ),
    Picture("policy-diff", "/policy-diff?before=3&after=4", ("diff", "policy_parts"), "dark"),
    Picture("clusters", "/clusters", ("clusters", "fleet")),
    Picture("agent", "/agents/deploy-bot", ("agent", "fleet")),
    Picture("request", REQUEST, ("request",), size=(1280, 900), role="approver"),
    Picture("requests-phone", "/requests", ("requests", "fleet"), "light", PHONE, role="approver"),
    Picture("overview-phone", "/", ("overview",), "light", PHONE),
    Picture("calls-phone", "/calls", ("calls",), "dark", PHONE),
)


def digests() -> dict[str, str]:
    """The SHA-256 of each file that the pictures are made from."""
    names = sorted({name for picture in PICTURES for name in picture.sources})
    return {name: hashlib.sha256((CONSOLE / name).read_bytes()).hexdigest() for name in names}


def take(browser: Browser, origin: str, picture: Picture, folder: Path) -> None:
    """Write one picture; raises AssertionError if the page shows an error."""
    with new_tab(browser, origin) as tab:
        tab.look(picture.size[0], picture.scheme, height=picture.size[1])
        # Times of the page are told from the browser's clock.
        tab.page.clock.set_fixed_time(NOW)
        show(tab, picture)
        tab.page.screenshot(path=folder / f"{picture.name}.png")
        tab.check()


def start(daemons: Daemons, role: str) -> str:
    """Start the made-up hub, signed in with a role; returns where its pages are."""
    argv = [sys.executable, "-m", "tests.console.dev", f"--port={free_port()}", "--rate=0", "--still"]
    return daemons.start(role, [*argv, f"--role={role}"], cwd=ROOT).wait_for("http://").rstrip("/")


def show(tab: Tab, picture: Picture) -> None:
    """Open the page, with all that it loads."""
    tab.open(picture.path)
    if picture.link:
        tab.page.locator(picture.link).first.click()
        tab.page.wait_for_load_state()
    tab.page.locator("#live[data-state=on]").wait_for(state="attached")


def main() -> int:
    """Write all pictures, or those that are named; returns the exit code."""
    program = find_chromium()
    if program is None:
        print(MISSING, file=sys.stderr)
        return 1
    wanted = [picture for picture in PICTURES if not sys.argv[1:] or picture.name in sys.argv[1:]]
    IMAGES.mkdir(exist_ok=True)
    with (
        TemporaryDirectory() as folder,
        Daemons(Path(folder)) as daemons,
        running_chromium(program) as chromium,
    ):
        origins = {role: start(daemons, role) for role in sorted({picture.role for picture in wanted})}
        for picture in wanted:
            chromium.run(take, chromium.browser, origins[picture.role], picture, IMAGES)
            print(IMAGES / f"{picture.name}.png")
    PICTURED.write_text(json.dumps(digests(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
