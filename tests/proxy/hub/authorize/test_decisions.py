from __future__ import annotations

import gc
import json
import math
import time
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from auth.policy.text import Source
from auth.requestinfo import parse
from proxy.hub.authorize.decisions import denial, judge
from proxy.hub.calls.live import TIMED_EVERY_S, LiveCall, LiveCalls
from tests.auth.policies import AGENT, CLUSTER, bundle, policy
from tests.proxy.hub.calls.bench import OK, Bench, open_bench, relay_of, streams_of
from tests.proxy.hub.calls.fake_live_calls import live_call
from tests.proxy.hub.calls.talk import SWITCHING, exec_request, expect_reset, talk
from tests.tunnel.trio_stream import accept
from tunnel import StreamCode

LOOK = "- {id: look, effect: allow, verbs: [read], resources: ['*', '!secrets']}"
HELD = "/clusters/prod/api/v1/namespaces/dev/pods"


async def test_a_call_that_a_policy_denies_never_reaches_a_relay_and_says_what_to_do(bench: Bench) -> None:
    await bench.directory.change(lambda store: store.apply_policies([Source(policy(LOOK, name="granted"))]))
    async with relay_of(bench) as relay:
        status, headers, body = await bench.ask(bench.request(f"DELETE {HELD}/web HTTP/1.1"))
        assert relay.stream_count == 0
    assert status == 403
    assert headers[b"content-type"] == b"application/json"
    told = json.loads(body)
    message = (
        "delete of pods web in namespace dev on cluster prod is denied by no-rule-allows: no rule allows it; "
        "instead: you may get, list, watch pods there; ask Ann"
    )
    now = bench.directory.current.bundle
    assert told == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "Forbidden",
        "code": 403,
        "details": {
            "name": "web",
            "kind": "pods",
            "causes": [
                {"reason": "PolicyRule", "message": "no-rule-allows"},
                {"reason": "Why", "message": "no rule allows it"},
                {"reason": "Instead", "message": "you may get, list, watch pods there"},
                {"reason": "Ask", "message": "Ann"},
                {"reason": "PolicyBundle", "message": now.id},
            ],
        },
    }
    [event] = await bench.trail()
    assert event["decision"] == {"effect": "deny", "rule": "no-rule-allows", "bundle": now.id}
    assert event["note"] == message
    assert event["resp"]["status"] == 403


def test_a_verdict_that_asks_is_recorded_as_one_and_says_so() -> None:
    asks = "- {id: risky, effect: ask, verbs: [delete], reason: it is production, ask: {approvers: [any]}}"
    made, info = bundle(policy(asks)), parse(b"DELETE", b"/api/v1/namespaces/dev/pods/web")
    verdict = judge(made, AGENT, CLUSTER, info, 0.0)
    assert (verdict.allowed, verdict.asked, verdict.rule) == (False, True, "p/risky")
    assert (verdict.recorded.effect, verdict.recorded.rule) == ("ask", "risky")
    told = denial(verdict, AGENT, CLUSTER, info)
    assert told.message == (
        "delete of pods web in namespace dev on cluster prod needs an approval (p/risky): it is production; "
        "ask owner@example.com"
    )
    refused = judge(made, AGENT, CLUSTER, parse(b"PUT", b"/api/v1/namespaces/dev/pods/web"), 0.0)
    assert (refused.asked, refused.recorded.effect) == (False, "deny")


