"""Which admin token may use which endpoint: roles, expiry, and the users of the hub's machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.routing import Route

from audit.bounds import EXCERPT_CHARACTERS_MAX
from audit.mask import Masks
from audit.record import ActorType, Event, Kind, Phase
from auth.apikey import hash as hash_key
from proxy.hub.admin.administration import ACTIONS
from proxy.hub.admin.front import ensure_local_token
from proxy.hub.admin.verbs.verb import METRICS, OPENAPI, Endpoint, verb
from proxy.hub.home.datadir import DataDir
from proxy.hub.store.roles import MEANINGS, Role
from tests.fakes.admin import PEPPER, ROLE_TOKENS, TOKEN, WATCH, Bench, enrol, give_each_role_a_token, path_of
from tests.fakes.asgi import call

ENDPOINTS = (METRICS, OPENAPI, *ACTIONS)
USER = "x-hawse-local-user"


def last(bench: Bench) -> Event:
    return bench.recorder.events[-1]


# -- what each role may do


async def test_every_route_stands_in_the_table(bench: Bench) -> None:
    routes = {
        (route.path, method)
        for route in bench.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        # Starlette answers a HEAD by the endpoint of GET.
        if method != "HEAD"
    }
    assert len(bench.app.routes) == len(ENDPOINTS) + 1
    assert routes == {(each.path, each.method) for each in ENDPOINTS} | {("/healthz", "GET")}


def test_an_action_without_a_role_cannot_be_made() -> None:
    declare: Any = verb
    with pytest.raises(TypeError, match="role"):
        declare("GET", "/v1/secrets", "list", "secrets")


def test_each_role_may_do_exactly_this() -> None:
    def may(role: Role) -> set[tuple[str, str]]:
        return {(each.verb, each.resource) for each in ENDPOINTS if each.admits(role)}

    metrics = {("get", "metrics")}
    viewer = metrics | {
        ("get", "overview"),
        ("get", "openapi"),
        ("follow", "changes"),
        ("get", "hub"),
        ("list", "hubs"),
        ("list", "keys"),
        ("list", "teams"),
        ("get", "teams"),
        ("list", "agents"),
        ("get", "agents"),
        ("list", "clusters"),
        ("get", "clusters"),
        ("get", "clusters/rbac"),
        ("list", "federation"),
        ("list", "relays"),
        ("list", "policies"),
        ("get", "policies"),
        ("list", "policyversions"),
        ("get", "policyversions"),
        ("diff", "policyversions"),
        ("get", "decision"),
        # Sessions of the token that asks.
        ("create", "console codes"),
        ("list", "console sessions"),
        ("delete", "console sessions"),
    }
    assert may(Role.METRICS) == metrics
    assert may(Role.VIEWER) == viewer
    assert may(Role.AUDITOR) == viewer | {
        ("list", "tokens"),
        ("create", "policysimulations"),
        ("list", "policysimulations"),
        ("get", "policysimulations"),
        ("cancel", "policysimulations"),
        ("list", "audit"),
        ("get", "audit"),
        ("watch", "audit"),
        ("export", "audit"),
    }
    assert may(Role.OPERATOR) == viewer | {
        ("list", "sessions"),
        ("kill", "sessions"),
        ("lock", "agents"),
        ("unlock", "agents"),
    }
    decides = {("deny", "requests"), ("revoke", "requests")}
    approver = {("list", "requests"), ("get", "requests"), *decides}
    assert may(Role.APPROVER) == viewer | approver | {("approve", "requests")}
    everything = {(each.verb, each.resource) for each in ENDPOINTS}
    assert may(Role.ADMIN) == everything - {("approve", "requests")}
    assert MEANINGS.keys() == set(Role)
    changing = {each for each in ACTIONS if each.changes and not each.resource.startswith("console ")}
    assert not any(role.may(each.role) for role in (Role.VIEWER, Role.AUDITOR) for each in changing)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: f"{each.verb} {each.resource}")
async def test_every_endpoint_admits_exactly_the_roles_of_the_table(bench: Bench, endpoint: Endpoint) -> None:
    await give_each_role_a_token(bench)
    await enrol(bench)
    for role, token in ROLE_TOKENS.items():
        before = bench.directory.current
        bench.recorder.events.clear()
        reply = await bench.ask(endpoint.method, path_of(endpoint), token=token)
        where = (role, endpoint.verb, endpoint.resource)
        if endpoint.admits(role):
            assert reply.status not in {401, 403}, where
            continue
        assert (reply.status, reply.json["error"]["code"]) == (403, "forbidden"), where
        message = reply.json["error"]["message"]
        holders = [str(each) for each in endpoint.holders]
        assert message.startswith(f"the admin token a-{role} has the role {role}, which may not "), where
        assert f" {endpoint.verb} {endpoint.resource}: that takes the role {holders[0]}" in message, where
        assert all(each in message for each in holders), where
        # No intent: nothing was begun.
        [event] = bench.recorder.events
        assert event.req is not None
        assert event.resp is not None
        assert event.decision is not None
        assert (event.kind, event.phase, event.actor.type) == (
            Kind.ADMIN,
            Phase.COMPLETE,
            ActorType.OPERATOR,
        )
        assert (event.actor.name, event.req.verb, event.req.resource) == (f"a-{role}", *where[1:])
        assert (event.resp.status, event.decision.effect, event.note) == (403, "deny", message), where
        assert bench.directory.current is before, where


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("HEAD", "/v1/tokens", 403),
        ("HEAD", "/v1/sessions", 403),
        ("HEAD", "/v1/teams", 200),
        # Whether there is such an agent is no news to who may not ask.
        ("POST", "/v1/agents/sre-1/lock", 403),
        ("POST", "/v1/agents/none/lock", 403),
        ("DELETE", "/v1/agents/none", 403),
        ("GET", "/v1/sessions?agent=sre-1", 403),
        ("GET", "/v1/sessions?agent=none", 403),
        # No method that the table does not have.
        ("OPTIONS", "/v1/tokens", 405),
        ("TRACE", "/v1/tokens", 405),
        ("PUT", "/v1/tokens", 405),
        ("POST", "/metrics", 405),
        ("get", "/v1/tokens", 405),
    ],
)
async def test_a_viewer_learns_nothing_by_another_method_or_name(
    bench: Bench, method: str, target: str, status: int
) -> None:
    await give_each_role_a_token(bench)
    await enrol(bench)
    reply = await call(
        bench.app, method, target, headers={"authorization": f"Bearer {ROLE_TOKENS[Role.VIEWER]}"}
    )
    assert reply.status == status


async def test_a_role_is_checked_before_the_body_is_read(bench: Bench) -> None:
    await give_each_role_a_token(bench)

    async def never() -> None:
        raise AssertionError("the body was read")

    reply = await call(
        bench.app,
        "POST",
        "/v1/agents",
        headers={"authorization": f"Bearer {ROLE_TOKENS[Role.OPERATOR]}"},
        chunks=[b"{}"],
        before_the_last=never,
    )
    assert reply.status == 403


async def test_an_operator_ends_calls_and_an_auditor_does_not(bench: Bench) -> None:
    await give_each_role_a_token(bench)
    await enrol(bench)
    bench.sessions.live.append(WATCH)
    body = {"agent": "sre-1", "reason": "incident 7"}
    assert (await bench.ask("POST", "/v1/sessions/kill", body, token=ROLE_TOKENS[Role.AUDITOR])).status == 403
    assert bench.sessions.killed == []
    reply = await bench.ask("POST", "/v1/sessions/kill", body, token=ROLE_TOKENS[Role.OPERATOR])
    assert reply.status == 200
    [killed] = bench.sessions.killed
    assert killed["reason"] == "killed by the operator a-operator: incident 7"


@pytest.mark.parametrize("role", [Role.VIEWER, Role.METRICS])
async def test_a_request_adds_no_long_target_to_the_trail(bench: Bench, role: Role) -> None:
    """Whatever a token may do, it must not fill the disk by the queries of its reads."""
    await give_each_role_a_token(bench)
    target = f"/v1/teams?{'x' * 60_000}"
    await bench.ask("GET", target, token=ROLE_TOKENS[role])
    event = Masks().apply(last(bench))
    assert event.req is not None
    assert event.req.raw_target == f"{target[:EXCERPT_CHARACTERS_MAX]}…"
    assert event.req.target_bytes == len(target)


# -- tokens and their roles


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "a token needs a role: choose metrics, viewer, auditor, operator, approver or admin"),
        ({"role": "root"}, "'root' is no role: choose metrics, "),
        ({"role": "Admin"}, "'Admin' is no role"),
        ({"role": "a\nb"}, r"'a\nb' is no role"),
        ({"role": ["admin"]}, "$.role"),
        ({"role": "viewer", "expires_s": 59}, "a token lasts 60 s to 3650 days, not 59 s"),
        ({"role": "viewer", "expires_s": 315_360_001}, "not 315360001 s"),
        ({"role": "viewer", "expires_s": -1}, "not -1 s"),
        ({"role": "viewer", "expires_s": "1d"}, "$.expires_s"),
    ],
)
async def test_a_token_needs_a_role_and_a_time_that_makes_sense(
    bench: Bench, body: dict[str, object], told: str
) -> None:
    reply = await bench.ask("POST", "/v1/tokens", {"name": "ci", **body})
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")
    assert told in reply.json["error"]["message"]
    assert len(bench.directory.current.admin_tokens_by_hash) == 1


@pytest.mark.parametrize("name", ["local:root", "local", "local:", "a:b"])
async def test_no_token_has_a_name_that_the_trail_takes_for_a_local_user(bench: Bench, name: str) -> None:
    await bench.directory.change(lambda store: store.add_admin_token("ci", "h", role=Role.ADMIN))
    await bench.ok("DELETE", "/v1/tokens/ci")
    reply = await bench.ask("POST", "/v1/tokens", {"name": name, "role": "admin"})
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")


async def test_a_token_tells_its_role_and_its_end_and_the_trail_does(bench: Bench) -> None:
    made = await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer", "expires_s": 90 * 86400})
    assert (made["role"], made["expires_at"]) == ("viewer", "2027-04-15T08:00:00Z")
    assert last(bench).note == f"name=ci id={made['id']} role=viewer expires=2027-04-15T08:00:00Z"
    [ci, _] = (await bench.ok("GET", "/v1/tokens"))["tokens"]
    assert ci == {
        "name": "ci",
        "id": made["id"],
        "role": "viewer",
        "role_chosen": True,
        "remote": False,
        "expires_at": "2027-04-15T08:00:00Z",
        "created_at": "2027-01-15T08:00:00Z",
        "last_used_at": None,
        "warnings": [],
        "person": "",
    }
    bench.clock.now += 77 * 86400
    [ci, _] = (await bench.ok("GET", "/v1/tokens"))["tokens"]
    assert ci["warnings"] == [
        "ends at 2027-04-15T08:00:00Z: `hawse admin token add NAME --role ROLE` makes the next one"
    ]
    bench.clock.now += 13 * 86400
    [ci, _] = (await bench.ok("GET", "/v1/tokens"))["tokens"]
    assert ci["warnings"] == ["expired at 2027-04-15T08:00:00Z: `hawse admin token remove ci` removes it"]


async def test_an_expired_token_is_refused_by_the_hubs_clock(bench: Bench) -> None:
    token = (await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer", "expires_s": 60}))["token"]
    bench.clock.now += 59.9
    assert (await bench.ask("GET", "/v1/teams", token=token)).status == 200
    await bench.directory.write_use()
    bench.clock.now += 0.1
    for target in ("/v1/teams", "/metrics"):
        reply = await bench.ask("GET", target, token=token)
        assert (reply.status, reply.json["error"]["code"]) == (401, "expired")
        assert reply.headers["www-authenticate"].startswith("Bearer")
        told = reply.json["error"]["message"]
        assert told.startswith("the admin token ci expired at 2027-01-15T08:01:00Z: hawse admin token add")
        event = last(bench)
        assert event.decision is not None
        assert (event.kind, event.actor.name, event.decision.effect) == (Kind.AUTH_FAILED, "ci", "deny")
        assert event.note == told
    await bench.directory.write_use()
    [ci, _] = (await bench.ok("GET", "/v1/tokens"))["tokens"]
    assert ci["last_used_at"] == "2027-01-15T08:00:59Z"


@pytest.mark.parametrize("slow", ["body", "disk"])
async def test_a_token_that_expires_under_a_request_does_nothing_more(bench: Bench, slow: str) -> None:
    token = (await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "admin", "expires_s": 60}))["token"]

    async def expire() -> None:
        await trio.lowlevel.checkpoint()
        bench.clock.now += 60

    if slow == "disk":
        bench.recorder.meanwhile = expire
    reply = await call(
        bench.app,
        "POST",
        "/v1/teams",
        headers={"authorization": f"Bearer {token}"},
        chunks=[b'{"name":', b'"sre"}'],
        before_the_last=expire if slow == "body" else None,
    )
    assert (reply.status, reply.json["error"]["code"]) == (401, "expired")
    assert bench.directory.current.teams_by_name == {}
    assert last(bench).note.startswith("the admin token ci expired at ")


async def test_an_expired_admin_is_not_the_one_that_is_left(bench: Bench) -> None:
    await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "admin", "expires_s": 60})
    await bench.ok("POST", "/v1/tokens", {"name": "view", "role": "viewer"})
    bench.clock.now += 60
    reply = await bench.ask("DELETE", "/v1/tokens/local")
    assert (reply.status, reply.json["error"]["code"]) == (409, "conflict")
    assert "local is the last one with the role admin" in reply.json["error"]["message"]
    for name in ("ci", "view"):
        await bench.ok("DELETE", f"/v1/tokens/{name}")


# -- users of the hub's machine


@pytest.mark.parametrize(
    "user", ["root", "hawse(sudo:alice)", "uid-1000", r"CORP\alice", "alice@corp.example", "a_b$"]
)
async def test_the_trail_names_the_user_who_shows_the_local_token(bench: Bench, user: str) -> None:
    await enrol(bench)
    bench.recorder.events.clear()
    assert (await bench.ask("POST", "/v1/agents/sre-1/lock", **{USER: user})).status == 200
    assert {(event.actor.type, event.actor.name) for event in bench.recorder.events} == {
        (ActorType.OPERATOR, f"local:{user}")
    }
    bench.sessions.live.append(WATCH)
    body = {"agent": "sre-1", "reason": "x"}
    assert (await bench.ask("POST", "/v1/sessions/kill", body, **{USER: user})).status == 200
    # The agent reads this reason, and learns of no account of the hub's machine.
    assert bench.sessions.killed[0]["reason"] == "killed by the operator local: x"


@pytest.mark.parametrize(
    "user", ["", " ", "a b", "local:root", "a:b", "é", "\x1b[2J", "a" * 65, "a(sudo:b", "a(sudo:b)c", "a()"]
)
async def test_what_is_no_user_is_refused_before_anything_is_done(bench: Bench, user: str) -> None:
    reply = await bench.ask("POST", "/v1/teams", {"name": "sre"}, **{USER: user})
    assert (reply.status, reply.json["error"]["code"]) == (400, "invalid")
    assert bench.directory.current.teams_by_name == {}
    assert (last(bench).actor.name, last(bench).phase) == ("local", Phase.COMPLETE)


async def test_a_token_from_elsewhere_is_never_a_local_user(bench: Bench) -> None:
    await give_each_role_a_token(bench)
    for user in ("root", "local:root", "\x1b"):
        await bench.ask("POST", "/v1/teams", {"name": "sre"}, token=ROLE_TOKENS[Role.ADMIN], **{USER: user})
        await bench.ask("POST", "/v1/teams", {"name": "sre"}, token=ROLE_TOKENS[Role.VIEWER], **{USER: user})
        await bench.ask("GET", "/v1/teams", token=None, **{USER: user})
    assert {event.actor.name for event in bench.recorder.events} == {"a-admin", "a-viewer", ""}


async def test_the_token_of_another_machine_is_never_a_local_user(bench: Bench) -> None:
    digest = hash_key(ROLE_TOKENS[Role.ADMIN], PEPPER)
    await bench.directory.change(lambda store: store.put_local_token(digest, "local-0a1b2c3d"))
    await bench.ask("POST", "/v1/teams", {"name": "sre"}, token=ROLE_TOKENS[Role.ADMIN], **{USER: "root"})
    assert last(bench).actor.name == "local-0a1b2c3d"


async def in_folder(bench: Bench, folder: Path, before: Callable[[DataDir], Awaitable[object]]) -> str:
    data = DataDir.open(folder / "local")
    await before(data)
    await ensure_local_token(data, bench.directory, PEPPER)
    return data.admin.token() or ""


def of(bench: Bench, token: str) -> tuple[str, Role]:
    found = bench.directory.current.admin_tokens_by_hash[hash_key(token, PEPPER)]
    return found.name, found.role


async def test_the_file_of_the_local_token_holds_the_one_called_local(bench: Bench, tmp_path: Path) -> None:
    async def nothing(data: DataDir) -> None:
        await trio.lowlevel.checkpoint()

    made = await in_folder(bench, tmp_path, nothing)
    assert of(bench, made) == ("local", Role.ADMIN)
    # The one before is good no more.
    assert hash_key(TOKEN, PEPPER) not in bench.directory.current.admin_tokens_by_hash
    assert await in_folder(bench, tmp_path, nothing) == made


@pytest.mark.parametrize("role", [Role.ADMIN, Role.VIEWER])
async def test_another_token_in_that_file_is_replaced(bench: Bench, tmp_path: Path, role: Role) -> None:
    await give_each_role_a_token(bench)

    async def put(data: DataDir) -> None:
        await trio.lowlevel.checkpoint()
        data.admin.token_file.write_text(ROLE_TOKENS[role])
        data.admin.token_file.chmod(0o600)

    made = await in_folder(bench, tmp_path, put)
    assert made != ROLE_TOKENS[role]
    assert of(bench, made) == ("local", Role.ADMIN)
    assert of(bench, ROLE_TOKENS[role]) == (f"a-{role}", role)
