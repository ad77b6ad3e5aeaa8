"""Debian's Chromium by Playwright, in a thread of its own.

Playwright's synchronous API runs an asyncio loop in its thread. pytest's own thread runs the tests on trio.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs
from playwright.sync_api import Browser, sync_playwright

T = TypeVar("T")

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MISSING = "no Chromium on this machine: install the system's package `chromium`"
# Root needs `--no-sandbox`. The others keep Chromium from talking to its makers.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> Path | None:
    """The system's Chromium; Playwright's own download is not used."""
    for program in PROGRAMS:
        if (found := shutil.which(program)) is not None:
            return Path(found)
    return None


@attrs.frozen
class Chromium:
    """A running browser, whose objects are used in its thread alone: by `run`, and by the tests."""

    browser: Browser
    _thread: ThreadPoolExecutor

    def run(self, function: Callable[..., T], *args: object, **more: object) -> T:
        """Call a function in the browser's thread."""
        return self._thread.submit(function, *args, **more).result()


@contextmanager
def running_chromium(program: Path) -> Iterator[Chromium]:
    """Start a browser for the block. Playwright gives it a new user folder, and removes it."""
    with ThreadPoolExecutor(1, "browser") as thread:
        playwright = thread.submit(sync_playwright().start).result()
        try:
            browser = thread.submit(
                playwright.chromium.launch, executable_path=program, args=[*ARGUMENTS]
            ).result()
            try:
                yield Chromium(browser, thread)
            finally:
                thread.submit(browser.close).result()
        finally:
            thread.submit(playwright.stop).result()