async def test_each_call_is_recorded_with_the_rule_and_the_bundle_that_decided(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:

        async def answer() -> None:
            for _ in range(2):
                async with await accept(relay) as stream:
                    await stream.send_head(OK)
                    await stream.send_all(b"yes")
                    await stream.send_eof()

        nursery.start_soon(answer)
        assert (await bench.ask(bench.request(f"GET {HELD} HTTP/1.1")))[0] == 200
        assert (await bench.ask(bench.request("GET /clusters/prod/api HTTP/1.1")))[0] == 200
    bundle_id = bench.directory.current.bundle.id
    assert bundle_id.startswith("1-")
    one, two = await bench.trail()
    assert one["decision"] == {"effect": "allow", "rule": "granted", "policy": "granted", "bundle": bundle_id}
    assert two["decision"] == {"effect": "allow", "rule": "discovery", "bundle": bundle_id}


async def test_a_new_bundle_counts_from_the_next_call_on(bench: Bench) -> None:
    request = bench.request(
        "POST /clusters/prod/api/v1/namespaces/dev/pods/web/eviction HTTP/1.1", "Content-Length: 0"
    )
    assert (await bench.ask(request))[0] == 503
    await bench.directory.change(lambda store: store.apply_policies([Source(policy(LOOK, name="granted"))]))
    assert (await bench.ask(request))[0] == 403
    await bench.directory.change(lambda store: store.remove_policy("granted"))
    assert (await bench.ask(request))[0] == 403


async def test_a_denied_upgrade_is_explained_in_the_bytes_that_kubectl_reads(bench: Bench) -> None:
    await bench.directory.change(lambda store: store.apply_policies([Source(policy(LOOK, name="granted"))]))
    request = bench.request(f"GET {HELD}/web/exec?command=id HTTP/1.1", "Upgrade: websocket")
    request = request.replace(b"Connection: close", b"Connection: Upgrade, close")
    status, headers, body = await bench.ask(request)
    assert status == 403
    assert int(headers[b"content-length"]) == len(body) <= 1000
    assert json.loads(body)["message"].startswith(
        "create of pods/exec web in namespace dev on cluster prod is denied"
    )


CONSOLE = "/clusters/prod/apis/subresources.kubevirt.io/v1/namespaces/dev/virtualmachineinstances/vm/console"


async def test_a_read_only_agent_upgrades_only_to_watch(bench: Bench) -> None:
    await bench.directory.change(lambda store: store.apply_policies([Source(policy(LOOK, name="granted"))]))

    async def ask(target: str) -> int:
        request = bench.request(f"GET {target} HTTP/1.1", "Upgrade: websocket")
        return (await bench.ask(request.replace(b"Connection: close", b"Connection: Upgrade, close")))[0]

    assert await ask(CONSOLE) == 403
    # Allowed: there is just no relay.
    assert await ask(f"{HELD}?watch=true") == 503
    both = policy(f"{LOOK}\n- {{id: open, effect: allow, verbs: [get, create], resources: ['*/console']}}")
    await bench.directory.change(lambda store: store.apply_policies([Source(both)]))
    assert await ask(CONSOLE) == 503
    rules = [event["decision"]["rule"] for event in await bench.trail()]
    assert list(dict.fromkeys(rules)) == ["no-rule-allows", "look", "open"]


def test_a_verdict_is_one_object_for_each_rule_of_a_bundle() -> None:
    made = bundle(policy(LOOK))
    info = parse(b"GET", b"/api/v1/pods")
    assert judge(made, AGENT, CLUSTER, info, 0.0) is judge(made, AGENT, CLUSTER, info, 1.0)
    assert judge(made, AGENT, CLUSTER, info, 0.0).recorded.bundle == made.id


def test_a_verdict_does_not_keep_a_replaced_bundle_alive() -> None:
    replaced, info = bundle(policy(LOOK)), parse(b"GET", b"/api/v1/pods")
    judge(replaced, AGENT, CLUSTER, info, 0.0)
    gone = weakref.ref(replaced)
    del replaced
    judge(bundle(policy(LOOK)), AGENT, CLUSTER, info, 0.0)
    gc.collect()
    assert gone() is None


def test_a_denial_about_no_resource_has_no_kind() -> None:
    made = bundle(policy(LOOK))
    info = parse(b"GET", b"/metrics")
    told = denial(judge(made, AGENT, CLUSTER, info, 0.0), AGENT, CLUSTER, info)
    assert set(told.details) == {"causes"}


BOUNDED = policy(
    "- {id: exec, effect: allow, verbs: [create], resources: [pods/exec], obligations: {maxDuration: 10m}}",
    name="granted",
)


async def test_a_stream_ends_when_its_rule_says_so_and_the_trail_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.directory.change(lambda store: store.apply_policies([Source(BOUNDED)]))
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        client = await talk(bench, nursery, exec_request(bench))
        stream = await accept(relay)
        await stream.send_head(SWITCHING)
        await stream.send_all(b"first")
        await client.has(b"first")
        [live] = bench.calls.live
        assert 590 < live.due_at - trio.current_time() <= 600
        # It is no older for a clock that is set.
        ahead = SimpleNamespace(time=lambda: time.time() + 3600, monotonic=time.monotonic)
        with monkeypatch.context() as later:
            later.setattr("proxy.hub.calls.calls.time", ahead)
            bench.calls._limit(live, live.call.verdict)
        assert live.due_at - trio.current_time() > 580
        # As if it had begun nearly ten minutes ago.
        passed = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 599.95)
        with monkeypatch.context() as later:
            later.setattr("proxy.hub.calls.calls.time", passed)
            bench.calls._limit(live, live.call.verdict)
        # Nor has it lasted longer for it.
        tomorrow = SimpleNamespace(now=lambda _: datetime.now(UTC) + timedelta(days=1))
        monkeypatch.setattr("proxy.hub.calls.calls.datetime", tomorrow)
        reset = await expect_reset(stream)
        with trio.fail_after(30):
            await client.ended.wait()
        await stream.aclose()
    assert (reset.code, reset.reason) == (
        StreamCode.DEADLINE,
        "granted/exec allows 600 s, and they are over",
    )
    closing = (await bench.trail())[-1]
    assert closing["stream"]["close_reason"] == "deadline"
    assert closing["resp"]["reason"] == reset.reason
    assert 0 < closing["dur_ms"] < 60_000


