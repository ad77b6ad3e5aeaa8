"""The trail over the admin API, with a real trail in a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from audit.record import Actor, ActorType, Event, Kind, Phase, Response
from audit.store import AuditStore
from proxy.hub.admin.streams.cut import CutError
from proxy.hub.admin.trail import searches
from proxy.hub.admin.trail.follow import EVENTS_AT_ONCE
from tests.audit.events import HOSTILE, NOW_S, call, with_user_agent
from tests.fakes.admin import TOKEN, Bench, enrol
from tests.fakes.asgi import Follower, scope_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AuditStore]:
    with closing(AuditStore(tmp_path / "audit.db")) as store:
        yield store


def write(verb: str = "delete", status: int = 200, **options: object) -> list[Event]:
    """Return both rows of one call."""
    intent = call(**options)  # type: ignore[arg-type]
    assert intent.req is not None
    intent = replace(intent, req=replace(intent.req, verb=verb))
    return [intent, intent.completed(intent.ts, resp=Response(status))]


def numbers(answer: dict[str, list[dict[str, str]]]) -> list[int]:
    return [int(row["number"]) for row in answer["events"]]


async def test_events_are_searched_by_all_filters(bench: Bench, store: AuditStore) -> None:
    operator = Actor(ActorType.OPERATOR, "ada")
    admin = replace(call(), kind=Kind.ADMIN, phase=Phase.COMPLETE, actor=operator, cluster=None)
    store.append([*write(), *write("get", 403, agent="b", cluster="dev", at_s=NOW_S + 60), admin])
    for query, found in (
        ("", [5, 4, 3, 2, 1]),
        ("?agent=b&cluster=dev", [4, 3]),
        ("?verb=get&status=4xx", [4]),
        ("?status=200,403&namespace=app&resource=pods&team=sre", [4, 2]),
        ("?kind=admin.action", [5]),
        ("?actor=ada&agent=", [5]),
        ("?actor=agent:b", [4, 3]),
        ("?q=PODS/WEB&limit=2", [5, 4]),
        ("?since=2026-09-21T14:14:00Z", [4, 3]),
        ("?until=2026-09-21T14:14:00Z&kind=call", [2, 1]),
    ):
        assert numbers(await bench.ok("GET", f"/v1/audit/events{query}")) == found, query
    page = await bench.ok("GET", "/v1/audit/events?limit=2")
    assert numbers(await bench.ok("GET", f"/v1/audit/events?limit=2&before={page['older']}")) == [3, 2]


async def test_a_row_has_the_stored_event_and_the_texts_of_a_table(bench: Bench, store: AuditStore) -> None:
    store.append(write(status=403))
    row = (await bench.ok("GET", "/v1/audit/events"))["events"][0]
    event = row.pop("event")
    assert next(iter(event)) == "seq"
    assert event["actor"]["owner"] == "ann"
    assert {name: row[name] for name in ("number", "actor", "cluster", "request", "result", "time")} == {
        "number": "2",
        "actor": "agent:robot",
        "cluster": "prod",
        "request": "delete pods web -n app",
        "result": "403",
        "time": "2026-09-21T14:13:20.000Z",
    }


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=501", "limit"),
        ("color=red", "unknown field `color`"),
        ("before=17", "before: it is not a cursor of a search"),
        ("status=4x4", "status: '4x4' is not a status such as 403, a class such as 4xx, or none"),
        ("kind=call,none", "kind: 'none' is not one of call, "),
        ("since=yesterday", "since: 'yesterday' is neither an age"),
        ("since=1h&until=2h", "since: '1h' is not before until: '2h'"),
        ("agent=a%00", r"agent: 'a\x00' is no name"),
        ("namespace=a,,b", "namespace: 'a,,b' has an empty name"),
        ("q=" + "a" * 1025, "q: expected 1 to 1024 characters, not 1025"),
    ],
)
async def test_a_wrong_filter_is_named(bench: Bench, store: AuditStore, query: str, message: str) -> None:
    reply = await bench.ask("GET", f"/v1/audit/events?{query}")
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")
    assert message in reply.json["error"]["message"]


async def test_an_unknown_name_is_an_error_and_a_silent_one_a_note(bench: Bench, store: AuditStore) -> None:
    await enrol(bench)
    store.append(write(agent="gone"))
    notes = (await bench.ok("GET", "/v1/audit/events?agent=sre-1"))["notes"]
    assert notes == ["agent 'sre-1' is enrolled, but has no events in the trail"]
    assert (await bench.ok("GET", "/v1/audit/events?agent=gone&verb=get"))["notes"] == []
    assert (await bench.ok("GET", "/v1/audit/events?team=sre&verb=get"))["notes"] == []
    for query, hint in (
        ("agent=sre-2", "did you mean sre-1?"),
        ("cluster=x", "`hawse admin cluster list`"),
        ("team=sra", "did you mean sre?"),
        ("team=sre,sra", "did you mean sre?"),
    ):
        reply = await bench.ask("GET", f"/v1/audit/events?{query}")
        assert (reply.status, reply.json["error"]["code"]) == (404, "not_found")
        assert hint in reply.json["error"]["message"]


async def test_one_event_is_shown_with_its_page_its_command_and_its_neighbours(
    bench: Bench, store: AuditStore
) -> None:
    session = replace(call().actor, jti="token-1")
    before, shown, after = (
        [replace(event, actor=session) for event in write(at_s=NOW_S + n)] for n in range(3)
    )
    store.append([*before, *write(), *shown, *write(), *after])
    detail = await bench.ok("GET", f"/v1/audit/events/{shown[0].eid}")
    assert [row["number"] for row in detail["rows"]] == ["5", "6"]
    assert (detail["open"], detail["eid"], detail["command"]) == (
        False,
        shown[0].eid,
        f"hawse audit show {shown[0].eid}",
    )
    fields = {field["name"]: field["lines"] for field in detail["fields"]}
    assert fields["decision"] == ["allow by rule all of policy granted"]
    assert fields["who"][1:] == ["id a-1", "by key-1 token-1"]
    assert detail["kubectl"] == "kubectl --context prod delete pods web -n app"
    assert detail["list_command"] == (
        "hawse audit list --agent robot --cluster prod "
        "--since 2026-09-21T14:08:21.000Z --until 2026-09-21T14:18:21.000Z"
    )
    assert detail["neighbours"]["by"] == "session"
    assert [row["number"] for row in detail["neighbours"]["before"]] == ["2", "1"]
    assert [row["number"] for row in detail["neighbours"]["after"]] == ["9", "10"]
    assert (await bench.ok("GET", "/v1/audit/events/5"))["eid"] == shown[0].eid
    assert (await bench.ask("GET", "/v1/audit/events/99")).status == 404
    assert (await bench.ask("GET", "/v1/audit/events/nonsense")).status == 422


async def test_an_event_names_the_credential_of_its_token(bench: Bench, store: AuditStore) -> None:
    def issued(jti: str, at_s: float) -> Event:
        actor = replace(call().actor, jti=jti, credential=f"key:{jti}")
        return replace(call(at_s=at_s), kind=Kind.TOKEN_ISSUED, phase=Phase.COMPLETE, actor=actor)

    tokens = [issued("token-1", NOW_S - 50), issued("token-2", NOW_S - 40), issued("token-3", NOW_S - 600)]
    shown = [[replace(each, actor=token.actor) for each in write()] for token in tokens]
    store.append([*tokens, *(each for rows in shown for each in rows)])
    for token, rows in zip(tokens[:2], shown[:2], strict=True):
        detail = await bench.ok("GET", f"/v1/audit/events/{rows[0].eid}")
        assert detail["issued"]["eid"] == token.eid
    # A token is good for a minute: no search goes further back.
    assert (await bench.ok("GET", f"/v1/audit/events/{shown[2][0].eid}"))["issued"] is None
    assert (await bench.ok("GET", f"/v1/audit/events/{tokens[0].eid}"))["issued"] is None


class Stream:
    """A follower of the trail, as a client reads it."""

    def __init__(self, bench: Bench, nursery: trio.Nursery, query: str = "", last: str = "") -> None:
        headers = {"authorization": f"Bearer {TOKEN}"} | ({"last-event-id": last} if last else {})
        self.client = Follower.taking()
        self.last = last

        async def serve() -> None:
            scope = scope_of("GET", f"/v1/audit/stream{query}", headers)
            # The end of a client that is gone.
            with suppress(CutError):
                await bench.app(scope, self.client.receive, self.client.send)

        nursery.start_soon(serve)

    async def next(self, event: str) -> list[int]:
        found = await self.client.event()
        assert found["event"] == event, found
        self.last = found.get("id", self.last)
        return [int(row["number"]) for row in json.loads(found["data"]).get("events", [])]


async def test_a_follower_gets_what_is_new_and_goes_on_by_its_last_id(
    bench: Bench, store: AuditStore, nursery: trio.Nursery, autojump_clock: object
) -> None:
    nursery.start_soon(bench.trail.poll.run)
    store.append(write())
    page = await bench.ok("GET", "/v1/audit/events")
    store.append(write())
    stream = Stream(bench, nursery, f"?after={page['follow']}&kind=call")
    assert await stream.next("start") == []
    assert await stream.next("events") == [3, 4]
    store.append(write())
    assert await stream.next("events") == [5, 6]
    stream.client.gone.set()
    store.append([event for _ in range(EVENTS_AT_ONCE) for event in write()])
    again = Stream(bench, nursery, "?kind=call", last=stream.last)
    assert await again.next("start") == []
    found: list[int] = []
    # A step that takes too long sends what it has.
    while len(found) < 2 * EVENTS_AT_ONCE:
        found += await again.next("events")
    assert found == [*range(7, 7 + 2 * EVENTS_AT_ONCE)]
    # Nothing matches, and the cursor moves nevertheless.
    store.append([replace(event, kind=Kind.ADMIN) for event in write()])
    assert await again.next("position") == []
    assert again.last == "m0.0-198"
    nursery.cancel_scope.cancel()


async def test_a_follower_begins_with_what_is_new(
    bench: Bench, store: AuditStore, nursery: trio.Nursery, autojump_clock: object
) -> None:
    nursery.start_soon(bench.trail.poll.run)
    store.append(write())
    stream = Stream(bench, nursery, "?q=other")
    assert await stream.next("start") == []
    store.append([*write(), *write(target="/other")])
    assert await stream.next("events") == [5, 6]
    nursery.cancel_scope.cancel()


async def test_a_cursor_of_another_trail_is_an_error(bench: Bench, store: AuditStore) -> None:
    reply = await bench.ask("GET", "/v1/audit/stream?after=m0.0-9")
    assert reply.json["error"]["message"] == "after: the cursor is of another trail"
    assert (await bench.ask("GET", "/v1/audit/stream?after=x")).status == 422


async def test_an_export_has_all_matches_the_oldest_first(bench: Bench, store: AuditStore) -> None:
    for n in range(130):
        store.append(write(status=403 if n % 2 else 200))
    reply = await bench.ask("GET", "/v1/audit/export?status=403&q=web")
    found = [json.loads(line) for line in reply.body.splitlines()]
    assert [event["seq"] for event in found] == [*range(4, 261, 4)]
    assert reply.headers["content-type"] == "application/jsonl"
    assert reply.headers["content-disposition"].startswith('attachment; filename="hawse-audit-')


async def test_cells_of_an_export_are_no_formulas(bench: Bench, store: AuditStore) -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", 'a"b,\n', HOSTILE]
    store.append([with_user_agent(call(), text) for text in texts])
    reply = await bench.ask("GET", "/v1/audit/export?format=csv")
    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    rows = [*csv.DictReader(io.StringIO(reply.body.decode(), newline=""))]
    assert [row["user_agent"] for row in rows] == [*(f"'{text}" for text in texts[:6]), *texts[6:]]
    assert (rows[0]["number"], rows[0]["verb"], rows[0]["target"]) == (
        "1",
        "delete",
        "/api/v1/namespaces/app/pods/web",
    )
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())


async def test_two_searches_are_under_way_at_once_and_one_of_each_operator(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    trail = searches.TrailSearches(lambda: pytest.fail("no search reads"))
    under_way = trio.Semaphore(0)
    done = trio.Event()

    async def hold(operator: str) -> None:
        async with trail._slot(operator):
            under_way.release()
            await done.wait()

    nursery.start_soon(hold, "ada")
    await under_way.acquire()
    began = trio.current_time()
    with pytest.raises(searches.BusyError, match="another search of yours"):
        await trail.search("ada", lambda reader, until_s: None)
    assert trio.current_time() - began == searches.WAIT_S
    nursery.start_soon(hold, "eve")
    await under_way.acquire()
    done.set()


async def test_reads_are_recorded_with_their_filters_and_a_masked_text(
    bench: Bench, store: AuditStore
) -> None:
    store.append(write())
    await bench.ok("GET", "/v1/audit/events?agent=robot&since=2026-09-21T14:13:20Z&q=pin-1234&limit=7")
    await bench.ok("GET", "/v1/audit/events/1")
    await bench.ask("GET", "/v1/audit/export?format=csv&verb=get,list")
    assert [event.note.split(" eid=")[0] for event in bench.recorder.events] == [
        "audit list agent=robot q=*** since=2026-09-21T14:13:20Z limit=7",
        "audit show",
        "audit export verb=get,list format=csv",
    ]


async def test_a_trail_that_is_missing_is_said(bench: Bench) -> None:
    reply = await bench.ask("GET", "/v1/audit/events")
    assert (reply.status, reply.json["error"]["code"]) == (503, "audit_unavailable")


async def test_the_last_denials_are_searched_once_and_then_kept(bench: Bench, store: AuditStore) -> None:
    denials = bench.trail.denials
    store.append([*write(status=403), *write(), *(each for _ in range(3) for each in write(status=403))])
    assert [row.number for row in await denials.denials(3)] == ["10", "8", "6"]
    store.append([*write(status=403), *write(), *write("get", 403)])
    assert [row.number for row in await denials.denials(10)] == ["16", "12", "10", "8", "6", "2"]
    store.append([event for _ in range(30) for event in write(status=403)])
    assert [row.number for row in await denials.denials(10)][:2] == ["76", "74"]
