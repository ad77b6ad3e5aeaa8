"""One browser for all tests of a process; the tests here run in its thread."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.console.browser.chromium import MISSING, Chromium, find_chromium, running_chromium
from tests.postgres import CI_VARIABLES


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        if any(os.environ.get(name) for name in CI_VARIABLES):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with running_chromium(program) as running:
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