async def test_a_shorter_duration_applies_to_calls_under_way(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        await talk(bench, nursery, exec_request(bench))
        stream = await accept(relay)
        await stream.send_head(SWITCHING)
        [live] = bench.calls.live
        assert live.due_at == math.inf
        await bench.directory.change(lambda store: store.apply_policies([Source(BOUNDED)]))
        await wait_all_tasks_blocked(0.01)
        assert 590 < live.due_at - trio.current_time() <= 600
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_call_ends_when_a_condition_on_the_time_denies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = "- {{id: hours, effect: allow, verbs: ['*'], resources: ['*', '*/*'], when: '{}'}}"
    monkeypatch.setattr("proxy.hub.calls.live.TIMED_EVERY_S", 0.01)
    async with open_bench(tmp_path, with_task=True) as bench, relay_of(bench) as relay:
        live = bench.calls.live
        before = f'now < timestamp("{datetime.fromtimestamp(time.time() + 3600, UTC):%Y-%m-%dT%H:%M:%SZ}")'
        await bench.directory.change(
            lambda store: store.apply_policies([Source(policy(hours.format(before), name="granted"))])
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.run_timed, lambda: bench.directory.current.bundle.timed)
            client = await talk(bench, nursery, exec_request(bench))
            stream = await accept(relay)
            await stream.send_head(SWITCHING)
            await stream.send_all(b"first")
            await client.has(b"first")
            later = SimpleNamespace(time=lambda: time.time() + 7200, monotonic=time.monotonic)
            monkeypatch.setattr("proxy.hub.calls.calls.time", later)
            reset = await expect_reset(stream)
            with trio.fail_after(30):
                await client.ended.wait()
            await stream.aclose()
            nursery.cancel_scope.cancel()
    assert reset.code is StreamCode.REVOKED
    assert "no-rule-allows denies it since bundle" in reset.reason


async def test_nothing_is_judged_again_where_no_policy_looks_at_the_time(autojump_clock: MockClock) -> None:
    judged: list[LiveCall] = []
    calls = LiveCalls(lambda live: judged.append(live))
    timed = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calls.run)
        nursery.start_soon(calls.run_timed, lambda: timed)
        live = live_call()
        calls.enter(live)
        await trio.sleep(10 * TIMED_EVERY_S + 1)
        assert judged == []
        timed = True
        await trio.sleep(2 * TIMED_EVERY_S)
        assert judged == [live, live]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("broken", ["decide", "judge", "parse_request"])
async def test_a_fault_in_the_decision_never_becomes_a_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    module = "calls.calls" if broken == "parse_request" else "authorize.admission"
    module = "calls.begin" if broken == "parse_request" and not bench.with_task else module
    data = bench.request(f"GET {HELD}/web HTTP/1.1")
    async with relay_of(bench) as relay:
        with monkeypatch.context() as patched:
            patched.setattr(f"proxy.hub.{module}.{broken}", fail)
            # It reaches the front, which answers by a 500, logs it and ends this connection alone.
            with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug"), flatten_subgroups=True):
                await bench.ask(data)
        assert relay.stream_count == 0
    assert streams_of(bench.calls) == {}
