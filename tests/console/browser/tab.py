"""A browser's tab that notes everything a page of the console must never do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import axe_playwright_python
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
# The widths of a desk and of a phone, each in both colour schemes.
LOOKS = tuple((width, scheme) for width in (1280, 390) for scheme in ("light", "dark"))
HEIGHT = 900
# For what takes a tenth of a second on an idle machine.
PATIENCE_S = 20
# The rules that fail, and where. A rule that axe cannot decide is not among them.
VIOLATIONS = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map(
    rule => `${rule.id}: ${rule.nodes.map(node => node.target + " " + node.failureSummary).join("; ")}`)"""
# Before any script of the page. A report by the browser has the directive and what it kept from loading.
REPORTS = """addEventListener("securitypolicyviolation",
    report => reported(`${report.effectiveDirective} ${report.blockedURI} ${report.sample}`))"""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


# Playwright puts attributes of its own on the owner of a handler.
@attrs.define(eq=False, slots=False)
class Tab:
    """A page, and the faults that it has shown since the last `check`."""

    page: Page
    origin: str
    faults: list[str] = attrs.Factory(list)
    # Console messages that the test has provoked: a 403 that is asked for is an error in the console.
    expected: list[str] = attrs.Factory(list)

    def open(self, path: str) -> None:
        """Load a page of the console."""
        self.page.goto(self.origin + path)

    def check(self) -> None:
        """Raise AssertionError if there were faults: console errors, reports, dialogs, foreign requests."""
        faults = [fault for fault in self.faults if not any(text in fault for text in self.expected)]
        self.faults.clear()
        assert not faults, "\n".join(faults)

    def violations(self) -> list[str]:
        """What axe finds on the page as it is now."""
        if not self.page.evaluate("typeof axe == 'object'"):
            self.page.evaluate(AXE.read_text())
        found: list[str] = self.page.evaluate(VIOLATIONS)
        return found

    def look(self, width: int, scheme: str, *, height: int = HEIGHT) -> None:
        """Show the page on a screen of this size, in a colour scheme."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # a str of LOOKS

    def inspect(self, looks: Sequence[tuple[int, str]] = LOOKS) -> None:
        """Raise AssertionError if axe finds a violation in one of the looks, or the page scrolls sideways."""
        found = []
        for width, scheme in looks:
            self.look(width, scheme)
            found += [f"{width} {scheme}: {violation}" for violation in self.violations()]
            whole, seen = self.page.evaluate(WIDTHS)
            if whole > seen:
                found.append(f"{width} {scheme}: the page is {whole} px wide")
        self.look(*LOOKS[0])
        assert not found, "\n".join(found)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.faults.append(f"console: {message.text} ({message.location.get('url')})")

    def _on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.faults.append(f"request: {request.url}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _watch(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("request", self._on_request)
        self.page.on("dialog", self._on_dialog)
        self.page.on("popup", lambda _: self.faults.append("popup"))
        self.page.expose_function("reported", lambda text: self.faults.append(f"policy: {text}"))
        self.page.add_init_script(REPORTS)


@contextmanager
def new_tab(browser: Browser, origin: str) -> Iterator[Tab]:
    """A tab with cookies of its own; its certificate is the hub's own CA's, which Chromium does not know."""
    context = browser.new_context(
        ignore_https_errors=True, viewport={"width": LOOKS[0][0], "height": HEIGHT}, reduced_motion="reduce"
    )
    try:
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        tab = Tab(page, origin)
        tab._watch()
        yield tab
    finally:
        context.close()
