"""How long hypothesis looks, in every test (HYPOTHESIS_PROFILE=deep looks a hundred times longer),
and how long a test of the long ones may take.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from proxy.hub.store import migrations
from proxy.hub.store.engines import sqlite
from tests import new_stores
from tests.leftovers import remove_leftovers
from tests.postgres import MEMORY, postgres, postgres_database

# Fixtures of every test.
__all__ = ["postgres", "postgres_database"]

# What takes a minute of a core takes more on a busy machine, where the bound of all other tests would end it;
# hypothesis then calls it flaky.
LONG_S = 1800

# A shared machine makes any deadline per example a coin toss, so there is none; pytest-timeout ends a hang.
_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("fast", max_examples=30, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("deep", max_examples=3000, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

# A shell that runs the tests in the background has them ignore SIGINT, which whatever they start inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cheap_stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_engine", new_stores.engine)
    if request.node.get_closest_marker("alembic") is None:
        monkeypatch.setattr(migrations, "_upgrade", new_stores.upgrade)


def pytest_sessionstart() -> None:
    if Path(tempfile.gettempdir()) == MEMORY and "PYTEST_XDIST_WORKER" not in os.environ:
        remove_leftovers(MEMORY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONG_S))


def pytest_collection_finish() -> None:
    # Some 7,000 tests and all that they import live until the end: to walk through them at each collection
    # takes a tenth of a test process's time.
    gc.collect()
    gc.freeze()
