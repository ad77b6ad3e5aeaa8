"""What holds of each verb of the admin API: its token, its events, the bound of its body and its refusals."""

from __future__ import annotations

from typing import Any

import pytest

from audit.record import ActorType, Event, Kind, Phase, encode
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.hub.admin.administration import ACTIONS, Action
from proxy.hub.admin.perform import BODY_BYTES_MAX
from proxy.hub.admin.verbs.verb import METRICS, Endpoint
from tests.fakes.admin import (
    PEPPER,
    ROLE_TOKENS,
    TOKEN,
    WATCH,
    Bench,
    enrol,
    give_each_role_a_token,
    opened,
    path_of,
)
from tests.fakes.asgi import call
from tests.fakes.jwks import jwk, jwks

ISSUER = {
    "issuer": "https://issuer.example",
    "agent": "sre-1",
    "claims": {"sub": "build"},
    "jwks": jwks(jwk()),
    "mutable_claims": True,
}
POLICY = """\
kind: Policy
metadata: {name: readers}
spec:
  bind: {teams: ["*"]}
  rules:
    - id: read
      enabled: true
      effect: allow
      verbs: [read]
      resources: [pods]
"""
# For each verb that changes something, a request that does so on the bench that `populate` makes.
CHANGES: dict[tuple[str, str], tuple[str, object]] = {
    ("rotate", "keys"): ("/v1/keys", None),
    ("backup", "hub"): ("/v1/backup", None),
    ("create", "teams"): ("/v1/teams", {"name": "web"}),
    ("delete", "teams"): ("/v1/teams/empty", None),
    ("create", "agents"): ("/v1/agents", {"name": "sre-2", "owner": "ada", "teams": ["sre"]}),
    ("update", "agents/teams"): ("/v1/agents/sre-1/teams", {"add": ["empty"]}),
    ("lock", "agents"): ("/v1/agents/sre-1/lock", None),
    ("unlock", "agents"): ("/v1/agents/locked/unlock", None),
    ("delete", "agents"): ("/v1/agents/sre-1", None),
    ("create", "agents/keys"): ("/v1/agents/sre-1/keys", None),
    ("delete", "agents/keys"): ("/v1/agents/sre-1/keys/{api_key_id}", None),
    ("create", "agents/codes"): ("/v1/agents/sre-1/codes", None),
    ("delete", "agents/codes"): ("/v1/agents/sre-1/codes", None),
    ("create", "federation"): ("/v1/federation", {**ISSUER, "claims": {"sub": "deploy"}}),
    ("delete", "federation"): ("/v1/federation/{rule_id}", None),
    ("create", "clusters"): ("/v1/clusters", {"name": "dev"}),
    ("delete", "clusters"): ("/v1/clusters/prod", None),
    ("grant", "clusters/teams"): ("/v1/clusters/prod/teams/empty", None),
    ("revoke", "clusters/teams"): ("/v1/clusters/prod/teams/sre", None),
    ("create", "clusters/keys"): ("/v1/clusters/prod/keys", {"keep_old": True}),
    ("delete", "clusters/keys"): ("/v1/clusters/prod/keys", None),
    ("repin", "clusters"): ("/v1/clusters/prod/repin", None),
    ("kill", "sessions"): ("/v1/sessions/kill", {"agent": "sre-1", "reason": "incident 7"}),
    ("apply", "policies"): (
        "/v1/policies",
        {"files": [{"text": POLICY.replace("readers", "others").replace("id: read", "id: other")}]},
    ),
    ("delete", "policies"): ("/v1/policies/readers", None),
    ("switch", "policies/rules"): ("/v1/policies/readers/rules", {"rules": ["read"], "enabled": False}),
    ("approve", "requests"): ("/v1/requests/{request_id}/approve", {"shown": "{shown}"}),
    ("deny", "requests"): ("/v1/requests/{request_id}/deny", {"because": "not now"}),
    ("revoke", "requests"): ("/v1/requests/{request_id}/revoke", None),
    ("create", "tokens"): ("/v1/tokens", {"name": "cd", "role": "viewer"}),
    ("delete", "tokens"): ("/v1/tokens/ci", None),
    ("create", "console codes"): ("/v1/console/codes", None),
    ("delete", "console sessions"): ("/v1/console/sessions/{session_id}", None),
}
CHANGING = [action for action in ACTIONS if action.changes]
NO_ADMIN_TOKEN = [
    None,
    "",
    TOKEN,
    f"Basic {TOKEN}",
    "Bearer ",
    "Bearer x",
    f"Bearer {new_api_key(b'x' * 32)}",
    f"Bearer {TOKEN}\u00e9",
]


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.verb} {endpoint.resource}"


def each_of(*endpoints: Endpoint) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verb", endpoints, ids=name_of)


async def populate(bench: Bench) -> dict[str, Any]:
    """Make one of each thing that a verb is about; returns the ids that a request needs."""
    made = await enrol(bench)
    await bench.directory.change(
        lambda store: store.pin_cluster(made["cluster"]["relay"]["cluster_id"], "1a2b")
    )
    await bench.ok("POST", "/v1/teams", {"name": "empty"})
    await bench.ok("POST", "/v1/agents", {"name": "locked", "owner": "ada", "teams": ["sre"]})
    await bench.ok("POST", "/v1/agents/locked/lock")
    await bench.ok("POST", "/v1/agents/sre-1/codes")
    await bench.ok("POST", "/v1/clusters/prod/keys", {"keep_old": True})
    await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer"})
    await bench.ok("POST", "/v1/policies", {"files": [{"text": POLICY}]})
    rule = await bench.ok("POST", "/v1/federation", ISSUER)
    code = (await bench.ok("POST", "/v1/console/codes"))["code"]
    await bench.directory.change(
        lambda store: store.redeem_console_code(
            hash_key(code, PEPPER), "cookie", session_id="session-1", ip="::1", user_agent="curl"
        )
    )
    bench.sessions.live.append(WATCH)
    request = opened(bench)
    bench.recorder.events.clear()
    return {
        "api_key_id": made["agent"]["api_key_id"],
        "rule_id": rule["id"],
        "session_id": "session-1",
        "request_id": request.id,
        "shown": request.new.shown,
    }


