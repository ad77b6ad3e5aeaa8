"""One browser for all tests of a process; the tests here run in its thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.console.browser.chromium import MISSING, Chromium, find_chromium, running_chromium
from tests.console.browser.world import ConsoleWorld, running_console
from tests.programs import lacking

# The first test of a process starts the browser, and some start a hub.
TIMEOUT_S = 180
HERE = "tests/console/browser/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Of 14,000 tests, by their ids: to look through the parents of their paths takes half a second.
    for item in items:
        if item.nodeid.startswith(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        lacking(MISSING)
    with running_chromium(program) as running:
        yield running


@pytest.fixture(scope="session")
def console(chromium: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    """A hub with a console; nothing starts without a browser."""
    with running_console(tmp_path_factory.mktemp("console")) as running:
        yield running


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call a test that has a browser in the browser's thread, where alone its pages may be used."""
    running = pyfuncitem.funcargs.get("chromium")
    if not isinstance(running, Chromium):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    running.run(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in wanted})
    return True
