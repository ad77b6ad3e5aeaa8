"""A call's way through the hub, with a real directory, recorder and tunnel; the relay is a script.

Each test runs twice: the call is begun by its connection's task, or without it (proxy.hub.calls.begin). The
outcome must be the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import attrs
import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from audit.reader import AuditReader
from auth.principal import Principal
from proxy.exchange.client_port import ClientPort
from proxy.exchange.kept_body import REPLAY_BYTES_MAX
from proxy.exchange.parked_exchange import ExchangeFault
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.events import Trail
from proxy.hub.calls import calls as calls_module
from proxy.hub.calls.limits import Limits
from proxy.hub.calls.live import Ending
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.home.config import AuditConfig
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.relays.contexts import AgentContext
from proxy.hub.relays.relay_wait import PARK_S
from proxy.message.failure import InboundBroken
from proxy.message.head import ANSWER_HEAD_BYTES_MAX, LONG_HEAD_BYTES, RequestHead, ResponseHead
from tests.proxy.hub.calls.bench import (
    OK,
    Bench,
    Change,
    fail,
    read_all,
    relay_of,
    streams_of,
)
from tests.tunnel.passes import counted_passes
from tests.tunnel.trio_stream import accept, accept_nowait
from tunnel import CloseCode, Processed, Session, StreamCode, StreamReset

T = TypeVar("T")


async def test_a_get_crosses_under_a_fresh_head_and_leaves_one_event(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        heads: list[RequestHead] = []

        async def answer() -> None:
            async with await accept(relay) as stream:
                heads.append(RequestHead.decode(stream.head))
                assert bytes(stream.context.payload) == b"token-0"
                await stream.send_head(OK)
                await stream.send_all(b"yes")
                await stream.send_eof()

        nursery.start_soon(answer)
        status, _headers, body = await bench.ask(
            bench.request("GET /clusters/prod/api/v1/namespaces/dev/pods?limit=500 HTTP/1.1", "Cookie: a=b")
        )

    assert (status, body) == (200, b"yes")
    [head] = heads
    assert head.target == b"/api/v1/namespaces/dev/pods?limit=500"
    assert head.header(b"authorization") is None
    assert head.header(b"cookie") is None
    assert head.header(b"x-forwarded-for") == b"192.0.2.7"
    [event] = await bench.trail()
    assert event["eid"] == (head.header(b"audit-id") or b"").decode()
    assert event["phase"] == "complete"
    assert event["req"]["resource"] == "pods"
    assert event["resp"]["status"] == 200


async def test_a_location_leads_back_to_the_same_cluster(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def redirect() -> None:
            async with await accept(relay) as stream:
                elsewhere = ((b"location", b"/api/v1"), (b"content-length", b"0"))
                await stream.send_head(ResponseHead.of(301, b"", elsewhere).encode(), eof=True)

        nursery.start_soon(redirect)
        status, headers, _ = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
    assert (status, headers[b"location"]) == (301, b"/clusters/prod/api/v1")


async def test_a_write_is_durable_before_the_relay_hears_of_it(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        seen: list[list[dict[str, object]]] = []

        async def answer() -> None:
            async with await accept(relay) as stream:
                reader = AuditReader(bench.audit_file)
                seen.append([json.loads(stored.body) for stored in reader.query()])
                reader.close()
                assert await stream.receive_some() == b"{}"
                assert await stream.receive_some() == b""
                await stream.send_head(OK)
                await stream.send_all(b"yes")
                await stream.send_eof()

        nursery.start_soon(answer)
        data = bench.request(
            "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1", "Content-Length: 2", body=b"{}"
        )
        status, _, _ = await bench.ask(data)

    assert status == 200
    assert [event["phase"] for event in seen[0]] == ["intent"]
    intent, end = await bench.trail()
    assert (intent["phase"], end["phase"]) == ("intent", "complete")
    assert intent["eid"] == end["eid"]


async def test_an_upgrade_is_durable_whatever_it_asks_for(bench: Bench) -> None:
    """A watch over WebSocket is a read in all but its connection."""
    upgrade = (
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    data = bench.request("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1", *upgrade)
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(bench.ask, data.replace(b"Connection: close", b"Connection: Upgrade"))
        async with await accept(relay):
            reader = AuditReader(bench.audit_file)
            seen = [json.loads(stored.body)["phase"] for stored in reader.query()]
            reader.close()
        nursery.cancel_scope.cancel()
    assert seen == ["intent"]


async def test_the_trail_says_whom_the_api_server_saw(bench: Bench) -> None:
    data = bench.request(
        "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1", "Content-Length: 2", body=b"{}"
    )
    # After the agent got its own token, so that what this one says of its teams no longer holds.
    await bench.directory.change(lambda store: store.change_agent_teams("ann", add=["web"]))
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def answer() -> None:
            async with await accept(relay) as stream:
                await stream.send_head(OK)
                await stream.send_all(b"yes")
                await stream.send_eof()

        nursery.start_soon(answer)
        await bench.ask(data)
        session = relay.session_id
    intent, end = await bench.trail()
    agent_id = bench.directory.current.agents_by_name["ann"].id
    user: dict[str, object] = {"user": "agent:ann", "groups": ["acme/sre", "acme/web"]}
    # Which relay, and so which session, is not known before one is chosen.
    assert intent["impersonated"] == {**user, "extra": {"hawse.dev/agent-id": [agent_id]}}
    extra = {"hawse.dev/agent-id": [agent_id], "hawse.dev/session": [session]}
    assert end["impersonated"] == {**user, "extra": extra}


async def test_a_body_that_cannot_be_read_is_its_agents_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.exchange.server.LINGER_S", 0.0)
    async with relay_of(bench) as relay:
        data = bench.request(POST[0], "Transfer-Encoding: chunked", body=b"no length\r\n")
        status, _, body = await bench.ask(data)
        assert accept_nowait(relay) is None
    assert status == 400
    assert b"the request's body is malformed" in body
    assert (await bench.trail())[-1]["resp"]["status"] == 400


@pytest.mark.parametrize("line", ["GET /clusters/prod/api HTTP/1.1", "GET /clusters/prod?watch=1 HTTP/1.1"])
async def test_an_offline_cluster_is_a_503_at_once_that_kubectl_does_not_repeat(
    bench: Bench, line: str
) -> None:
    status, headers, body = await bench.ask(bench.request(line))
    assert status == 503
    assert b"retry-after" not in headers
    assert b"offline" in headers[b"warning"]
    assert json.loads(body)["reason"] == "ServiceUnavailable"


@pytest.mark.parametrize(
    ("line", "header", "status", "kind"),
    [
        ("GET /clusters/prod/api HTTP/1.1", "Impersonate-User: system:admin", 403, "header_smuggling"),
        ("GET /clusters/prod/api HTTP/1.1", "impersonate_group: system:masters", 403, "header_smuggling"),
        ("GET /clusters/prod/api/../v1 HTTP/1.1", "X-A: b", 400, "request.malformed"),
        ("GET /clusters/prod/api%2fv1 HTTP/1.1", "X-A: b", 400, "request.malformed"),
    ],
)
async def test_what_is_refused_never_reaches_the_relay_and_is_one_event(
    bench: Bench, line: str, header: str, status: int, kind: str
) -> None:
    async with relay_of(bench) as relay:
        answered, _, _ = await bench.ask(bench.request(line, header))
        assert answered == status
        with trio.move_on_after(0.05) as waiting:
            await accept(relay)
        assert waiting.cancelled_caught
    [event] = await bench.trail()
    assert event["kind"] == kind
    assert event["decision"]["effect"] == "deny"


async def test_a_cluster_that_is_not_granted_looks_like_one_that_is_not_there(bench: Bench) -> None:
    answers = []
    for name in ("other", "missing"):
        data = bench.request(f"GET /clusters/{name}/api HTTP/1.1", token=bench.token(name))
        status, _, body = await bench.ask(data)
        answers.append((status, body.replace(name.encode(), b"NAME")))
    assert answers[0] == answers[1]
    assert answers[0][0] == 403


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        (lambda store, _: store.lock_agent("ann"), 403, "call"),
        (lambda store, _: store.retire_agent("ann"), 403, "call"),
        (lambda store, _: store.revoke("prod", "sre"), 403, "call"),
        (lambda store, _: store.remove_cluster("prod"), 403, "call"),
        (lambda store, _: store.change_agent_teams("ann", add=["web"], remove=["sre"]), 403, "call"),
        (lambda store, key_id: store.revoke_key("ann", key_id), 401, "auth.failed"),
    ],
)
async def test_a_valid_token_is_worth_nothing_once_what_it_stands_for_is_taken_back(
    bench: Bench, change: Change, status: int, kind: str
) -> None:
    data = bench.request("GET /clusters/prod/api HTTP/1.1")
    credential = bench.credential
    await bench.directory.change(lambda store: change(store, credential))
    answered, _, _ = await bench.ask(data)
    assert answered == status
    [event] = await bench.trail()
    assert event["kind"] == kind


async def test_whoever_shows_no_good_token_is_told_how_to_get_one(bench: Bench) -> None:
    data = bench.request("GET /clusters/prod/api HTTP/1.1", token="of-another-kind")
    status, headers, body = await bench.ask(data)
    assert status == 401
    message = json.loads(body)["message"]
    assert message.endswith("other clients by `hawse connect`")
    # Discovery shows the header alone.
    assert message.encode() in headers[b"warning"]


async def test_the_holder_of_a_token_whose_key_is_revoked_is_told_the_next_step_once(bench: Bench) -> None:
    data, credential = bench.request("GET /clusters/prod/api HTTP/1.1"), bench.credential
    await bench.directory.change(lambda store: store.revoke_key("ann", credential))
    status, _, body = await bench.ask(data)
    url = bench.calls.config.public_url
    # A fresh token, as for one that has expired, is not to be had.
    assert (status, json.loads(body)["message"]) == (
        401,
        "the credential of agent:ann that this token was made from is revoked; "
        f"ask the operator of this hub for another, then run `hawse login --hub {url}` with it",
    )


async def test_the_agents_calls_are_bounded(bench: Bench) -> None:
    agent = bench.directory.current.agents_by_name["ann"]
    assert bench.calls.limits.admit(agent.principal) is None
    bench.calls.limits._loads[agent.id].streams = 2
    status, headers, _ = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
    assert status == 429
    assert b"retry-after" not in headers
    bench.calls.limits._loads[agent.id].streams = 0
    [event] = await bench.trail()
    assert event["decision"]["rule"] == "limits.streams_per_agent"


async def test_a_token_that_the_relay_refuses_is_renewed_once(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        tokens: list[bytes] = []

        async def refuse() -> None:
            for _ in range(2):
                stream = await accept(relay)
                tokens.append(bytes(stream.context.payload))
                stream.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="expired")

        nursery.start_soon(refuse)
        status, _, body = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
    # Not a 401: the agent's own credential was in order, and logging in again would not help.
    assert status == 503
    assert b"does not accept its hub: expired" in body
    assert tokens == [b"token-0", b"token-1"]


@pytest.mark.parametrize("siblings", [1, 2])
async def test_a_relay_that_believes_no_token_does_not_keep_a_call_from_its_sibling(
    bench: Bench, siblings: int
) -> None:
    """As one whose clock was set wrong. Nothing stays open there, so it has the least load of all."""
    attempts: list[str] = []

    async def refuse(relay: Session) -> None:
        while True:
            stream = await accept(relay)
            attempts.append("refuses")
            await read_all(stream)
            stream.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="a wrong clock")

    async def answer(relay: Session) -> None:
        stream = await accept(relay)
        attempts.append("answers")
        assert await read_all(stream) == b"create"
        stream.send_answer_nowait(OK, b"yes", eof=True)
        await stream.aclose()

    async with relay_of(bench, "a") as a, AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(relay_of(bench, f"b{number}")) for number in range(siblings)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse, a)
            for other in others:
                nursery.start_soon(answer, other)
            status, _, body = await bench.ask(bench.request(*POST, body=b"create"))
            nursery.cancel_scope.cancel()
    assert (status, body) == (200, b"yes")
    assert attempts == ["refuses", "refuses", "answers"]


async def test_relays_that_all_believe_no_token_are_asked_in_vain(bench: Bench) -> None:
    attempts: list[str] = []

    async def refuse(relay: Session, name: str) -> None:
        while True:
            stream = await accept(relay)
            attempts.append(name)
            stream.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="another hub")

    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:
        nursery.start_soon(refuse, a, "a")
        nursery.start_soon(refuse, b, "b")
        status, _, body = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
        nursery.cancel_scope.cancel()
    assert status == 503
    assert b"does not accept its hub: another hub" in body
    assert attempts == ["a", "a", "b", "b"]


async def test_a_relay_that_leaves_as_its_token_is_renewed_is_offline_and_its_agent_still_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        [live] = bench.registry.relays()
        renew = live.contexts.renew

        async def refuse() -> None:
            stream = await accept(relay)
            stream.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="expired")

        def renew_too_late(principal: Principal, now: float) -> AgentContext:
            live.session.end(CloseCode.NORMAL, "it has left")
            return renew(principal, now)

        monkeypatch.setattr(live.contexts, "renew", renew_too_late)
        nursery.start_soon(refuse)
        status, _, body = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
    assert status == 503
    assert b'cluster \\"prod\\" is offline: it has left' in body
    [event] = bench.observed
    assert event.resp is not None
    assert (event.resp.status, event.resp.processed) == (503, "no")


async def test_the_hub_knows_what_is_under_way(bench: Bench) -> None:
    underway = bench.calls.live
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(bench.ask, bench.request("GET /clusters/prod/api HTTP/1.1"))
        plain = await accept(relay)
        watch = "GET /clusters/prod/api/v1/pods?watch=true HTTP/1.1"
        nursery.start_soon(bench.ask, bench.request(watch))
        long = await accept(relay)
        assert (underway.count, underway.long) == (2, 1)
        for stream in (plain, long):
            await stream.send_head(OK)
            await stream.send_all(b"yes")
            await stream.send_eof()
        with trio.fail_after(1):
            assert await underway.wait_drained(60)
        await plain.aclose()
        await long.aclose()
    assert streams_of(bench.calls) == {}


@pytest.mark.parametrize("code", [StreamCode.REFUSED, StreamCode.DRAINING])
async def test_a_call_that_one_relay_does_not_take_goes_to_another(bench: Bench, code: StreamCode) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def refuse_and_then_answer() -> None:
            first = await accept(relay)
            first.reset(code, processed=Processed.NO, reason="going away")
            async with await accept(relay) as second:
                # The token was in order: a refusal under load mints no other.
                assert second.context.index == first.context.index
                await second.send_head(OK)
                await second.send_all(b"yes")
                await second.send_eof()

        nursery.start_soon(refuse_and_then_answer)
        status, _, body = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
    assert (status, body) == (200, b"yes")
    assert len(await bench.trail()) == 1


POST = ("POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1", "Content-Length: 6")


@pytest.mark.parametrize(
    "code",
    [
        StreamCode.REFUSED,
        StreamCode.DRAINING,
        StreamCode.DIAL_FAILED,
        StreamCode.DETACH_EXPIRED,
        StreamCode.OVERLOADED,
    ],
)
async def test_a_post_that_one_relay_refuses_goes_whole_to_its_sibling(
    bench: Bench, code: StreamCode
) -> None:
    bodies: list[bytes] = []
    refusing: list[Session] = []

    async def serve(relay: Session) -> None:
        stream = await accept(relay)
        # All of the body has crossed before it is refused.
        bodies.append(await read_all(stream))
        if not refusing:
            refusing.append(relay)
            stream.reset(code, processed=Processed.NO, reason="not here")
            await serve(relay)
            return
        await stream.send_head(OK)
        await stream.send_all(b"yes")
        await stream.send_eof()
        await stream.aclose()

    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:
        nursery.start_soon(serve, a)
        nursery.start_soon(serve, b)
        status, _, body = await bench.ask(bench.request(*POST, body=b"create"))
        nursery.cancel_scope.cancel()
    assert (status, body) == (200, b"yes")
    assert bodies == [b"create", b"create"]
    _, closing = await bench.trail()
    assert closing["relay"]["instance"] == ("b" if refusing == [a] else "a")
    assert closing["resp"]["processed"] == "yes"
    assert closing["req"]["body_bytes"] == 6


def doubt(bench: Bench, instance: str) -> None:
    """What the keepalive of a relay's session does after five seconds of silence."""
    [relay] = [relay for relay in bench.registry.relays() if relay.instance == instance]
    driver = relay.session._driver
    driver.connection.deadlines.doubt()
    driver.run_due()


