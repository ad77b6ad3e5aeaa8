"""The trail's pages over a real trail: the list, its filters, the stream of a follower, one event."""

from __future__ import annotations

import json
import re
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote

import trio
from starlette.types import ASGIApp, Scope

from audit.record import Event, Phase
from audit.store import AuditStore
from proxy.console.app import console_app
from proxy.hub.admin.streams.cut import CutError
from tests.console.fakes import FakeSignIn
from tests.console.markup import text_of
from tests.console.trail_events import HOSTILE_TEXTS, made_up_events
from tests.console.world import open_world
from tests.fakes.admin import Bench
from tests.fakes.asgi import Follower, call, scope_of

_ROW = re.compile(rb'<tr id="event-([^"]+)"')


def console(bench: Bench) -> ASGIApp:
    return console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)


async def rows(app: ASGIApp, target: str) -> list[str]:
    return [key.decode() for key in _ROW.findall((await call(app, "GET", target)).body)]


async def test_the_list_shows_each_call_once_and_goes_on_to_the_oldest(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=250) as bench:
        app = console(bench)
        events = made_up_events(bench.clock.now, 250)
        seen: list[str] = []
        target, pages = "/audit", 0
        while target:
            body = (await call(app, "GET", target)).body
            seen += [key.decode() for key in _ROW.findall(body)]
            older = re.search(rb'rel="next" href="([^"]+)"', body)
            target, pages = older[1].decode().replace("&amp;", "&") if older else "", pages + 1
        assert pages == 3
        assert [*dict.fromkeys(seen)] == [*dict.fromkeys(event.eid for event in reversed(events))]


async def test_filters_select_and_stay_in_the_form(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=100) as bench:
        app = console(bench)
        of_triage = {event.eid for event in made_up_events(bench.clock.now, 100) if event.agent == "triage"}
        reply = await call(app, "GET", "/audit?agent=triage&since=24h")
        assert {key.decode() for key in _ROW.findall(reply.body)} == of_triage
        page = reply.body.decode()
        assert 'name="agent" value="triage"' in page
        assert '<a href="/audit?agent=triage&amp;since=24h" aria-current="true">24 h</a>' in page
        assert 'href="/v1/audit/export?agent=triage&amp;since=24h&amp;format=csv"' in page
        assert "hawse audit list --agent triage --since 24h" in page


async def test_a_fault_of_a_filter_is_shown_with_the_form(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=5) as bench:
        app = console(bench)
        bad = await call(app, "GET", "/audit?status=9&agent=triage")
        assert bad.status == 422
        assert "9" in text_of(bad.body)
        assert b'name="agent" value="triage"' in bad.body
        unknown = await call(app, "GET", "/audit?agent=triag")
        assert unknown.status == 404
        assert "triage" in text_of(unknown.body)
        none = await call(app, "GET", "/audit?agent=triage&verb=deletecollection")
        assert "No event matches" in text_of(none.body)


async def test_a_follower_gets_rows_from_the_page_on_and_goes_on_by_its_last_id(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=20) as bench, trio.open_nursery() as nursery:
        app = console(bench)
        nursery.start_soon(bench.trail.poll.run)
        page = (await call(app, "GET", "/audit?agent=triage&follow=1")).body.decode()
        found = re.search('data-follow="([^"]+)"', page)
        assert found is not None
        stream = found[1].replace("&amp;", "&")
        of_triage = await _append(tmp_path, bench, 1)
        first = Follower.taking()
        nursery.start_soon(_serve, app, scope_of("GET", stream), first)
        got = await _rows_of(first, len(of_triage))
        assert first.headers["content-type"].startswith("text/event-stream")
        assert [row["key"] for row in got.rows] == of_triage
        assert "agent=triage" in unquote(got.rows[0]["actor_href"])
        first.gone.set()
        of_triage = await _append(tmp_path, bench, 2)
        again = Follower.taking()
        scope = scope_of("GET", stream, {"last-event-id": got.last_id})
        nursery.start_soon(_serve, app, scope, again)
        assert [row["key"] for row in (await _rows_of(again, len(of_triage))).rows] == of_triage
        nursery.cancel_scope.cancel()


async def test_a_stream_that_is_refused_says_why(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=1) as bench:
        reply = await call(console(bench), "GET", "/audit/stream?after=x")
        assert reply.status >= 400
        assert reply.json["error"]["message"]


async def test_an_event_shows_its_call_whole(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=60, hostile=True) as bench:
        app = console(bench)
        events = made_up_events(bench.clock.now, 60, hostile=True)
        execs = [event for event in events if event.stream is not None and event.stream.command]
        [eid, *_] = [event.eid for event in execs if event.phase is Phase.COMPLETE]
        reply = await call(app, "GET", f"/audit/{eid}")
        shown = text_of(reply.body)
        assert reply.status == 200
        # Each argument is whole, and nothing in it is markup.
        assert all(text in shown for text in HOSTILE_TEXTS if text.isascii() and text.isprintable())
        assert r"\x1b]0;owned\x07\x1b[2J" in shown
        assert f"hawse audit show {eid}" in shown
        assert b'href="/policies/sre-prod?version=3#rule-exec"' in reply.body
        assert (await call(app, "GET", f"/audit/{eid[:18]}")).status == 200
        missing = await call(app, "GET", "/audit/00000000-0000-7000-8000-000000000000")
        assert missing.status == 404


async def _serve(app: ASGIApp, scope: Scope, follower: Follower) -> None:
    # The connection of a stream that the client leaves is cut.
    with suppress(CutError):
        await app(scope, follower.receive, follower.send)


class _Got:
    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []
        self.last_id = ""


async def _rows_of(follower: Follower, count: int) -> _Got:
    got = _Got()
    while len(got.rows) < count:
        event = await follower.event()
        got.last_id = event.get("id", got.last_id)
        if event.get("event") == "events":
            got.rows = [*json.loads(event["data"])["rows"], *got.rows]
    return got


async def _append(folder: Path, bench: Bench, seed: int) -> list[str]:
    """Append events, and return the ids of those of one agent, the newest first."""
    events: list[Event] = made_up_events(bench.clock.now, 30, seed=seed)
    with closing(AuditStore(folder / "audit.db")) as store:
        store.append(events)
    keys = dict.fromkeys(event.eid for event in reversed(events) if event.agent == "triage")
    return [*keys]