def change_of(verb: Endpoint, ids: dict[str, Any]) -> tuple[str, object]:
    target, body = CHANGES[(verb.verb, verb.resource)]
    if body == {"shown": "{shown}"}:
        body = {"shown": ids["shown"]}
    return target.format(**ids), body


async def token_for(bench: Bench, verb: Endpoint) -> str:
    """Return this machine's token, or one of the role that may do what an admin may not."""
    if not verb.by_person:
        return TOKEN
    await give_each_role_a_token(bench)
    return ROLE_TOKENS[verb.role]


def check_event(event: Event, verb: Endpoint, target: str, status: int) -> None:
    assert (event.kind, event.phase, event.actor.type, event.actor.name) == (
        Kind.ADMIN,
        Phase.COMPLETE,
        ActorType.OPERATOR,
        f"a-{verb.role}" if verb.by_person else "local",
    )
    assert event.req is not None
    assert event.resp is not None
    assert (event.req.verb, event.req.resource, event.req.raw_target) == (verb.verb, verb.resource, target)
    assert event.resp.status == status


def test_each_verb_that_changes_something_has_a_request_here() -> None:
    assert CHANGES.keys() == {(each.verb, each.resource) for each in CHANGING}


@each_of(METRICS, *ACTIONS)
async def test_a_verb_answers_nothing_without_an_admin_token(bench: Bench, verb: Endpoint) -> None:
    for authorization in NO_ADMIN_TOKEN:
        headers = {} if authorization is None else {"authorization": authorization}
        reply = await bench.ask(verb.method, path_of(verb), token=None, **headers)
        assert reply.status == 401
        assert reply.headers["www-authenticate"].startswith("Bearer")
    assert [event.kind for event in bench.recorder.events] == [Kind.AUTH_FAILED] * len(NO_ADMIN_TOKEN)


@each_of(*CHANGING)
async def test_a_change_is_an_intent_and_an_end_by_its_operator(bench: Bench, verb: Action) -> None:
    target, body = change_of(verb, await populate(bench))
    reply = await bench.ask(verb.method, target, body, token=await token_for(bench, verb))
    assert reply.status in {200, 201}, reply.body
    intent, end = bench.recorder.events
    assert (intent.phase, intent.eid, intent.actor, intent.req) == (
        Phase.INTENT,
        end.eid,
        end.actor,
        end.req,
    )
    check_event(end, verb, target, reply.status)


@each_of(*(action for action in ACTIONS if not action.changes))
async def test_a_read_is_one_event_by_its_operator(bench: Bench, verb: Action) -> None:
    await populate(bench)
    reply = await bench.ask(verb.method, path_of(verb))
    [event] = bench.recorder.events
    check_event(event, verb, path_of(verb), reply.status)
    bench.recorder.down = True
    assert (await bench.ask(verb.method, path_of(verb))).status == reply.status


@each_of(*CHANGING)
async def test_without_the_trail_a_verb_changes_nothing_unless_it_revokes(bench: Bench, verb: Action) -> None:
    target, body = change_of(verb, await populate(bench))
    token = await token_for(bench, verb)
    before, keys = bench.directory.current, bench.ring.current
    bench.recorder.down = True
    reply = await bench.ask(verb.method, target, body, token=token)
    if verb.revokes is True:
        assert "kept in the hub's reserve" in reply.json["notice"]
        return
    assert (reply.status, reply.json["error"]["code"]) == (503, "audit_unavailable")
    assert bench.directory.current is before
    assert bench.ring.current is keys
    assert bench.recorder.events == []


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "Expected `object`"),
        (b'{"secret": "hws_SECRET"}', "unknown field `secret`"),
    ],
)
@each_of(*(action for action in ACTIONS if action.body is not None))
async def test_a_verb_refuses_a_body_of_another_shape(
    bench: Bench, verb: Action, body: bytes, what: str
) -> None:
    headers = {"authorization": f"Bearer {await token_for(bench, verb)}"}
    before = bench.directory.current
    reply = await call(bench.app, verb.method, path_of(verb), headers=headers, chunks=[body])
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")
    assert what in reply.json["error"]["message"]
    assert bench.directory.current is before
    written = b"\n".join(encode(event) for event in bench.recorder.events)
    assert b"SECRET" not in reply.body + written
    *intents, end = bench.recorder.events
    assert [event.phase for event in intents] == [Phase.INTENT] * verb.changes
    check_event(end, verb, path_of(verb), 422)


@each_of(*ACTIONS)
async def test_a_verb_refuses_a_long_body_before_it_is_whole(bench: Bench, verb: Action) -> None:
    chunks = [b" " * 65536] * (BODY_BYTES_MAX // 65536 + 1)

    async def never() -> None:
        raise AssertionError("more was read than the bound")

    reply = await call(
        bench.app,
        verb.method,
        path_of(verb),
        headers={"authorization": f"Bearer {await token_for(bench, verb)}"},
        chunks=[*chunks, b" "],
        before_the_last=never,
    )
    assert (reply.status, reply.json["error"]["code"]) == (413, "too_large")
    assert reply.json["error"]["message"].endswith("exceeds 262144 bytes: send less at once")
    [event] = bench.recorder.events
    check_event(event, verb, path_of(verb), 413)