REVIEW = "POST /clusters/prod/apis/authorization.k8s.io/v1/selfsubjectaccessreviews HTTP/1.1"


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("GET /clusters/prod/api/v1/pods HTTP/1.1", b""),
        ("GET /clusters/prod/api HTTP/1.1", b""),
        ("HEAD /clusters/prod/api/v1/namespaces/dev/pods/p HTTP/1.1", b""),
        ("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1", b""),
        ("GET /clusters/prod/api/v1/namespaces/dev/pods/p/log?follow=1 HTTP/1.1", b""),
        (REVIEW, b"review"),
    ],
)
async def test_a_read_whose_tunnel_is_in_doubt_is_answered_by_a_sibling(
    bench: Bench, line: str, body: bytes
) -> None:
    answers: list[tuple[int, dict[bytes, bytes], bytes]] = []
    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:

        async def ask() -> None:
            length = [f"Content-Length: {len(body)}"] if body else []
            answers.append(await bench.ask(bench.request(line, *length, body=body)))

        nursery.start_soon(ask)
        first = await accept(a)
        assert await read_all(first) == body
        doubt(bench, "a")
        with trio.fail_after(2):
            second = await accept(b)
            was_reset = trio.Event()
            first.raw.on_reset(was_reset.set)
            await was_reset.wait()
            with pytest.raises(StreamReset) as caught:
                first.send_nowait(b"late")
        assert caught.value.code is StreamCode.CANCEL
        assert "the tunnel of relay a is silent: b is asked instead" in str(caught.value)
        assert second.head == first.head
        assert await read_all(second) == body
        second.send_answer_nowait(OK, b"" if line.startswith("HEAD") else b"yes", eof=True)
        await second.aclose()
    [(status, _, got)] = answers
    assert (status, got) == (200, b"" if line.startswith("HEAD") else b"yes")
    [event] = await bench.trail()
    assert event["relay"] == {"instance": "b", "version": "v1"}
    assert event["tunnel"]["moved_from"] == "a"
    assert event["resp"]["status"] == 200


