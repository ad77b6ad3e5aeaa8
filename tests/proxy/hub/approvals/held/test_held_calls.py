"""The call that waits, with a real directory, recorder and tunnel; requests and previews are fakes.

trio's clock stands still, and the tests move it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from audit.record import Event
from proxy.hub.approvals.held.slots import FALLBACK_S, HELD_PER_AGENT_MAX
from proxy.hub.approvals.preview.shapes import PreviewRefused, refusal_of
from proxy.hub.approvals.request import State
from proxy.hub.calls.live import Ending
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.store.store import Store
from tests.proxy.hub.approvals.held.asking import (
    POST,
    answer,
    asking,
    asking_exec,
    step,
    until_held,
    until_state,
)
from tests.proxy.hub.approvals.held.fakes import POLICY, HeldBench
from tests.proxy.hub.calls.talk import SWITCHING
from tests.tunnel.trio_stream import accept
from tunnel import Processed, StreamCode

WAIT_S = 45.0
NO = b"HTTP/1.1 %s\r\ncontent-length: 3\r\n\r\n"


async def test_a_call_waits_and_succeeds_once_it_is_approved(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        [request] = bench.requests.found
        assert request.state is State.PENDING
        assert request.new.what == "delete deployments.apps dev/web"
        assert request.new.reason == "look first"
        assert (request.new.policy, request.new.rule) == ("careful", "risky")
        assert request.new.target == "/apis/apps/v1/namespaces/dev/deployments/web"
        bench.requests.approve()
        await answer(bench, asked)
        assert asked.status == 200
    await until_state(bench, State.USED)
    assert bench.requests.log == [
        "open a-1", "pending→approved a-1", "approved→using a-1", "using→used a-1",
    ]  # fmt: skip
    [intent, closing] = await bench.hub.trail()
    assert (intent["phase"], closing["phase"]) == ("intent", "complete")
    assert intent["eid"] == closing["eid"]
    for event in (intent, closing):
        bundle = bench.hub.directory.current.bundle.id
        assert event["decision"] == {
            "effect": "allow",
            "rule": "risky",
            "policy": "careful",
            "bundle": bundle,
        }
        assert event["approval"] == {"request": "a-1"}


async def test_a_call_whose_time_is_over_is_refused_and_its_repeat_finds_the_approval(
    bench: HeldBench, mock_clock: MockClock
) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        mock_clock.jump(WAIT_S)
        await asked.refused("approval request a-1 is pending: repeat the same command after it is approved")
        causes = asked.causes
        assert causes["ApprovalRequest"] == "a-1"
        assert causes["ApprovalState"] == "pending"
        assert causes["How"] == "repeat the same command after it is approved"
        assert causes["PolicyRule"] == "careful/risky"
    bench.requests.approve()
    async with asking(bench) as asked:
        await answer(bench, asked)
        assert asked.status == 200
    await until_state(bench, State.USED)
    async with asking(bench) as asked:
        await asked.refused("approval request a-1 was used already")
    bench.requests.found.clear()
    async with asking(bench) as asked:
        await until_held(bench)
        mock_clock.jump(WAIT_S)
        await asked.refused("is pending")
    refused = [event for event in await bench.hub.trail() if event["decision"]["effect"] == "ask"]
    assert [event["resp"]["processed"] for event in refused] == ["no"] * 3


async def test_a_denial_ends_the_wait_with_the_words_of_the_approver(bench: HeldBench) -> None:
    for held in (True, False):
        async with asking(bench) as asked:
            if held:
                await until_held(bench)
                bench.requests.deny("not on a Friday")
            await asked.refused("approval request a-1 was denied: not on a Friday")
            assert asked.causes["Why"] == "not on a Friday"
            assert asked.causes["ApprovalState"] == "denied"
    assert bench.previews.made == 1


async def test_a_client_that_leaves_is_not_served(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        asked.client.close_nowait()
        while bench.held.parts.slots.count:
            await step()
    assert bench.requests.states == [State.PENDING]
    [closing] = await bench.hub.trail()
    assert closing["resp"]["processed"] == "no"
    assert closing["decision"]["effect"] == "ask"


async def test_a_client_that_leaves_in_the_pass_of_the_approval_is_not_served(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        # Nothing else runs between the two.
        asked.client.close_nowait()
        bench.requests.approve()
        while bench.held.parts.slots.count:
            await step()
    assert bench.requests.states == [State.APPROVED]
    assert "approved→using a-1" not in bench.requests.log


async def test_a_client_that_leaves_during_the_commit_of_the_use_is_not_served(bench: HeldBench) -> None:
    bench.requests.using = committed = trio.Event()
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        while not bench.requests.uses:
            await step()
        asked.client.close_nowait()
        committed.set()
        while bench.requests.log[-1] != "using→approved a-1":
            await step()
    [closing] = await bench.hub.trail()
    assert closing["resp"]["processed"] == "no"


async def test_a_client_that_leaves_during_the_commit_of_the_intent_is_not_served(
    bench: HeldBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = bench.hub.calls.recorder
    commit = recorder.intent

    async def intent(event: Event) -> None:
        await commit(event)
        asked.client.close_nowait()

    monkeypatch.setattr(recorder, "intent", intent)
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        while bench.requests.log[-1] != "using→approved a-1":
            await step()
    events = await bench.hub.trail()
    assert [event["phase"] for event in events] == ["intent", "complete"]
    assert events[1]["resp"]["processed"] == "no"


ENDINGS: list[tuple[Callable[[Store], object], str]] = [
    (lambda store: store.lock_agent("ann"), "agent:ann is locked"),
    (lambda store: store.revoke("prod", "sre"), 'cluster "prod" is not granted'),
    (lambda store: store.remove_cluster("prod"), 'cluster "prod" is not granted'),
]


@pytest.mark.parametrize(("change", "why"), ENDINGS)
async def test_a_held_call_that_would_be_refused_is_ended(
    bench: HeldBench, change: Callable[[Store], object], why: str
) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        await bench.hub.directory.change(change)
        await asked.refused(why)
    [closing] = await bench.hub.trail()
    assert closing["kind"] == "session.killed"
    assert closing["resp"]["processed"] == "no"
    assert bench.requests.states == [State.PENDING]


async def test_a_held_call_is_killed_by_an_operator(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        [live] = bench.hub.calls.live
        live.end(Ending(CloseReason.KILLED, "an operator has ended it"))
        await asked.refused("an operator has ended it")


async def test_a_lock_during_the_commit_of_the_use_gives_it_back(bench: HeldBench) -> None:
    bench.requests.using = committed = trio.Event()
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        while not bench.requests.uses:
            await step()
        await bench.hub.directory.change(lambda store: store.lock_agent("ann"))
        committed.set()
        await asked.refused("agent:ann is locked")
        await until_state(bench, State.APPROVED)


OTHER_RULE = POLICY.replace("id: risky", "id: other")
OTHER_APPROVERS = POLICY.replace("eve@", "bob@")
DENIES = (
    POLICY
    + """
        - id: frozen
          effect: deny
          verbs: [delete]
          resources: ["*"]
