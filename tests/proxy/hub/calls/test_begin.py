"""Calls that are begun without their connection's task: when that is so, and what it must not change.

That their outcome is the same as by the task is in test_calls, where each call goes both ways.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from auth.policy.bundled import first_sources
from auth.policy.match import Agent, Bundle, Cluster, Decision
from auth.principal import Principal
from auth.requestinfo import RequestInfo
from proxy.exchange import next_pass
from proxy.exchange.parked_exchange import ExchangeFault
from proxy.hub.calls.forwarding import Forwarding, OpenedStream
from proxy.hub.calls.limits import Exceeded
from proxy.hub.store.entities import Mode
from proxy.message.head import RequestHead
from proxy.message.relay_marks import DECISION_HEADER
from tests.proxy.hub.calls.bench import OK, Bench, fail, open_bench, relay_of, streams_of
from tests.proxy.hub.calls.line import PODS, POST, Commits, Line, next_of
from tests.tunnel.passes import counted_passes
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import CloseCode, Interruptions, Processed, Session, StreamCode, StreamReset
from tunnel.net.fairness import TASKS_PER_PASS_MAX
from tunnel.net.tcp import TCPStream


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, with_task=False) as bench:
        yield bench


async def test_small_reads_need_no_task(line: Line) -> None:
    token = line.bench.token()
    for _ in range(3):
        stream = await line.ask(token=token)
        stream.send_answer_nowait(OK, b"yes", eof=True)
        await line.hear(b"\r\n\r\nyes")
    assert (line.bench.handled, line.bench.carried_on) == (0, 0)
    events = await line.bench.trail()
    assert len({event["eid"] for event in events}) == len(events) == 3
    for event in events:
        assert event["phase"] == "complete"
        bundle = line.bench.directory.current.bundle.id
        decision = {"effect": "allow", "rule": "granted", "policy": "granted", "bundle": bundle}
        assert event["decision"] == decision
        assert event["relay"] == {"instance": "relay-1", "version": "v1"}
        assert event["impersonated"]["extra"]["hawse.dev/session"] == ["session"]
        assert event["client"]["ip"] == "192.0.2.7"
        response = event["resp"]
        assert response == {**response, "status": 200, "bytes": 3, "processed": "yes"}
    assert len(line.bench.observed) == 3


@pytest.mark.parametrize(
    "line_",
    [
        "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1",
        "DELETE /clusters/prod/api/v1/namespaces/dev/pods/p HTTP/1.1",
        "GET /clusters/prod/api/v1/namespaces/dev/pods/p/exec?command=ls HTTP/1.1",
        "GET /clusters/prod/api/v1/namespaces/dev/services/s/proxy/x HTTP/1.1",
        "GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1",
        "GET /clusters/prod/api/v1/namespaces/dev/pods/p/log HTTP/1.1",
    ],
)
async def test_a_call_of_any_kind_needs_no_task(line: Line, line_: str) -> None:
    stream = await line.ask(line_)
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert (line.bench.handled, line.bench.carried_on) == (0, 0)
    assert (await line.bench.trail())[-1]["phase"] == "complete"


async def test_an_answer_in_parts_needs_no_task(line: Line) -> None:
    stream = await line.ask()
    await stream.send_head(OK)
    await line.hear(b"\r\n\r\n")
    await stream.send_all(b"yes")
    await stream.send_eof()
    await line.hear(b"yes")
    # The connection can be used again.
    stream = await line.ask()
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert (line.bench.handled, line.bench.carried_on) == (0, 0)
    assert len(await line.bench.trail()) == 2


async def test_an_answer_without_a_length_is_chunked(line: Line) -> None:
    stream = await line.ask()
    stream.send_answer_nowait(b"HTTP/1.1 200 OK\r\n\r\n", b"yes", eof=True)
    received = await line.hear(b"\r\n\r\n3\r\nyes\r\n0\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked\r\n" in received
    assert line.bench.carried_on == 0


@pytest.mark.parametrize(("method", "status"), [("HEAD", b"200 OK"), ("GET", b"304 Not Modified")])
async def test_an_answer_without_a_body_has_none(line: Line, method: str, status: bytes) -> None:
    stream = await line.ask(f"{method} /clusters/prod/api/v1/pods HTTP/1.1")
    stream.send_answer_nowait(b"HTTP/1.1 " + status + b"\r\ncontent-length: 9\r\n\r\n", eof=True)
    received = await line.hear(b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 " + status)
    assert line.bench.carried_on == 0


@pytest.mark.parametrize(("body", "end"), [(b"ye", b"\r\n\r\nye"), (b"yess", b"}"), (b"", b"}")])
async def test_a_body_of_another_length_than_its_head_says_is_no_answer(
    line: Line, body: bytes, end: bytes
) -> None:
    stream = await line.ask()
    stream.send_answer_nowait(OK, body, eof=True)
    received = await line.hear(end)
    if end == b"}":
        assert received.startswith(b"HTTP/1.1 502 ")
    else:
        # Cut, since it has begun.
        with pytest.raises(trio.BrokenResourceError):
            await line.client.receive_some()
    assert await line.bench.calls.live.wait_drained(5)
    [event] = await line.bench.trail()
    assert "another length" in event["resp"]["reason"]


async def test_a_large_answer_needs_no_task(line: Line) -> None:
    size = 100_000
    stream = await line.ask()
    body = bytes(size - 1) + b"!"
    stream.send_answer_nowait(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, body, eof=True)
    assert len(await line.hear(b"!")) > size
    assert line.bench.carried_on == 0


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"nonsense"]
)
async def test_what_is_no_final_answer_is_none(line: Line, answer: bytes) -> None:
    stream = await line.ask()
    stream.send_answer_nowait(answer, eof=True)
    received = await line.hear(b"}")
    assert received.startswith(b"HTTP/1.1 502 ")


async def test_each_request_is_held_to_what_the_directory_says_now(line: Line) -> None:
    token = line.bench.token()
    stream = await line.ask(token=token)
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")
    await line.bench.directory.change(lambda store: store.lock_agent("ann"))
    await line.send(token=token)
    assert b"agent:ann is locked" in await line.hear(b"}")
    await line.bench.directory.change(lambda store: store.unlock_agent("ann"))
    await line.bench.directory.change(
        lambda store: store.change_agent_teams("ann", add=["web"], remove=["sre"])
    )
    await line.send(token=token)
    assert (await line.hear(b"}")).startswith(b"HTTP/1.1 403 ")


async def test_each_request_is_held_to_the_life_of_its_token(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = line.bench.token()
    stream = await line.ask(token=token)
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")
    now = time.time()
    monkeypatch.setattr("proxy.hub.calls.begin.time.time", lambda: now + 61)
    await line.send(token=token)
    assert (await line.hear(b"}")).startswith(b"HTTP/1.1 401 ")


async def test_the_same_headers_do_not_open_another_cluster(line: Line) -> None:
    token = line.bench.token()
    stream = await line.ask(token=token)
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")
    await line.send("GET /clusters/other/api/v1/pods HTTP/1.1", token=token)
    assert (await line.hear(b"}")).startswith(b"HTTP/1.1 401 ")


async def test_other_headers_are_looked_at_anew(line: Line) -> None:
    stream = await line.ask()
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")
    await line.send(PODS, "Impersonate-User: system:admin")
    assert (await line.hear(b"}")).startswith(b"HTTP/1.1 403 ")
    assert (await line.bench.trail())[-1]["kind"] == "header_smuggling"
    with trio.move_on_after(0.05):
        await accept(line.relay)
        raise AssertionError("it has reached the relay")


async def test_calls_without_a_task_are_bounded_as_well(line: Line) -> None:
    agent = line.bench.directory.current.agents_by_name["ann"]
    stream = await line.ask()
    assert streams_of(line.bench.calls) == {agent.id: 1}
    line.bench.calls.limits._loads[agent.id].streams += 1
    async with line.bench.connected() as other:
        await attrs.evolve(line, client=other).send()
        assert (await attrs.evolve(line, client=other).hear(b"}")).startswith(b"HTTP/1.1 429 ")
    line.bench.calls.limits._loads[agent.id].streams -= 1
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")


async def test_a_client_that_leaves_ends_its_call_at_the_relay(line: Line) -> None:
    stream = await line.ask()
    await trio.aclose_forcefully(line.client)
    broken = trio.Event()
    stream.raw.on_reset(broken.set)
    with trio.fail_after(2):
        await broken.wait()
    assert streams_of(line.bench.calls) == {}
    [event] = await line.bench.trail()
    assert event["resp"]["status"] == 0
    assert event["resp"]["processed"] == "maybe"


async def test_a_call_that_its_client_gives_up_tells_what_its_tunnel_went_through(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await line.ask()
    # As if it had been lost and resumed while the answer was waited for.
    monkeypatch.setattr(Session, "detaches", 1)
    monkeypatch.setattr(Session, "interruptions", Interruptions(detaches=1))
    broken = trio.Event()
    stream.raw.on_reset(broken.set)
    await trio.aclose_forcefully(line.client)
    with trio.fail_after(2):
        await broken.wait()
    [event] = await line.bench.trail()
    assert event["tunnel"]["detaches"] == 1


async def test_a_call_that_is_cut_short_by_the_hubs_end_is_in_the_trail(bench: Bench) -> None:
    async with relay_of(bench) as relay:
        async with bench.connected() as client:
            await Line(bench, client, relay).ask()
    [event] = await bench.trail()
    assert event["resp"]["reason"] == "the client or the hub went away"


async def test_a_call_that_the_relay_breaks_off_is_told_so(line: Line) -> None:
    stream = await line.ask()
    stream.reset(StreamCode.UPSTREAM_RESET, processed=Processed.MAYBE, reason="cut")
    assert (await line.hear(b"}")).startswith(b"HTTP/1.1 50")
    assert line.bench.carried_on == 1


async def test_a_fault_in_the_answer_ends_this_call_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await line.ask()
    monkeypatch.setattr("proxy.message.head.ResponseHead.without_hop", fail)
    with pytest.RaisesGroup(ExchangeFault, flatten_subgroups=True):
        async with line.bench.connected() as other:
            second = await attrs.evolve(line, client=other).ask()
            second.send_answer_nowait(OK, b"yes", eof=True)
            await trio.sleep_forever()
    monkeypatch.undo()
    assert not line.relay.closed
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")
    assert RequestHead.decode(stream.head).target == b"/api/v1/pods"
    failed, _ = await line.bench.trail()
    assert failed["resp"]["status"] == 500
    assert failed["resp"]["reason"] == "the hub failed by a fault of its own"


async def test_a_call_that_is_admitted_and_not_begun_by_a_fault_of_ours_is_in_the_trail(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.calls.forwarding.hub_request_bytes", fail)
    async with relay_of(bench) as relay:
        with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
            async with bench.connected() as client:
                await Line(bench, client, relay).send()
                await trio.sleep_forever()
    [event] = await bench.trail()
    assert event["resp"]["status"] == 500
    assert event["resp"]["reason"] == "the hub failed by a fault of its own"
    assert [each.eid for each in bench.observed] == [event["eid"]]


async def test_an_answer_that_its_client_did_not_take_is_recorded_as_such(line: Line) -> None:
    gave_up: list[str] = []
    line.bench.calls.limits.cancelled = lambda who: gave_up.append(who.name)  # type: ignore[method-assign]
    stream = await line.ask()
    # More than the sockets take.
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (16 * 1024 * 1024)
    stream.send_answer_nowait(head, bytes(64 * 1024))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_until_reset, stream)
        await wait_all_tasks_blocked(0.05)
        await trio.aclose_forcefully(line.client)
    assert await line.bench.calls.live.wait_drained(5)
    [event] = await line.bench.trail()
    assert event["resp"]["status"] == 200
    assert event["resp"]["reason"] == "the client is gone"
    assert event["resp"]["processed"] == "yes"
    assert gave_up == ["ann"]


async def send_until_reset(stream: TrioStream) -> None:
    with suppress(StreamReset):
        while True:
            await stream.send_all(bytes(64 * 1024))


async def test_what_is_revoked_before_its_answer_is_ended_and_told(line: Line) -> None:
    stream = await line.ask()
    broken = trio.Event()
    stream.raw.on_reset(broken.set)
    await line.bench.directory.change(lambda store: store.lock_agent("ann"))
    assert (await line.hear(b"}")).startswith(b"HTTP/1.1 403 ")
    with trio.fail_after(2):
        await broken.wait()
    with pytest.raises(StreamReset) as reset:
        stream.send_answer_nowait(OK, b"yes", eof=True)
    assert reset.value.code is StreamCode.REVOKED
    assert await line.bench.calls.live.wait_drained(5)
    event = (await line.bench.trail())[-1]
    assert event["kind"] == "session.killed"
    # The relay had it, so nobody can say that the API server has not.
    assert event["resp"]["processed"] == "maybe"
    assert event["impersonated"]["user"] == "agent:ann"
    assert event["relay"]["instance"]
    # The connection goes on, and so do the calls of others.
    await line.bench.directory.change(lambda store: store.unlock_agent("ann"))
    stream = await line.ask()
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")


async def test_what_has_gone_on_to_another_relay_is_ended_there(bench: Bench) -> None:
    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, bench.connected() as client:
        line = Line(bench, client, a)
        await line.send()
        refusing = await next_of(a, b)
        refusing.reset(StreamCode.REFUSED, processed=Processed.NO, reason="not here")
        stream = await next_of(a, b)
        broken = trio.Event()
        stream.raw.on_reset(broken.set)
        await bench.directory.change(lambda store: store.lock_agent("ann"))
        with trio.fail_after(2):
            await broken.wait()
        assert (await line.hear(b"}")).startswith(b"HTTP/1.1 403 ")
    assert (bench.handled, bench.carried_on) == (0, 1)
    [event] = await bench.trail()
    assert event["kind"] == "session.killed"


async def test_an_answer_that_the_kernel_takes_later_is_whole_and_nobody_has_left(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    gave_up: list[str] = []
    line.bench.calls.limits.cancelled = lambda who: gave_up.append(who.name)  # type: ignore[method-assign]
    stream = await line.ask()
    send, refused = TCPStream.send_nowait, [True]

    def refuse_once(tcp: TCPStream, data: bytes) -> int:
        return 0 if refused and refused.pop() else send(tcp, data)

    monkeypatch.setattr(TCPStream, "send_nowait", refuse_once)
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert refused == []
    assert await line.bench.calls.live.wait_drained(5)
    assert (line.bench.handled, line.bench.carried_on) == (0, 0)
    [event] = await line.bench.trail()
    response = event["resp"]
    assert response == {**response, "status": 200, "bytes": 3, "processed": "yes"}
    assert "reason" not in response
    assert gave_up == []


async def test_an_answer_of_the_relays_guardrails_is_recorded_as_such(line: Line) -> None:
    stream = await line.ask()
    mark = DECISION_HEADER + b": guardrails no-secrets\r\n"
    head = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n" + mark + b"\r\n"
    stream.send_answer_nowait(head, b"{}", eof=True)
    received = await line.hear(b"\r\n\r\n{}")
    assert DECISION_HEADER not in received
    assert await line.bench.calls.live.wait_drained(5)
    [event] = await line.bench.trail()
    assert event["decision"] == {"effect": "deny", "rule": "no-secrets", "policy": "relay-guardrails"}
    assert event["resp"]["processed"] == "no"


@pytest.mark.parametrize("cluster", ["prod", "far"], ids=["offline", "direct"])
async def test_a_call_that_goes_on_to_the_task_counts_once(bench: Bench, cluster: str) -> None:
    await bench.directory.change(
        lambda store: store.add_cluster(
            "far",
            teams=["sre"],
            mode=Mode.DIRECT,
            relay_url="https://127.0.0.1:1",
            relay_address_private=True,
        )
    )
    async with bench.connected() as client:
        with counted(bench) as agents:
            token = bench.token(cluster)
            request = (
                f"GET /clusters/{cluster}/api HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
            )
            await client.send_all(request.encode())
            with trio.fail_after(2):
                assert (await client.receive_some()).startswith(b"HTTP/1.1 503 ")
    assert agents == ["ann"]


@contextmanager
def counted(bench: Bench) -> Iterator[list[str]]:
    """The agents whose requests are counted, one name for each."""
    agents: list[str] = []
    really = bench.calls.limits.admit

    def admit(agent: Principal) -> Exceeded | None:
        agents.append(agent.name)
        return really(agent)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench.calls.limits, "admit", admit)
        yield agents


async def test_what_is_denied_is_decided_and_counted_and_recorded_once(line: Line) -> None:
    bench = line.bench
    await bench.directory.change(lambda store: store.remove_policy("granted"))
    decided: list[str] = []
    really = Bundle.decide

    def decide(bundle: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo, now: float) -> Decision:
        decided.append(info.path)
        return really(bundle, agent, cluster, info, now)

    with pytest.MonkeyPatch.context() as patched, counted(bench) as agents:
        patched.setattr(Bundle, "decide", decide)
        await line.send()
        assert (await line.hear(b"}")).startswith(b"HTTP/1.1 403 ")
    assert (agents, decided) == (["ann"], ["/api/v1/pods"])
    [event] = await bench.trail()
    assert event["decision"]["rule"] == "no-rule-allows"
    # And the connection is as good as before.
    await bench.directory.change(lambda store: store.apply_policies(list(first_sources())))
    stream = await line.ask()
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"yes")


async def test_a_call_that_the_relay_takes_no_more_goes_on_in_the_task_and_counts_once(line: Line) -> None:
    bench = line.bench
    live = bench.registry.session(bench.directory.current.clusters_by_name["prod"].id)
    line.relay.go_away(code=CloseCode.DRAINING, drain_ms=60_000, reason="it is stopping")
    await wait_all_tasks_blocked(0.01)
    with pytest.MonkeyPatch.context() as patched, counted(bench) as agents:
        # As if the registry had not heard of it: the call finds out when it opens its stream.
        patched.setattr(bench.registry, "session", lambda cluster_id: live)
        await line.send()
        assert (await line.hear(b"}")).startswith(b"HTTP/1.1 503 ")
    assert agents == ["ann"]
    assert (bench.handled, bench.carried_on) == (0, 1)
    [event] = await bench.trail()
    assert event["resp"]["status"] == 503


async def test_a_write_is_forwarded_once_its_intent_is_durable(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    await line.send(POST, "Content-Length: 6")
    await line.client.send_all(b"create")
    with trio.move_on_after(0.05) as patience:
        await accept(line.relay)
    assert patience.cancelled_caught
    commits.let_go()
    with trio.fail_after(2):
        stream = await accept(line.relay)
        assert await stream.receive_some() == b"create"
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert (line.bench.handled, line.bench.carried_on) == (0, 0)
    intent, end = await line.bench.trail()
    assert (intent["phase"], end["phase"]) == ("intent", "complete")
    assert intent["eid"] == end["eid"]
    assert end["req"]["body_bytes"] == 6


async def test_a_write_whose_intent_fails_is_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = Commits(monkeypatch)
    await line.send(POST, "Content-Length: 0")
    commits.failure = "the disk is full"
    commits.let_go()
    answer = await line.hear(b"}")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the disk is full" in answer
    commits.failure = ""
    with trio.fail_after(5):
        while not line.bench.recorder.healthy:
            await wait_all_tasks_blocked(0.01)
    # The connection and the relay are as they were.
    stream = await line.ask(POST, "Content-Length: 0")
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")


async def test_a_write_whose_client_leaves_before_its_intent_is_durable_is_not_forwarded(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    await line.send(POST, "Content-Length: 0")
    await wait_all_tasks_blocked(0.01)
    await trio.aclose_forcefully(line.client)
    assert await line.bench.calls.live.wait_drained(5)
    commits.let_go()
    intent, end = await line.bench.trail()
    assert (intent["phase"], end["phase"]) == ("intent", "complete")
    response = end["resp"]
    expected = {"reason": "the client left before the call was forwarded", "processed": "no"}
    assert response == {**response, **expected}
    with trio.move_on_after(0.05) as patience:
        await accept(line.relay)
    assert patience.cancelled_caught


async def test_a_write_that_is_revoked_before_its_intent_is_durable_is_not_forwarded(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    await line.send(POST, "Content-Length: 0")
    await wait_all_tasks_blocked(0.01)
    await line.bench.directory.change(lambda store: store.lock_agent("ann"))
    commits.let_go()
    assert (await line.hear(b"}")).startswith(b"HTTP/1.1 403 ")
    assert await line.bench.calls.live.wait_drained(5)
    end = (await line.bench.trail())[-1]
    assert end["kind"] == "session.killed"
    assert end["resp"]["processed"] == "no"
    with trio.move_on_after(0.05) as patience:
        await accept(line.relay)
    assert patience.cancelled_caught


async def test_the_writes_of_one_commit_are_forwarded_in_several_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_pass, "SHORT_CALLS_PER_PASS", 16)
    commits, count = Commits(monkeypatch), 128
    open_stream = Forwarding.open_stream

    def noting(forwarding: Forwarding, *args: object, **named: object) -> OpenedStream:
        passes.note()
        return open_stream(forwarding, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Forwarding, "open_stream", noting)
    async with (
        open_bench(tmp_path, with_task=False, streams=count) as bench,
        relay_of(bench) as relay,
        AsyncExitStack() as stack,
    ):
        for _ in range(count):
            client = await stack.enter_async_context(bench.connected())
            await Line(bench, client, relay).send(POST, "Content-Length: 0")
        await wait_all_tasks_blocked(0.05)
        with counted_passes() as passes:
            commits.let_go()
            with trio.fail_after(5):
                for _ in range(count):
                    stream = await accept(relay)
                    stream.send_answer_nowait(OK, b"yes", eof=True)
    assert passes.noted.total() == count
    # A pass may have the calls that were scheduled before beside the new ones.
    assert passes.most <= 16 + TASKS_PER_PASS_MAX
