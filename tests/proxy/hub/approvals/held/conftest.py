"""A hub whose policy asks about calls in the namespace `dev`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.proxy.hub.approvals.held.fakes import HeldBench, open_held_bench


@pytest.fixture(params=["with a task", "without a task"])
async def bench(
    tmp_path: Path, request: pytest.FixtureRequest, mock_clock: MockClock
) -> AsyncIterator[HeldBench]:
    async with open_held_bench(tmp_path, with_task=request.param == "with a task") as bench:
        yield bench