"""
)


async def test_a_policy_that_denies_or_another_rule_ends_a_held_call(bench: HeldBench) -> None:
    for policy, why in ((DENIES, "careful/frozen denies it"), (OTHER_RULE, "careful/other asks for")):
        await bench.apply()
        async with asking(bench) as asked:
            await until_held(bench)
            await bench.apply(policy)
            await asked.refused(why)


@pytest.mark.parametrize("policy", [OTHER_APPROVERS, OTHER_RULE])
async def test_an_approval_by_another_rule_or_other_approvers_is_not_used(
    bench: HeldBench, policy: str, mock_clock: MockClock
) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        mock_clock.jump(WAIT_S)
        await asked.refused("is pending")
    bench.requests.approve()
    await bench.apply(policy)
    async with asking(bench):
        await until_held(bench)
        assert bench.requests.states == [State.CANCELLED, State.PENDING]


async def test_a_body_is_kept_for_all_attempts_under_one_use(bench: HeldBench) -> None:
    body = b'{"a": "%s"}' % (b"x" * 300_000)
    async with asking(bench, POST, body) as asked:
        await until_held(bench)
        [live] = bench.hub.calls.live
        assert live.held_bytes > len(body)
        bench.requests.approve()
        first = await accept(bench.relay)
        received = await received_of(first, len(body))
        first.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="expired")
        second = await accept(bench.relay)
        assert await received_of(second, len(body)) == received == body
        await second.send_head(NO % b"201 Created")
        await second.send_all(b"yes")
        await second.send_eof()
        await asked.wait()
        assert asked.status == 201
    await until_state(bench, State.USED)
    assert bench.requests.log.count("approved→using a-1") == 1


async def received_of(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += await stream.receive_some()
    return received


@pytest.mark.parametrize("status", [b"409 Conflict", b"429 Too Many Requests"])
async def test_a_conflict_and_a_blocked_eviction_give_the_use_back(bench: HeldBench, status: bytes) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        await answer(bench, asked, NO % status)
    await until_state(bench, State.APPROVED)
    assert bench.requests.found[0].uses_returned == 1
    async with asking(bench) as asked:
        await answer(bench, asked)
    await until_state(bench, State.USED)


@pytest.mark.parametrize(
    "line",
    ["GET /api/v1/namespaces/dev/services/web/proxy/x", "POST /apis/x.example.com/v1/namespaces/dev/things"],
)
async def test_the_conflict_of_a_server_that_may_have_acted_spends_the_use(
    bench: HeldBench, line: str
) -> None:
    async with asking(bench, line.replace("/", "/clusters/prod/", 1) + " HTTP/1.1") as asked:
        await until_held(bench)
        bench.requests.approve()
        await answer(bench, asked, NO % b"409 Conflict")
    await until_state(bench, State.USED)


async def test_a_call_that_reaches_no_api_server_gives_the_use_back(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        stream = await accept(bench.relay)
        stream.reset(StreamCode.DIAL_FAILED, processed=Processed.NO, reason="no route")
        await asked.refused("the API server has not seen this request", 503)
    await until_state(bench, State.APPROVED)


async def test_a_call_with_an_unknown_outcome_spends_the_use(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        stream = await accept(bench.relay)
        stream.reset(StreamCode.UPSTREAM_RESET, processed=Processed.MAYBE, reason="cut")
        await asked.refused("may still be processing", 504)
    await until_state(bench, State.USED)


async def test_one_agent_has_a_bounded_number_of_held_calls(bench: HeldBench) -> None:
    line = "DELETE /clusters/prod/apis/apps/v1/namespaces/dev/deployments/web-%d HTTP/1.1"
    async with AsyncExitStack() as stack:
        for number in range(HELD_PER_AGENT_MAX):
            await stack.enter_async_context(asking(bench, line % number))
        await until_held(bench, HELD_PER_AGENT_MAX)
        async with asking(bench, line % 99) as asked:
            await asked.refused("8 calls of this agent wait for an approval already")
        assert len(bench.requests.found) == HELD_PER_AGENT_MAX
        # A call that is approved need not wait.
        bench.requests.approve("a-3")
        await (await accept(bench.relay)).send_head(NO % b"200 OK")


async def test_a_second_call_with_the_plan_of_a_held_one_is_refused_at_once(bench: HeldBench) -> None:
    async with asking(bench):
        await until_held(bench)
        async with asking(bench) as asked:
            await asked.refused("approval request a-1 is pending")
        assert len(bench.requests.found) == 1


async def test_of_two_calls_with_one_approval_one_wins(bench: HeldBench) -> None:
    bench.requests.lose_use = True
    async with asking(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        await asked.refused("approval request a-1 was used already")


async def test_an_exec_is_held_once_and_its_repeat_over_spdy_is_answered_at_once(
    bench: HeldBench, mock_clock: MockClock
) -> None:
    async with asking_exec(bench) as asked:
        await until_held(bench)
        mock_clock.jump(WAIT_S)
        await asked.refused("approval request a-1 is pending")
        head, _, body = asked.received.partition(b"\r\n\r\n")
        assert b"HTTP/1.1 403 " in head
        assert len(body) <= 1000
        assert asked.causes["ApprovalRequest"] == "a-1"
    async with asking_exec(bench) as asked:
        await asked.refused("approval request a-1 is pending")
    # Another request of the same exec is no twin.
    bench.requests.change("a-1", State.EXPIRED)
    async with asking_exec(bench):
        await until_held(bench)
    mock_clock.jump(FALLBACK_S + 1)
    async with asking_exec(bench):
        await until_held(bench)
    assert bench.requests.states == [State.EXPIRED, State.PENDING]


LONG = POLICY.replace("reason: look first", f"reason: {'x' * 200}")


async def test_the_text_of_an_upgrade_has_the_id_first_and_fits(
    bench: HeldBench, mock_clock: MockClock
) -> None:
    await bench.apply(LONG)
    async with asking_exec(bench) as asked:
        await until_held(bench)
        bench.requests.deny("no " * 500)
        await asked.refused("approval request a-1 was denied: no no")
        assert len(asked.received.partition(b"\r\n\r\n")[2]) <= 1000


async def test_an_object_that_changed_makes_the_request_stale_and_asks_again(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        bench.previews.effect = "another object"
        bench.requests.approve()
        await until_state(bench, State.STALE, State.PENDING)
        await until_held(bench)
        bench.requests.approve("a-2")
        await answer(bench, asked)
        assert asked.status == 200
    await until_state(bench, State.STALE, State.USED)
    assert "approved→using a-1" not in bench.requests.log


async def test_a_preview_that_fails_is_the_answer_and_opens_nothing(bench: HeldBench) -> None:
    bench.previews.refused = refusal_of(
        409,
        b'{"kind": "Status", "message": "there is one already", "reason": "AlreadyExists",'
        b' "details": {"name": "web"}}',
    )
    async with asking(bench) as asked:
        await asked.refused("there is one already", 409)
        assert (asked.body["reason"], asked.body["details"]) == ("AlreadyExists", {"name": "web"})
    bench.previews.refused = PreviewRefused(403, "no secrets here", guardrail="no-secrets")
    async with asking(bench) as asked:
        await asked.refused("no secrets here")
    assert not bench.requests.found
    [conflict, guarded] = await bench.hub.trail()
    # An API server may quote a body, which the trail never holds.
    assert conflict["note"] == "the API server refuses what the call would do with 409"
    assert guarded["decision"] == {"effect": "deny", "rule": "no-secrets", "policy": "relay-guardrails"}


async def test_a_store_that_is_away_refuses_the_call(bench: HeldBench) -> None:
    bench.requests.away = True
    async with asking(bench) as asked:
        await asked.refused("the hub's store is not available", 503)
        assert "the API server has not seen this request" in str(asked.body["message"])


async def test_a_hub_that_leaves_refuses_the_held_calls_and_holds_no_others(bench: HeldBench) -> None:
    async with asking(bench) as asked:
        await until_held(bench)
        bench.held.leave()
        await asked.refused("approval request a-1 is pending")
    async with asking(bench) as asked:
        await asked.refused("approval request a-1 is pending")
    bench.requests.approve()
    async with asking(bench) as asked:
        await answer(bench, asked)
        assert asked.status == 200


async def test_a_body_that_cannot_be_bound_is_refused_unread(bench: HeldBench) -> None:
    async with asking(bench, POST, b'{"a": 1, "a": 2}') as asked:
        await asked.wait()
        assert asked.status == 400
    async with asking(bench, POST, b"", "Content-Length: 2000000", "Content-Type: application/json") as asked:
        await asked.wait()
        assert asked.status == 413
    async with asking(
        bench, POST, b"", "Transfer-Encoding: chunked", "Content-Type: application/json"
    ) as asked:
        await asked.client.send_all(b"no chunk\r\n")
        await asked.refused("the request's body is malformed", 400)
    assert not bench.requests.found


async def test_a_running_exec_ends_with_its_approval_but_not_by_the_rule_that_asked(bench: HeldBench) -> None:
    async with asking_exec(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        stream = await accept(bench.relay)
        await stream.send_head(SWITCHING)
        await until_state(bench, State.USED)
        # Judged again: the rule still asks, and another limit of it does not concern this.
        await bench.apply(POLICY.replace("look first", "look twice"))
        [live] = bench.hub.calls.live
        await step()
        assert live.ended is None
        bench.requests.change("a-1", State.REVOKED)
        bench.held.on_change(frozenset({"a-1"}))
        await asked.wait()
        assert live.ended is not None
        assert live.ended.reason.startswith("careful/risky asks for an approval of it")
        stream.close_nowait()


async def test_a_policy_that_denies_ends_an_approved_exec(bench: HeldBench) -> None:
    async with asking_exec(bench) as asked:
        await until_held(bench)
        bench.requests.approve()
        stream = await accept(bench.relay)
        await stream.send_head(SWITCHING)
        await bench.apply(DENIES.replace("[delete]", "[create, get]").replace('["*"]\n', '["*/*"]\n'))
        await asked.wait()
        stream.close_nowait()


async def test_the_longest_duration_counts_from_the_approval(bench: HeldBench, mock_clock: MockClock) -> None:
    async with asking_exec(bench):
        await until_held(bench)
        [live] = bench.hub.calls.live
        assert live.due_at == float("inf")
        mock_clock.jump(30)
        bench.requests.approve()
        stream = await accept(bench.relay)
        assert live.due_at == pytest.approx(trio.current_time() + 60, abs=1)
        stream.close_nowait()


ALLOWS = """
    apiVersion: hawse.dev/v1
    kind: Policy
    metadata: {name: careful}
    spec:
      bind: {teams: [sre]}
      rules:
        - {id: risky, effect: allow, verbs: [create, get], resources: ["*/*"]}
"""


async def test_a_call_that_was_allowed_and_is_asked_now_is_ended(bench: HeldBench) -> None:
    await bench.apply(ALLOWS)
    async with asking_exec(bench) as asked:
        stream = await accept(bench.relay)
        await stream.send_head(SWITCHING)
        await bench.apply()
        await asked.wait()
        stream.close_nowait()


async def test_a_hub_that_stops_records_the_end_of_a_held_call(bench: HeldBench) -> None:
    async with asking(bench):
        await until_held(bench)
    [closing] = await bench.hub.trail()
    assert closing["resp"]["processed"] == "no"
    assert bench.requests.states == [State.PENDING]


async def test_held_calls_count_as_open_calls_of_their_agent(bench: HeldBench) -> None:
    async with asking(bench):
        await until_held(bench)
        [load] = bench.hub.calls.limits._loads.values()
        assert load.streams == 1
