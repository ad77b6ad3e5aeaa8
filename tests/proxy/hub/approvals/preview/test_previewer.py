"""The requests of a preview, and what follows from their answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from audit.reader import AuditReader
from auth.policy.ask import Ask
from auth.policy.patterns import Names
from auth.policy.text import Source
from proxy.hub.approvals.preview import previewer
from proxy.hub.approvals.preview.asker import ANSWER_BYTES_MAX, ANSWER_S, PER_AGENT
from proxy.hub.approvals.preview.effect import effect_fits
from proxy.hub.approvals.preview.findings import NOT_HONOURED
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.approvals.view import Change
from proxy.hub.calls.live import Ending
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.store.store import Store
from tests.proxy.hub.approvals.preview.clusters import ASK, Asked, Cluster, open_cluster, status
from tunnel import StreamCode

WEB = "/apis/apps/v1/namespaces/shop/deployments/web"
PODS = "/api/v1/namespaces/shop/pods"
WIDGETS = "/apis/stable.example.com/v1/namespaces/shop/widgets"
PATCH = f"PATCH {WEB}?fieldManager=k"


def web(replicas: int = 3, **metadata: object) -> dict[str, Any]:
    named = {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"}
    return {"kind": "Deployment", "metadata": named | metadata, "spec": {"replicas": replicas}}


def scaled(asked: Asked) -> tuple[int, object]:
    return 200, web(0 if asked.dry else 3)


def always(code: int, said: object) -> Callable[[Asked], tuple[int, object]]:
    return lambda _: (code, said)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with open_cluster(tmp_path) as cluster:
        yield cluster


async def test_a_write_is_tried_twice_beside_a_read_and_the_trail_has_all_three(cluster: Cluster) -> None:
    cluster.answer = scaled
    headers = (
        (b"content-type", b"application/merge-patch+json"),
        (b"accept", b"application/vnd.kubernetes.protobuf"),
        (b"accept-encoding", b"gzip"),
        (b"user-agent", b"kubectl/v1"),
    )
    live = cluster.live(PATCH, headers)
    made = await cluster.previewer.preview(live, b'{"spec": {"replicas": 0}}', ASK)
    assert isinstance(made, Preview)
    assert made.view.summary == "scales Deployment web from 3 to 0"
    assert made.view.flags == ("scales to 0",)
    assert made.view.changes == (Change("spec.replicas", "3", "0"),)
    requests = sorted((asked.method, asked.target, asked.body) for asked in cluster.asked)
    dry = ("PATCH", f"{WEB}?fieldManager=k&dryRun=All", b'{"spec": {"replicas": 0}}')
    assert requests == [("GET", WEB, b""), dry, dry]
    for asked in cluster.asked:
        lines = asked.head.lower().split(b"\r\n")
        assert b"accept: application/json" in lines
        assert not any(line.startswith((b"authorization:", b"accept-encoding:")) for line in lines)
        assert (b"content-type: application/merge-patch+json" in lines) is asked.dry
        assert (b"user-agent: kubectl/v1" in lines) is asked.dry
    events = await cluster.trail()
    assert {event["serves"] for event in events} == {live.eid}
    assert sorted((str(event["phase"]), event["req"]["verb"]) for event in events) == [
        ("complete", "get"),
        *[("complete", "patch")] * 2,
        *[("intent", "patch")] * 2,
    ]
    for event in events:
        if event["phase"] == "complete":
            assert event["resp"]["status"] == 200
            assert event["relay"]["instance"] == "relay-1"
            assert event["impersonated"]["user"] == "agent:ann"
    # The audit id in each request is that of its event.
    ids = {asked.head.split(b"audit-id: ")[1].split(b"\r\n")[0].decode() for asked in cluster.asked}
    assert ids == {event["eid"] for event in events}


async def test_an_intent_of_a_dry_run_is_durable_before_it_is_sent(cluster: Cluster) -> None:
    durable: list[bool] = []

    def answer(asked: Asked) -> tuple[int, object]:
        if asked.dry:
            eid = asked.head.split(b"audit-id: ")[1].split(b"\r\n")[0].decode()
            reader = AuditReader(cluster.bench.audit_file)
            durable.append(any(eid.encode() in stored.body for stored in reader.query()))
            reader.close()
        return scaled(asked)

    cluster.answer = answer
    await cluster.made(PATCH, {})
    assert durable == [True, True]


async def test_an_api_that_may_ignore_dry_run_gets_no_request(cluster: Cluster) -> None:
    for line in (
        f"PATCH {WIDGETS}/w",
        f"POST {WIDGETS}",
        "POST /api/v1/namespaces/a/serviceaccounts/s/token",
    ):
        made = await cluster.made(line, {"spec": {"a": 1}})
        assert made.view.notes == (NOT_HONOURED,)
        assert '"a": 1' in made.view.body
    assert cluster.asked == []
    assert await cluster.trail() == []
    cluster.answer = lambda asked: (200, {"kind": "Widget", "metadata": {"name": "w"}, "spec": asked.dry})
    made = await cluster.made(f"PATCH {WIDGETS}/w", {}, ask=Ask(("any",), dry_run=Names(("*.example.com",))))
    assert made.view.changes == (Change("spec", "false", "true"),)
    assert sum(asked.dry for asked in cluster.asked) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (403, "Forbidden"),
        (404, "NotFound"),
        (409, "AlreadyExists"),
        (409, "Conflict"),
        (422, "Invalid"),
        (400, ""),
    ],
)
async def test_what_the_api_server_refuses_in_the_dry_run_goes_to_the_agent(
    cluster: Cluster, code: int, reason: str
) -> None:
    cluster.answer = lambda asked: status(code, "no, web", reason, name="web") if asked.dry else (200, web())
    refused = await cluster.refused(PATCH, {})
    note = f"the API server refuses what the call would do with {code}"
    assert refused == PreviewRefused(code, "no, web", reason, {"name": "web"}, note=note)


async def test_an_answer_that_is_no_status_has_other_words(cluster: Cluster) -> None:
    cluster.answer = lambda asked: (403, b"<html>\x1b[2J") if asked.dry else (200, web())
    assert (await cluster.refused(PATCH, {})).message == "the API server refuses the request with 403"


async def test_a_guardrail_answers_the_agent(cluster: Cluster) -> None:
    denied = json.dumps(status(403, "the relay's guardrails deny it")[1]).encode()
    cluster.answer = lambda _: (403, denied, b"hawse-relay-decision: guardrails no-writes\r\n")
    refused = await cluster.refused(PATCH, {})
    assert (refused.status, refused.message, refused.guardrail) == (
        403,
        "the relay's guardrails deny it",
        "no-writes",
    )
    decisions = [event["decision"] for event in await cluster.trail() if event["phase"] == "complete"]
    assert {"effect": "deny", "rule": "no-writes", "policy": "relay-guardrails"} in decisions


async def test_without_the_right_to_get_the_body_alone_is_shown(cluster: Cluster) -> None:
    cluster.answer = lambda asked: (200, web(0)) if asked.dry else status(403, "forbidden")
    made = await cluster.made(PATCH, {"spec": {"replicas": 0}})
    assert made.view.notes == ("the object cannot be shown as it is now: the agent may not read it (403)",)
    assert made.view.changes == ()
    assert '"replicas": 0' in made.view.body


async def test_an_object_that_is_not_there_is_created(cluster: Cluster) -> None:
    cluster.answer = lambda asked: (201, web(2)) if asked.dry else status(404, "not found")
    made = await cluster.made(f"PATCH {WEB}", {"spec": {}})
    assert made.view.summary == "creates Deployment web"
    assert '"replicas": 2' in made.view.body
    cluster.asked.clear()
    made = await cluster.made("POST /apis/apps/v1/namespaces/shop/deployments", {"spec": {}})
    assert made.view.summary == "creates Deployment web"
    assert all(asked.dry for asked in cluster.asked)


async def test_a_webhook_with_side_effects_shows_the_body_and_that_sentence(cluster: Cluster) -> None:
    sentence = 'admission webhook "hook.example.com" does not support dry run'
    cluster.answer = lambda asked: status(400, sentence, "BadRequest") if asked.dry else (200, web())
    made = await cluster.made(PATCH, {"spec": {"replicas": 0}})
    assert made.view.notes == (f"not tried out: {sentence}",)
    assert '"replicas": 0' in made.view.body
    again = await cluster.made(PATCH, {"spec": {"replicas": 0}}, like=made.effect)
    assert effect_fits(made.effect, again.effect)
    # The words are not the API server's to choose.
    cluster.answer = lambda asked: (
        status(400, f"{sentence} at all", "BadRequest") if asked.dry else (200, web())
    )
    assert (await cluster.refused(PATCH, {})).message == f"{sentence} at all"


async def test_a_deletion_shows_the_object_and_what_goes_with_it(cluster: Cluster) -> None:
    owner = [{"uid": "u"}]
    lists = {
        "replicasets": [{"metadata": {"uid": "r", "ownerReferences": owner}}],
        "pods": [{"metadata": {"uid": str(n), "ownerReferences": [{"uid": "r"}]}} for n in range(6)],
    }

    def answer(asked: Asked) -> tuple[int, object]:
        if asked.target == WEB:
            return 200, web(finalizers=["f"])
        return 200, {"items": lists[asked.target.rpartition("/")[2].removesuffix("?limit=200")]}

    cluster.answer = answer
    made = await cluster.made(f"DELETE {WEB}", {"gracePeriodSeconds": 0})
    assert made.view.summary == "deletes Deployment web, at least 6 pods"
    assert made.view.flags == ("deletes at once (grace period 0)",)
    assert made.view.notes == (
        'options: {"gracePeriodSeconds": 0}',
        "it has finalizers, so it goes later: f",
    )
    assert [asked.method for asked in cluster.asked] == ["GET"] * 3
    cluster.answer = lambda asked: answer(asked) if asked.target == WEB else status(403, "no")
    other = await cluster.preview(f"DELETE {WEB}", like=made.effect)
    assert isinstance(other, Preview)
    assert other.view.summary == "deletes Deployment web"
    assert len(other.view.notes) == 3
    assert effect_fits(made.effect, other.effect)
    cluster.asked.clear()
    await cluster.made(f"DELETE {WEB}?propagationPolicy=Orphan")
    assert len(cluster.asked) == 1


async def test_a_guardrail_about_dependants_hides_only_these(cluster: Cluster) -> None:
    denied = (403, b"{}", b"hawse-relay-decision: guardrails no-lists\r\n")
    cluster.answer = lambda asked: (200, web()) if asked.target == WEB else denied
    made = await cluster.made(f"DELETE {WEB}")
    assert made.view.notes[0].startswith("replicasets that may belong to it are not counted: ")


async def test_what_is_not_there_is_not_asked_about(cluster: Cluster) -> None:
    cluster.answer = lambda _: status(404, 'pods "p" not found', "NotFound")
    for line in (f"DELETE {PODS}/p", f"POST {PODS}/p/exec?command=ls", f"POST {PODS}/p/eviction"):
        refused = await cluster.refused(line)
        assert isinstance(refused, PreviewRefused)
        assert (refused.status, refused.message) == (404, 'pods "p" not found')
        assert (refused.reason, refused.details) == ("NotFound", {})


async def test_a_collection_is_listed_and_one_that_is_too_large_cannot_be_approved(cluster: Cluster) -> None:
    items = [{"metadata": {"name": name, "namespace": "shop", "uid": name}} for name in "ab"]
    cluster.answer = lambda _: (200, {"items": items})
    made = await cluster.made(f"DELETE {PODS}?labelSelector=a%3Db")
    assert made.view.summary == "deletes 2 pods"
    assert [asked.target for asked in cluster.asked] == [f"{PODS}?labelSelector=a%3Db&limit=1500"]
    items.pop()
    now = await cluster.preview(f"DELETE {PODS}?labelSelector=a%3Db", like=made.effect)
    assert isinstance(now, Preview)
    assert effect_fits(made.effect, now.effect)
    cluster.answer = lambda _: (200, b" " * (ANSWER_BYTES_MAX + 1))
    assert (await cluster.made(f"DELETE {PODS}")).view.too_large


async def test_a_pod_is_read_for_an_exec(cluster: Cluster) -> None:
    status_of = {"containerStatuses": [{"name": "app", "imageID": "sha256:1"}]}
    cluster.answer = lambda _: (
        200,
        {"kind": "Pod", "metadata": {"name": "p", "uid": "u"}, "status": status_of},
    )
    line = f"POST {PODS}/p/exec?command=ls"
    made = await cluster.made(line)
    assert made.view.summary == "runs `ls` in Pod p"
    assert made.view.body == "app: sha256:1"
    assert [asked.target for asked in cluster.asked] == [f"{PODS}/p"]
    cluster.answer = lambda _: status(403, "no")
    unseen = await cluster.made(line)
    assert unseen.view.notes == ("the pod cannot be shown: the agent may not read it (403)",)
    assert not effect_fits(made.effect, unseen.effect)


async def test_a_read_needs_no_request(cluster: Cluster) -> None:
    for line, summary in (
        (f"GET {PODS}/p/log?tailLines=1", "reads the log of Pod p"),
        ("GET /api/v1/namespaces/shop/secrets/x", "reads secrets x"),
        ("GET /api/v1/secrets", "lists secrets"),
        ("GET /metrics", "reads /metrics"),
    ):
        assert (await cluster.made(line)).view.summary == summary
    assert cluster.asked == []


RULES = """
apiVersion: hawse.dev/v1
kind: Policy
metadata: {name: quiet}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: no-gets, effect: EFFECT, verbs: [get, list], namespaces: [shop]ASKED}
"""


@pytest.mark.parametrize(("effect", "said"), [("deny", "does not allow it"), ("ask", "asks")])
async def test_what_policies_deny_or_ask_about_is_not_made_and_said(
    cluster: Cluster, effect: str, said: str
) -> None:
    cluster.answer = scaled
    asked = ", ask: {approvers: [any]}" if effect == "ask" else ""
    text = RULES.replace("EFFECT", effect).replace("ASKED", asked)
    await cluster.bench.directory.change(lambda store: store.apply_policies([Source(text)]))
    made = await cluster.made(PATCH, {"spec": {"replicas": 0}})
    [note] = made.view.notes
    assert note == (
        "the object cannot be shown as it is now: "
        f"not made, since a policy of the agent {said} (quiet/no-gets)"
    )
    assert all(asked.dry for asked in cluster.asked)


ASKING = """
apiVersion: hawse.dev/v1
kind: Policy
metadata: {name: on-call}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: look, effect: allow, verbs: [read], resources: ["*", "*/*"]}
    - {id: change, effect: ask, verbs: [write], ask: {approvers: [any]}}
    - {id: never, effect: deny, verbs: [write], resourceNames: [db]}
    - {id: odd, effect: deny, verbs: [write], resourceNames: [odd], when: request.dryRun}