@pytest.mark.parametrize(
    "line",
    [
        POST[0],
        "GET /clusters/prod/api/v1/namespaces/dev/services/s/proxy/x HTTP/1.1",
        "GET /clusters/prod/api/v1/namespaces/dev/pods/p/proxy HTTP/1.1",
        "GET /clusters/prod/api/v1/proxy/nodes/n/ HTTP/1.1",
        "DELETE /clusters/prod/api/v1/namespaces/dev/pods/p HTTP/1.1",
        "GET /clusters/prod/api/v1/namespaces/dev/pods/p/exec?command=ls HTTP/1.1",
        "GET /clusters/prod/api/v1/pods HTTP/1.1",
    ],
)
async def test_what_acts_or_is_answered_already_waits_for_a_tunnel_in_doubt(bench: Bench, line: str) -> None:
    begun = line.endswith("/api/v1/pods HTTP/1.1")
    await bench.directory.change(lambda store: store.switch_rules("guard", ["nodes-proxy"], enabled=False))
    answers: list[tuple[int, dict[bytes, bytes], bytes]] = []
    answered = trio.Event()
    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append(await bench.ask(bench.request(line)))
            answered.set()

        nursery.start_soon(ask)
        with trio.fail_after(2):
            stream = await accept(a)
        if begun:
            await stream.send_head(OK)
            await wait_all_tasks_blocked()
        doubt(bench, "a")
        if not begun:
            await stream.send_head(OK)
        await stream.send_all(b"yes")
        await stream.send_eof()
        with trio.fail_after(2):
            await answered.wait()
        assert accept_nowait(b) is None
        await stream.aclose()
    assert (answers[0][0], answers[0][2]) == (200, b"yes")
    assert "tunnel" not in (await bench.trail())[-1]


