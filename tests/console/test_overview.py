"""The overview: what is first, what it weighs, and what a role sees of it."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.console.app import console_app
from proxy.console.base.templating import read_assets
from proxy.console.pages.overview import CLUSTER_ROWS_MAX, worst_first
from proxy.hub.store.roles import Role
from tests.console.fakes import FakePerson, FakeSignIn
from tests.console.markup import text_of
from tests.console.world import open_world
from tests.fakes.asgi import call

# 60 KB for the first page with a cold cache (the packed assets come once).
FIRST_PAGE_BYTES_MAX = 60_000


def test_clusters_are_sorted_by_what_is_worst() -> None:
    states = ["online", "new", "degraded", "offline"]
    clusters = [{"state": state, "name": name} for state in states for name in "ba"]
    assert [(each["state"], each["name"]) for each in worst_first(clusters)] == [
        (state, name) for state in reversed(states) for name in "ab"
    ]


async def test_what_needs_attention_is_first(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=1) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        text = text_of((await call(app, "GET", "/")).body)
        assert text.index("no relay is connected") < text.index("its certificate ends in 6 days")
        assert text.index("its certificate ends in 6 days") < text.index("Round trip")
        rows = re.findall(r'<tr id="row-([^"]+)"', (await call(app, "GET", "/")).body.decode())
        assert rows == ["edge-lisbon", "dev", "prod-eu-1", "prod-us-1", "staging"]


async def test_the_denials_are_for_those_who_may_read_the_trail(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=1) as bench:
        for role, sees in ((Role.VIEWER, False), (Role.AUDITOR, True)):
            app = console_app(bench.app, FakeSignIn(FakePerson(role)), "hub.example", bench.clock)
            text = text_of((await call(app, "GET", "/")).body)
            assert ("no-deletes-in-prod" in text) == sees
            assert ("The trail is read by the roles auditor and admin." in text) != sees


async def test_the_first_page_is_light_with_many_clusters(tmp_path: Path) -> None:
    async with open_world(tmp_path, clusters=CLUSTER_ROWS_MAX + 1, events=1) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        page = (await call(app, "GET", "/")).body
        assert page.count(b'<tr id="row-') == CLUSTER_ROWS_MAX
        assert "1 more cluster" in text_of(page)
        assert len(page) + sum(len(asset.packed) for asset in read_assets().values()) < FIRST_PAGE_BYTES_MAX