"""


async def test_the_rule_that_asks_lets_its_call_be_tried_out(cluster: Cluster) -> None:
    def change(store: Store) -> None:
        store.remove_policy("granted")
        store.apply_policies([Source(ASKING)])

    await cluster.bench.directory.change(change)
    cluster.answer = scaled
    made = await cluster.made(PATCH, {})
    assert made.view.changes == (Change("spec.replicas", "3", "0"),)
    decisions = [event["decision"] for event in await cluster.trail() if event["req"]["verb"] == "patch"]
    assert {(each["effect"], each["rule"]) for each in decisions} == {("ask", "change")}
    # A deny of the dry run is still one.
    made = await cluster.made(PATCH.replace("/web", "/odd"), {})
    assert made.view.notes == (
        "not tried out: not made, since a policy of the agent does not allow it (on-call/odd)",
    )
    # A call that no rule asks about has no such right.
    refused = await cluster.made(PATCH.replace("/web", "/db"), {})
    assert "does not allow it (on-call/never)" in refused.view.notes[0]


async def unanswered(clock: MockClock, cluster: Cluster, like: str = "") -> Preview | PreviewRefused:
    """Return a preview whose two dry runs get no answer, without the time that it waits for them."""
    found: list[Preview | PreviewRefused] = []

    async def preview() -> None:
        found.append(await cluster.preview(PATCH, {}, like=like))

    async with trio.open_nursery() as nursery:
        cluster.asked.clear()
        nursery.start_soon(preview)
        await cluster.until(lambda: len(cluster.asked) == 3 and len(cluster.open) == 2)
        await wait_all_tasks_blocked()
        clock.jump(ANSWER_S)
    await cluster.until(lambda: not cluster.open)
    return found[0]


async def test_a_silent_api_server_is_said_and_does_not_spoil_a_grant(
    mock_clock: MockClock, cluster: Cluster
) -> None:
    cluster.answer = scaled
    granted = await cluster.made(PATCH, {})
    cluster.answer = lambda asked: None if asked.dry else (200, web())
    made = await unanswered(mock_clock, cluster)
    assert isinstance(made, Preview)
    assert made.view.notes[0].startswith("not tried out: no answer within ")
    refused = await unanswered(mock_clock, cluster, granted.effect)
    assert isinstance(refused, PreviewRefused)
    assert refused.status == 503
    # A grant for a call that could not be tried out serves it while that lasts.
    again = await unanswered(mock_clock, cluster, made.effect)
    assert isinstance(again, Preview)
    assert effect_fits(made.effect, again.effect)
    reasons = [event["resp"].get("reason", "") for event in await cluster.trail() if "resp" in event]
    assert sum(reason.startswith("no answer within") for reason in reasons) == 6


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_an_api_server_in_trouble_is_said(cluster: Cluster, code: int) -> None:
    cluster.answer = lambda asked: status(code, "a secret") if asked.dry else (200, web())
    made = await cluster.made(PATCH, {})
    assert made.view.notes[0] == f"not tried out: the API server answered {code}"
    cluster.answer = scaled
    refused = await cluster.preview(PATCH, {}, like=made.effect)
    assert isinstance(refused, Preview), "it can be tried out now, which is another effect"
    assert not effect_fits(made.effect, refused.effect)


async def test_answers_that_are_too_long_or_no_json_are_not_compared(cluster: Cluster) -> None:
    cluster.answer = lambda asked: (200, b" " * (ANSWER_BYTES_MAX + 1)) if asked.dry else (200, web())
    made = await cluster.made(PATCH, {})
    assert made.view.notes[0] == "not tried out: the answer is too long for a preview"
    for body in (b"", b"[]", b"{" * 10_000, b'{"a":1,"a":2}', b"\x00"):
        cluster.answer = always(200, body)
        assert (await cluster.made(PATCH, {})).view.notes[0].startswith("the API server's answer is no JSON")


async def test_a_large_object_is_compared_whole(cluster: Cluster) -> None:
    large = {f"key-{n}": "x" * 1000 for n in range(900)}

    def answer(asked: Asked) -> tuple[int, object]:
        data = large | {"key-5": "y"} if asked.dry else large
        return 200, {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}

    cluster.answer = answer
    made = await cluster.made("PUT /api/v1/namespaces/shop/configmaps/c", {"data": large})
    assert [change.path for change in made.view.changes] == ["data.key-5"]


async def test_a_cancelled_preview_resets_its_streams_and_says_so(cluster: Cluster) -> None:
    cluster.answer = lambda _: None
    live = cluster.live(PATCH)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.previewer.preview, live, b"{}", ASK)
            await cluster.until(lambda: len(cluster.asked) == 3)
            scope.cancel()
    await cluster.until(lambda: not cluster.open)
    ends = [event["resp"] for event in await cluster.trail() if event["phase"] == "complete"]
    assert [end["processed"] for end in ends] == ["maybe"] * 3
    assert {end["reason"] for end in ends} == {"the preview was cancelled"}


async def test_an_agent_has_four_requests_at_a_time(cluster: Cluster) -> None:
    cluster.answer = lambda _: None
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(cluster.previewer.preview, cluster.live(PATCH), b"{}", ASK)
        await cluster.until(lambda: len(cluster.asked) >= PER_AGENT)
        await wait_all_tasks_blocked()
        assert len(cluster.asked) == PER_AGENT
        nursery.cancel_scope.cancel()
    assert cluster.previewer.asker._agents._agents == cluster.previewer._agents._agents == {}


async def test_an_agent_has_two_previews_at_a_time(cluster: Cluster) -> None:
    cluster.answer = lambda _: None
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            # A deletion begins with one request.
            nursery.start_soon(cluster.previewer.preview, cluster.live(f"DELETE {WEB}"), b"", ASK)
        await cluster.until(lambda: len(cluster.asked) >= previewer.PREVIEWS_PER_AGENT)
        await wait_all_tasks_blocked()
        assert len(cluster.asked) == previewer.PREVIEWS_PER_AGENT
        nursery.cancel_scope.cancel()


async def test_previews_of_a_hub_are_bounded(mock_clock: MockClock, cluster: Cluster) -> None:
    cluster.answer = lambda _: None
    slots = cluster.previewer._slots
    for _ in range(previewer.PREVIEWS_MAX):
        slots.acquire_nowait()

    async def refused() -> None:
        assert (await cluster.refused(PATCH, {})).status == 503

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused)
        await wait_all_tasks_blocked()
        assert slots.statistics().tasks_waiting == 1
        mock_clock.jump(previewer.PREVIEW_S)
    assert cluster.asked == []


async def test_a_preview_counts_in_the_agents_rate(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.answer = scaled
    principal = cluster.live(PATCH).call.claims.principal
    monkeypatch.setattr(cluster.bench.calls.limits, "_clock", lambda: 0.0)
    while cluster.bench.calls.limits.admit(principal) is None:
        pass
    refused = await cluster.refused(PATCH, {})
    assert refused.status == 429
    assert "requests_per_second" in refused.message
    assert cluster.asked == []


async def test_without_a_trail_there_is_no_preview(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(cluster.bench.recorder), "healthy", property(lambda _: False))
    refused = await cluster.refused(f"DELETE {WEB}")
    assert refused.status == 503
    assert "audit trail" in refused.message
    assert cluster.asked == []


async def test_an_offline_cluster_answers_the_agent(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, relays=0) as cluster:
        refused = await cluster.refused(PATCH, {})
        assert refused.status == 503
        assert 'cluster "prod" is offline' in refused.message


async def test_another_relay_takes_what_the_first_one_refuses(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, relays=2) as cluster:
        tries: list[str] = []

        def answer(asked: Asked) -> Any:
            tries.append(asked.target)
            return StreamCode.REFUSED if tries.count(asked.target) == 1 else (200, web())

        cluster.answer = answer
        made = await cluster.made(f"DELETE {WEB}?propagationPolicy=Orphan")
        assert made.view.summary == "deletes Deployment web"
        assert len(tries) == 2
        [event] = await cluster.trail()
        assert event["relay"]["instance"] in {"relay-1", "relay-2"}


async def test_a_connection_that_breaks_is_said(cluster: Cluster) -> None:
    cluster.answer = lambda asked: StreamCode.DIAL_FAILED if asked.dry else (200, web())
    made = await cluster.made(PATCH, {})
    assert "the relay cannot reach its API server: the script says so" in made.view.notes[0]
    granted = made.effect
    cluster.answer = scaled
    now = await cluster.made(PATCH, {}, like=granted)
    assert not effect_fits(granted, now.effect)


async def test_a_deletion_that_cannot_be_looked_at_shows_its_options(cluster: Cluster) -> None:
    for code, said in ((403, "the agent may not read it (403)"), (500, "the API server answered 500")):
        cluster.answer = always(*status(code, "no"))
        made = await cluster.made(f"DELETE {WEB}", {"gracePeriodSeconds": 0})
        assert made.view.summary == "deletes Deployment web"
        assert made.view.notes == (
            f"the object cannot be shown: {said}",
            'options: {"gracePeriodSeconds": 0}',
        )
        made = await cluster.made(f"DELETE {PODS}")
        assert made.view.notes == (f"the objects cannot be listed: {said}",)
    for body in (b"", b"[]"):
        cluster.answer = always(200, body)
        assert "is no JSON object" in (await cluster.made(f"DELETE {WEB}")).view.notes[0]
        assert "is no JSON object" in (await cluster.made(f"DELETE {PODS}")).view.notes[0]
        assert "is no JSON object" in (await cluster.made(f"POST {PODS}/p/exec")).view.notes[0]


async def test_nothing_is_sent_for_a_call_that_has_ended(cluster: Cluster) -> None:
    cluster.answer = scaled
    live = cluster.live(PATCH)
    live.end(Ending(CloseReason.KILLED, "killed"))
    made = await cluster.previewer.preview(live, b"{}", ASK)
    assert isinstance(made, Preview)
    assert made.view.notes[0] == "not tried out: the call has ended"
    await wait_all_tasks_blocked()
    assert cluster.asked == []
    assert cluster.most_open == 0
    ends = [event["resp"] for event in await cluster.trail() if event["phase"] == "complete"]
    assert {end["processed"] for end in ends} == {"no"}