@pytest.mark.parametrize("siblings", ["none", "in doubt"])
async def test_a_read_whose_tunnel_is_in_doubt_waits_where_nobody_else_is_sure(
    bench: Bench, siblings: str
) -> None:
    answers: list[tuple[int, dict[bytes, bytes], bytes]] = []
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(relay_of(bench, "a"))
        if siblings == "in doubt":
            b = await stack.enter_async_context(relay_of(bench, "b"))
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await bench.ask(bench.request("GET /clusters/prod/api/v1/pods HTTP/1.1")))

            nursery.start_soon(ask)
            stream = await accept(a)
            if siblings == "in doubt":
                doubt(bench, "b")
            doubt(bench, "a")
            stream.send_answer_nowait(OK, b"yes", eof=True)
        if siblings == "in doubt":
            assert accept_nowait(b) is None
    assert (answers[0][0], answers[0][2]) == (200, b"yes")
    assert "tunnel" not in (await bench.trail())[0]


async def test_a_read_that_no_sibling_takes_either_may_have_been_seen(bench: Bench) -> None:
    answers: list[tuple[int, dict[bytes, bytes], bytes]] = []
    answered = trio.Event()
    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:

        async def refuse(relay: Session) -> None:
            while True:
                (await accept(relay)).reset(StreamCode.REFUSED, processed=Processed.NO, reason="full")

        async def ask() -> None:
            answers.append(await bench.ask(bench.request("GET /clusters/prod/api/v1/pods HTTP/1.1")))
            answered.set()

        nursery.start_soon(ask)
        await accept(a)
        doubt(bench, "a")
        nursery.start_soon(refuse, a)
        nursery.start_soon(refuse, b)
        with trio.fail_after(2):
            await answered.wait()
        nursery.cancel_scope.cancel()
    assert answers[0][0] == 503
    assert b"has not seen this request" not in answers[0][2]
    [event] = await bench.trail()
    assert event["resp"]["processed"] == "maybe"
    assert event["tunnel"]["moved_from"] == "a"


