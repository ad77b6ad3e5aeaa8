"""The bench of calls with and without their connection's task, and a client and a relay on a bench."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.proxy.hub.calls.bench import Bench, relay_of
from tests.proxy.hub.calls.bench import bench as bench
from tests.proxy.hub.calls.line import Line


@pytest.fixture
async def line(bench: Bench) -> AsyncIterator[Line]:
    """A connection whose calls begin without its task, and the relay that they reach."""
    async with relay_of(bench) as relay, bench.connected() as client:
        yield Line(bench, client, relay)
