"""The size of the first page."""

from __future__ import annotations

from pathlib import Path

from proxy.console.app import console_app
from tests.console.fakes import FakeSignIn
from tests.console.world import open_world
from tests.fakes.asgi import call

# Without its assets, which a browser keeps. Compressed it has a tenth.
FIRST_PAGE_BYTES_MAX = 60_000


async def test_the_first_page_of_100_clusters_has_at_most_60_kb(tmp_path: Path) -> None:
    # The page counts the agents, and lists none.
    async with open_world(tmp_path, clusters=100, agents=7, events=20) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        reply = await call(app, "GET", "/")
    assert reply.status == 200
    assert len(reply.body) <= FIRST_PAGE_BYTES_MAX