async def test_a_read_that_is_revoked_as_it_leaves_a_tunnel_in_doubt_goes_nowhere(bench: Bench) -> None:
    answers: list[tuple[int, dict[bytes, bytes], bytes]] = []
    answered = trio.Event()
    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append(await bench.ask(bench.request("GET /clusters/prod/api/v1/pods HTTP/1.1")))
            answered.set()

        nursery.start_soon(ask)
        await accept(a)
        [live] = bench.calls.live._calls.values()
        doubt(bench, "a")
        live.end(Ending(CloseReason.REVOKED, "locked"))
        with trio.fail_after(2):
            await answered.wait()
        assert accept_nowait(b) is None
    assert answers[0][0] == 403
    [event] = await bench.trail()
    assert (event["kind"], event["resp"]["processed"]) == ("session.killed", "maybe")


@pytest.mark.parametrize("processed", [Processed.MAYBE, Processed.YES])
async def test_what_may_have_been_processed_is_sent_once(bench: Bench, processed: Processed) -> None:
    opened = 0

    async def serve(relay: Session) -> None:
        nonlocal opened
        while True:
            stream = await accept(relay)
            opened += 1
            await read_all(stream)
            stream.reset(StreamCode.DRAINING, processed=processed, reason="gone")

    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:
        nursery.start_soon(serve, a)
        nursery.start_soon(serve, b)
        status, _, body = await bench.ask(bench.request(*POST, body=b"create"))
        nursery.cancel_scope.cancel()
    assert (status, opened) == (504, 1)
    assert b"look before you send it again" in body
    assert (await bench.trail())[-1]["resp"]["processed"] == processed.name.lower()


async def test_a_body_that_is_not_held_is_sent_once_and_the_agent_told(bench: Bench) -> None:
    opened = 0

    async def serve(relay: Session) -> None:
        nonlocal opened
        while True:
            stream = await accept(relay)
            opened += 1
            await read_all(stream)
            stream.reset(StreamCode.REFUSED, processed=Processed.NO, reason="full")

    size = REPLAY_BYTES_MAX + 1
    line = "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1"
    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, trio.open_nursery() as nursery:
        nursery.start_soon(serve, a)
        nursery.start_soon(serve, b)
        status, _, body = await bench.ask(bench.request(line, f"Content-Length: {size}", body=bytes(size)))
        nursery.cancel_scope.cancel()
    assert (status, opened) == (503, 1)
    assert b"the API server has not seen this request" in body
    assert (await bench.trail())[-1]["resp"]["processed"] == "no"


