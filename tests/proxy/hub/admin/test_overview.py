"""The first page and the stream of changes over the admin API."""

from __future__ import annotations

import attrs
import msgspec
import trio
from trio.testing import MockClock

from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.hub.admin.actions.overview import OverviewActions
from proxy.hub.admin.overview.shapes import HubFacts, Overview
from proxy.hub.admin.verbs.call import Call
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.store.roles import Role
from tests.fakes.admin import PEPPER, Bench, enrol, person_of
from tests.fakes.asgi import Follower, scope_of

RELAY = RelayInfo("prod", "pod-a", "hawse/0.1.0", "192.0.2.7", 1_800_000_000.0, 1_800_000_009.0, 12.5, 3)


async def token_of(bench: Bench, role: Role) -> str:
    token = new_api_key(role.encode().ljust(32, b"."))
    digest = hash_key(token, PEPPER)
    await bench.directory.change(
        lambda store: store.add_admin_token(f"a-{role}", digest, role=role, person=person_of(role))
    )
    return token


async def test_the_overview_of_an_empty_hub(bench: Bench) -> None:
    reply = await bench.ok("GET", "/v1/overview")
    assert (reply["clusters"], reply["attention"], reply["agents"]) == (
        [],
        [],
        {"active": 0, "locked": 0, "retired": 0},
    )


async def test_the_overview_has_the_shape_that_it_declares(bench: Bench) -> None:
    await enrol(bench)
    bench.operations.live.append(RELAY)
    await bench.ok("POST", "/v1/agents/sre-1/lock")
    reply = await bench.ask("GET", "/v1/overview")
    overview = msgspec.json.decode(reply.body, type=Overview, strict=True)
    assert msgspec.to_builtins(overview) == reply.json
    [row] = overview.clusters
    assert (row.name, row.state, row.relays, row.expected, row.versions) == (
        "prod",
        "online",
        1,
        1,
        ["0.1.0"],
    )
    assert overview.agents.locked == 1


async def test_an_unchanged_overview_is_a_304(bench: Bench) -> None:
    await enrol(bench)
    bench.operations.live.append(RELAY)
    tag = (await bench.ask("GET", "/v1/overview")).headers["etag"]
    assert tag.startswith('W/"')
    # The round trip changes all the time, and is no news.
    bench.operations.live[:] = [attrs.evolve(RELAY, rtt_ms=99.0, last_seen=1_800_000_030.0)]
    bench.clock.now += 30
    for known in (tag, f'"x", {tag}', "*"):
        reply = await bench.ask("GET", "/v1/overview", **{"if-none-match": known})
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", tag)
        assert bench.recorder.events[-1].resp is not None
        assert bench.recorder.events[-1].resp.status == 304
    await bench.ok("POST", "/v1/agents/sre-1/lock")
    reply = await bench.ask("GET", "/v1/overview", **{"if-none-match": tag})
    assert (reply.status, reply.headers["etag"] != tag) == (200, True)


async def test_tokens_that_end_soon_are_for_those_who_may_list_tokens(bench: Bench) -> None:
    await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer", "expires_s": 86400})
    kinds = [each["kind"] for each in (await bench.ok("GET", "/v1/overview"))["attention"]]
    assert kinds == ["token-ends"]
    viewer = await token_of(bench, Role.VIEWER)
    reply = await bench.ask("GET", "/v1/overview", token=viewer)
    assert (reply.json["attention"], reply.json["denials"]) == ([], None)
    assert reply.json["denials_roles"] == ["auditor", "admin"]


async def test_the_stream_tells_a_viewer_what_a_viewer_may_read(
    bench: Bench, autojump_clock: MockClock
) -> None:
    viewer = await token_of(bench, Role.VIEWER)
    client = Follower.taking()
    headers = {"authorization": f"Bearer {viewer}"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.app, scope_of("GET", "/v1/stream", headers), client.receive, client.send)
        assert await client.event() == {"event": "changed", "data": '{"topics":[]}'}
        await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer"})
        await trio.sleep(5)
        await bench.ok("POST", "/v1/teams", {"name": "sre"})
        assert (await client.event())["data"] == '{"topics":["teams"]}'
        nursery.cancel_scope.cancel()
    assert client.status == 200


async def test_a_stream_ends_with_its_token(bench: Bench, autojump_clock: MockClock) -> None:
    viewer = await token_of(bench, Role.VIEWER)
    client = Follower.taking()
    headers = {"authorization": f"Bearer {viewer}"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.app, scope_of("GET", "/v1/stream", headers), client.receive, client.send)
        await client.event()
        await bench.ok("DELETE", "/v1/tokens/a-viewer")
        ended_at = trio.current_time()
        while (event := await client.event())["event"] != "end":
            pass
        assert trio.current_time() - ended_at <= 2.0
        assert '"code":"unauthenticated"' in event["data"]
        assert await client.event() == {}


async def test_a_head_of_a_stream_opens_none(bench: Bench) -> None:
    reply = await bench.ask("HEAD", "/v1/stream")
    assert (reply.status, reply.body) == (200, b"")


async def test_a_round_trip_alone_changes_no_tag_and_a_call_does(bench: Bench) -> None:
    await enrol(bench)
    facts = HubFacts({"prod": 1}, {"prod": 1.5})

    async def own() -> HubFacts:
        await trio.lowlevel.checkpoint()
        return facts

    actions = OverviewActions.of(
        directory=bench.directory,
        operations=bench.operations,
        clock=bench.clock,
        public_url="https://hub.example",
        version="0.1.0",
        hubs=None,
        facts=own,
        elsewhere=None,
        denials=None,
        watched={},
        requests=bench.requests,
    )
    call = Call({}, {}, b"", role=Role.VIEWER)
    first = await actions.show(call)
    facts = HubFacts({"prod": 1}, {"prod": 99.5})
    second = await actions.show(call)
    assert second.body != first.body
    assert second.tag == first.tag
    facts = HubFacts({"prod": 2}, {"prod": 99.5})
    assert (await actions.show(call)).tag != first.tag