async def test_a_relay_that_cannot_reach_its_api_server_is_not_asked_twice(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def refuse() -> None:
            stream = await accept(relay)
            stream.reset(StreamCode.DIAL_FAILED, processed=Processed.NO, reason="no route")

        nursery.start_soon(refuse)
        status, _, body = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
        assert accept_nowait(relay) is None
    assert status == 503
    assert b"cannot reach its API server: no route; the API server has not seen this request" in body


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while True:
            if condition():
                return
            await trio.sleep(0.001)


async def test_a_call_waits_for_a_relay_that_is_expected(bench: Bench) -> None:
    bench.registry.relay_wait.expect([bench.directory.current.clusters_by_name["prod"].id])
    answers: list[tuple[int, bytes]] = []

    async def ask() -> None:
        status, _, body = await bench.ask(bench.request(*POST, body=b"create"))
        answers.append((status, body))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        # The intent is written on a thread first.
        await until(lambda: bench.registry.relay_wait.parked == 1)
        async with relay_of(bench) as relay:
            async with await accept(relay) as stream:
                assert await read_all(stream) == b"create"
                await stream.send_head(OK)
                await stream.send_all(b"yes")
                await stream.send_eof()
                await until(lambda: len(answers) == 1)
    assert answers == [(200, b"yes")]
    # From now on its absence is told at once.
    status, _, body = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
    assert status == 503
    assert b"offline" in body
    assert b"the API server has not seen this request" in body


async def test_a_call_that_is_revoked_while_it_waits_for_a_relay_is_told_at_once(bench: Bench) -> None:
    bench.registry.relay_wait.expect([bench.directory.current.clusters_by_name["prod"].id])
    answers: list[tuple[int, bytes]] = []

    async def ask() -> None:
        status, _, body = await bench.ask(bench.request(*POST, body=b"create"))
        answers.append((status, body))

    with trio.fail_after(PARK_S / 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: bench.registry.relay_wait.parked == 1)
            await bench.directory.change(lambda store: store.lock_agent("ann"))
    [(status, body)] = answers
    assert status == 403
    assert b"agent:ann is locked" in body
    assert bench.registry.relay_wait.parked == 0
    closing = (await bench.trail())[-1]
    assert (closing["kind"], closing["resp"]["processed"]) == ("session.killed", "no")


async def test_an_answer_that_breaks_off_was_seen_by_the_api_server(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def break_off() -> None:
            stream = await accept(relay)
            await stream.send_head(b"HTTP/1.1 200 OK\r\n\r\n")
            await stream.send_all(b"half")
            await trio.testing.wait_all_tasks_blocked(0.01)
            stream.reset(StreamCode.DETACH_EXPIRED, processed=Processed.MAYBE, reason="lost", in_line=True)

        nursery.start_soon(break_off)
        status, _, _ = await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1"))
    assert status == 200
    assert (await bench.trail())[-1]["resp"]["processed"] == "yes"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_answer_that_fits_into_no_head_is_the_backends_fault(bench: Bench, method: str) -> None:
    """The hub adds a line to what comes from behind a proxy path."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-filler: %s\r\n\r\n"
    head %= b"x" * (ANSWER_HEAD_BYTES_MAX - len(head))
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def answer() -> None:
            stream = await accept(relay)
            await stream.send_head(head)
            await stream.send_all(b"{}")
            await stream.send_eof()

        nursery.start_soon(answer)
        path = "/clusters/prod/api/v1/namespaces/work/services/web/proxy/"
        status, _, body = await bench.ask(
            bench.request(f"{method} {path} HTTP/1.1", "Content-Length: 2", body=b"{}")
            if method == "POST"
            else bench.request(f"{method} {path} HTTP/1.1")
        )
    assert status == 502
    assert b"the answer could not be understood: the head has" in body
    assert (await bench.trail())[-1]["resp"]["processed"] == "yes"


async def test_an_explained_403_that_fits_into_no_head_any_more_is_the_backends_fault(bench: Bench) -> None:
    """The hub adds a Warning to what speaks of impersonation."""
    body = b"cannot impersonate"
    head = b"HTTP/1.1 403 Forbidden\r\ncontent-length: %d\r\nx-filler: %s\r\n\r\n"
    head %= len(body), b"x" * (ANSWER_HEAD_BYTES_MAX - len(head))
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def answer() -> None:
            (await accept(relay)).send_answer_nowait(head, body, eof=True)

        nursery.start_soon(answer)
        path = "/clusters/prod/api/v1/namespaces/work/services/web/proxy/"
        status, _, received = await bench.ask(bench.request(f"GET {path} HTTP/1.1"))
    assert status == 502
    assert b"the answer could not be understood: the head has" in received
    assert (await bench.trail())[-1]["resp"]["processed"] == "yes"


@pytest.mark.parametrize("line", ["GET /clusters/prod/api/v1/pods", "DELETE /clusters/prod/api/v1/nodes/n"])
async def test_a_head_that_outgrows_its_limit_on_the_way_is_refused(bench: Bench, line: str) -> None:
    """A list of subprotocols is written anew where a token was among them."""
    listed = "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.x" + ",a" * 400_000
    async with relay_of(bench):
        status, _, body = await bench.ask(bench.request(f"{line} HTTP/1.1", listed))
    assert status == 413
    assert b"the request is too large: the head has" in body
    assert b"has not seen this request" in body
    closing = (await bench.trail())[-1]
    assert (closing["kind"], closing["phase"]) == ("call", "complete")
    assert (closing["resp"]["status"], closing["resp"]["processed"]) == (413, "no")
    assert [event.resp.status for event in bench.observed if event.resp is not None] == [413]


async def test_a_post_that_may_have_been_processed_is_not_called_unavailable(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def vanish() -> None:
            stream = await accept(relay)
            stream.reset(StreamCode.UPSTREAM_RESET, processed=Processed.MAYBE, reason="cut")

        nursery.start_soon(vanish)
        status, _headers, body = await bench.ask(
            bench.request("POST /clusters/prod/api/v1/pods HTTP/1.1", "Content-Length: 2", body=b"{}")
        )
    assert status == 504
    assert b"may still be processing" in body
    assert (await bench.trail())[-1]["resp"]["processed"] == "maybe"
    assert len(bench.observed) == 1


@pytest.mark.parametrize("why", ["cannot impersonate resource", "cannot list resource"])
async def test_a_403_that_the_operator_can_mend_says_how(bench: Bench, why: str) -> None:
    message = f'users "agent:ann" is forbidden: User "relay" {why}'
    body = json.dumps({"kind": "Status", "message": message}).encode()
    head = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def answer() -> None:
            async with await accept(relay) as stream:
                await stream.send_head(head)
                await stream.send_all(body)
                await stream.send_eof()

        nursery.start_soon(answer)
        status, headers, received = await bench.ask(bench.request("GET /clusters/prod/api/v1/pods HTTP/1.1"))
    assert (status, received) == (403, body)
    hint = headers.get(b"warning", b"")
    assert (b"hawse admin cluster check prod" in hint) == ("impersonate" in why)
    # And the overview of operators says so.
    assert set(bench.calls.forwarding.lacked.clusters) == ({"prod"} if "impersonate" in why else set())


async def test_a_read_refused_for_want_of_the_trail_is_in_it_once_it_is_back(bench: Bench) -> None:
    bench.recorder._overflow()
    status, _headers, body = await bench.ask(bench.request("GET /clusters/prod/api/v1/nodes HTTP/1.1"))
    assert status == 503
    assert b"reads are refused too while it is" in body
    with trio.fail_after(5):
        while True:
            if bench.recorder.healthy:
                break
            await trio.sleep(0.01)
    events = [event for event in await bench.trail() if event["kind"] == "call"]
    assert [(event["phase"], event["resp"]["status"]) for event in events] == [("complete", 503)]
    assert len(bench.observed) == 1


async def test_reads_go_on_without_the_trail_where_the_operator_says_so(bench: Bench) -> None:
    bench.calls.config = attrs.evolve(bench.calls.config, audit=AuditConfig(reads_when_down=True))
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        bench.recorder._overflow()

        async def answer() -> None:
            (await accept(relay)).send_answer_nowait(OK, b"yes", eof=True)

        nursery.start_soon(answer)
        status, _, body = await bench.ask(bench.request("GET /clusters/prod/api/v1/nodes HTTP/1.1"))
    assert (status, body) == (200, b"yes")


async def test_calls_refused_for_want_of_the_trail_are_a_line_a_second(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.recorder._overflow()
    for _ in range(5):
        status, *_ = await bench.ask(bench.request("DELETE /clusters/prod/api/v1/nodes/n HTTP/1.1"))
        assert status == 503
    assert len([record for record in caplog.records if "refused a call" in record.message]) == 1


async def test_a_client_that_left_before_its_503_is_recorded_as_not_served(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = ServerConnection.answer

    async def answer_too_late(connection: ServerConnection, head: ResponseHead, body: bytes) -> None:
        if head.status == 503:
            await connection.cut()
        await answer(connection, head, body)

    monkeypatch.setattr(ServerConnection, "answer", answer_too_late)
    with pytest.RaisesGroup(InboundBroken, flatten_subgroups=True):
        async with bench.connected() as client:
            line = "DELETE /clusters/prod/api/v1/namespaces/dev/pods/p HTTP/1.1"
            await client.send_all(bench.request(line))
            await trio.sleep_forever()
    _, closing = await bench.trail()
    assert closing["resp"]["processed"] == "no"
    assert "offline" in closing["resp"]["reason"]


# In an exchange of ports the traceback is the log's, and what comes through says just that.
FAULTS = pytest.RaisesGroup(pytest.RaisesExc((RuntimeError, ExchangeFault)), flatten_subgroups=True)


@pytest.mark.parametrize("line", ["GET /clusters/prod/api/v1/pods", "DELETE /clusters/prod/api/v1/nodes/n"])
async def test_a_fault_of_ours_is_recorded_as_the_hubs_and_not_as_a_client_that_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    gave_up: list[str] = []
    bench.calls.limits.cancelled = lambda who: gave_up.append(who.name)  # type: ignore[method-assign]
    monkeypatch.setattr(ResponseHead, "without_hop", fail)
    async with relay_of(bench) as relay:
        with FAULTS:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.ask, bench.request(f"{line} HTTP/1.1"))
                stream = await accept(relay)
                stream.send_answer_nowait(OK, b"yes", eof=True)
    closing = (await bench.trail())[-1]
    assert (closing["kind"], closing["phase"]) == ("call", "complete")
    assert closing["resp"]["status"] == 500, "the front answers so"
    assert closing["resp"]["reason"] == "the hub failed by a fault of its own"
    assert closing["resp"]["processed"] == "maybe"
    assert [event.resp.status for event in bench.observed if event.resp is not None] == [500]
    assert gave_up == []


async def test_a_stream_that_a_fault_of_ours_has_cut_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relay_of(bench) as relay:
        with FAULTS:
            async with trio.open_nursery() as nursery:
                watch = bench.request("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1")
                nursery.start_soon(bench.ask, watch)
                stream = await accept(relay)
                await stream.send_head(b"HTTP/1.1 200 OK\r\n\r\n")
                await trio.testing.wait_all_tasks_blocked(0.01)
                monkeypatch.setattr(ClientPort, "write", fail)
                await stream.send_all(b"{}")
    [closing] = await bench.trail()
    assert closing["stream"]["close_reason"] == "hub failed"
    assert closing["resp"]["status"] == 200
    assert closing["resp"]["processed"] == "yes"


async def test_after_a_fault_of_ours_it_is_known_still_what_the_relay_has_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.calls.forwarding.failure_response", fail)
    async with relay_of(bench) as relay:
        with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.ask, bench.request("DELETE /clusters/prod/api/v1/nodes/n HTTP/1.1"))
                stream = await accept(relay)
                stream.reset(StreamCode.DIAL_FAILED, processed=Processed.NO, reason="it is away")
    _, closing = await bench.trail()
    assert closing["resp"]["processed"] == "no"


async def test_what_became_of_a_second_attempt_is_not_told_by_the_first(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        line = "DELETE /clusters/prod/api/v1/namespaces/dev/pods/p HTTP/1.1"
        nursery.start_soon(bench.ask, bench.request(line))
        first = await accept(relay)
        first.reset(StreamCode.REFUSED, processed=Processed.NO, reason="going away")
        second = await accept(relay)
        nursery.cancel_scope.cancel()
    await second.aclose()
    _, closing = await bench.trail()
    assert closing["resp"]["processed"] == "maybe"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /clusters/prod/api/v1/pods HTTP/1.1", 403),
        ("DELETE /clusters/prod/api/v1/namespaces/dev/pods/web HTTP/1.1", 403),
        ("GET /clusters/prod/api/v1/../pods HTTP/1.1", 400),
    ],
)
async def test_what_is_refused_counts_as_any_other_call_of_its_agent(
    bench: Bench, line: str, status: int
) -> None:
    await bench.directory.change(lambda store: store.remove_policy("granted"))
    bench.calls.limits = Limits(LimitsConfig(requests_per_second=1), clock=lambda: 0.0)
    seen = [(await bench.ask(bench.request(line)))[0] for _ in range(4)]
    assert seen == [status, status, 429, 429]
    rules = [event["decision"]["rule"] for event in await bench.trail()]
    assert len(rules) == 4
    assert rules[2:] == ["limits.requests_per_second"] * 2


@pytest.mark.parametrize(
    ("line", "header", "kind", "note"),
    [
        (
            "GET /clusters/prod/api HTTP/1.1",
            "Impersonate-User: system:admin",
            "header_smuggling",
            "impersonate-",
        ),
        ("GET /clusters/prod/api/v1/../pods HTTP/1.1", "X-A: b", "request.malformed", "dot segment"),
        (
            "GET /clusters/prod/api?access_token=x HTTP/1.1",
            "X-A: b",
            "request.malformed",
            "a token in the URL",
        ),
        ("GET /clusters/nope/api HTTP/1.1", "X-A: b", "call", "nope"),
    ],
)
async def test_what_is_wrong_with_a_request_is_recorded_beyond_the_rate_as_well(
    bench: Bench, line: str, header: str, kind: str, note: str
) -> None:
    bench.calls.limits = Limits(LimitsConfig(requests_per_second=1), clock=lambda: 0.0)
    token = bench.token("nope") if "nope" in line else bench.token()
    answered = [(await bench.ask(bench.request(line, header, token=token)))[0] for _ in range(3)]
    assert answered[-1] == 429
    events = await bench.trail()
    assert [event["kind"] for event in events] == [kind] * 3
    assert events[-1]["decision"]["rule"] == "limits.requests_per_second"
    assert all(note in str(event["note"]) for event in events)


async def test_a_long_target_is_understood_in_one_pass_and_recorded_in_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noting(function: Callable[..., T]) -> Callable[..., T]:
        def noted(*arguments: Any, **options: Any) -> T:
            passes.note()
            return function(*arguments, **options)

        return noted

    monkeypatch.setattr(calls_module, "parse_request", noting(calls_module.parse_request))
    monkeypatch.setattr(Trail, "call", noting(Trail.call))
    target = "/clusters/prod/api/v1/pods?x=" + LONG_HEAD_BYTES * "x"
    with counted_passes() as passes:
        assert (await bench.ask(bench.request(f"GET {target} HTTP/1.1")))[0] == 503
    assert (passes.noted.total(), passes.most) == (2, 1)


# What a controller sends: its informers' lists and watches are few, its gets and patches many.
CONTROLLER = (
    (
        "User-Agent: fleet-controller/v1.14.2 (linux/amd64) kubernetes/$Format",
        "Accept: application/json, */*",
    ),
    (
        "GET /clusters/prod/apis/apps/v1/namespaces/production-europe/deployments/checkout-{} HTTP/1.1",
        "GET /clusters/prod/api/v1/namespaces/production-europe/configmaps?"
        "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dfleet-controller&limit=500&n={} HTTP/1.1",
    ),
    "PUT /clusters/prod/apis/apps/v1/namespaces/production-europe/deployments/checkout-{} HTTP/1.1",
)


async def test_a_controller_of_50_reads_and_5_writes_a_second_never_meets_its_budget_of_the_trail(
    bench: Bench,
) -> None:
    bench.calls.limits = Limits(LimitsConfig())
    headers, reads, write = CONTROLLER

    async def serve(relay: Session) -> None:
        while True:
            async with await accept(relay) as stream:
                while await stream.receive_some():
                    pass
                await stream.send_head(OK)
                await stream.send_all(b"yes")
                await stream.send_eof()

    bench.recorder.take_stored()
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(serve, relay)
        # A tenth of a second's, ten times over.
        for number in range(50):
            line = reads[number % len(reads)].format(number)
            assert (await bench.ask(bench.request(line, *headers)))[0] == 200
            if number % 10 == 0:
                data = bench.request(write.format(number), *headers, "Content-Length: 2", body=b"{}")
                assert (await bench.ask(data))[0] == 200
        nursery.cancel_scope.cancel()
    events = await bench.trail()
    assert len(events) == 50 + 2 * 5
    [(agent, size)] = bench.recorder.take_stored().items()
    # It adds that each second, all day, and a new token a minute.
    assert agent[1] == "ann"
    config = LimitsConfig()
    assert 20_000 < size < config.audit_bytes_per_second / 1.5
    limits, now = Limits(config, clock=lambda: now, stored=lambda: {agent: size}), 0.0
    for second in range(86_400):
        now = float(second)
        limits._charge(now)
    assert limits.audit_debt(*agent) == ""
