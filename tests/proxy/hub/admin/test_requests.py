"""The admin API's verbs of requests for approval."""

from __future__ import annotations

from typing import Any

import pytest

from audit.record import Phase
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.hub.approvals.request import State
from proxy.hub.approvals.view import View
from proxy.hub.store.roles import Role
from tests.fakes.admin import (
    PEPPER,
    PERSON,
    ROLE_TOKENS,
    Bench,
    enrol,
    give_each_role_a_token,
    opened,
)
from tests.fakes.asgi import Reply

APPROVER = ROLE_TOKENS[Role.APPROVER]


@pytest.fixture
async def bench(bench: Bench) -> Bench:
    await enrol(bench)
    await give_each_role_a_token(bench)
    return bench


async def token_of(bench: Bench, person: str) -> str:
    """Return a new approver's token of this person."""
    token = new_api_key(person.encode().ljust(32, b".")[:32])
    digest, name = hash_key(token, PEPPER), person.lower().partition("@")[0]
    await bench.directory.change(
        lambda store: store.add_admin_token(name, digest, role=Role.APPROVER, person=person)
    )
    return token


async def decide(
    bench: Bench, what: str, request_id: str, body: object = None, token: str = APPROVER
) -> Reply:
    return await bench.ask("POST", f"/v1/requests/{request_id}/{what}", body, token=token)


@pytest.mark.parametrize(
    ("approvers", "person", "may"),
    [
        (("any",), PERSON, True),
        ((PERSON,), PERSON, True),
        (("owner",), "ada", True),
        (("owner",), PERSON, False),
        (("owner",), "Ada", False),
        (("!owner",), "ada", False),
        (("!owner",), PERSON, True),
        (("any", "!owner"), "ada", False),
        (("ops@example.com", "owner"), "ops@example.com", True),
        (("ops@example.com", "owner"), "ops@example.org", False),
    ],
)
async def test_exactly_the_approvers_of_the_rule_approve(
    bench: Bench, approvers: tuple[str, ...], person: str, may: bool
) -> None:
    request = opened(bench, approvers=approvers)
    token = APPROVER if person == PERSON else await token_of(bench, person)
    shown = (await bench.ask("GET", f"/v1/requests/{request.id}", token=token)).json
    assert (shown["may_approve"], shown["may_not"] == "") == (may, may)
    reply = await decide(bench, "approve", request.id, {"shown": shown["shown"]}, token)
    now = bench.requests.found[0]
    if may:
        assert (reply.status, reply.json["state"]) == (200, "approved")
        assert (now.state, now.decided_by) == (State.APPROVED, person)
        assert (reply.json["may_approve"], reply.json["may_not"]) == (False, "the request is approved")
        return
    assert (reply.status, reply.json["error"]["code"]) == (403, "forbidden")
    assert f"{person} is not among the approvers" in reply.json["error"]["message"]
    assert now == request


async def test_an_approval_is_recorded_before_it_is_made(bench: Bench) -> None:
    request = opened(bench)
    bench.recorder.events.clear()
    seen: list[State] = []

    async def look() -> None:
        seen.append(bench.requests.found[0].state)

    bench.recorder.meanwhile = look
    assert (await decide(bench, "approve", request.id, {"shown": request.new.shown})).status == 200
    assert seen == [State.PENDING]
    intent, end = bench.recorder.events
    assert (intent.phase, end.phase) == (Phase.INTENT, Phase.COMPLETE)
    assert intent.req is not None
    assert (intent.req.verb, intent.req.resource, intent.req.name) == ("approve", "requests", request.id)
    assert end.note == f"request={request.id} agent=sre-1 state=approved person={PERSON}"


async def test_without_the_trail_requests_are_denied_and_revoked_and_not_approved(bench: Bench) -> None:
    first, second, third = (opened(bench) for _ in range(3))
    assert (await decide(bench, "approve", third.id, {"shown": third.new.shown})).status == 200
    bench.recorder.down = True
    reply = await decide(bench, "approve", first.id, {"shown": first.new.shown})
    assert (reply.status, reply.json["error"]["code"]) == (503, "audit_unavailable")
    assert (await decide(bench, "deny", second.id, {"because": "no"})).status == 200
    assert (await decide(bench, "revoke", third.id)).status == 200
    assert [each.state for each in bench.requests.found] == [State.PENDING, State.DENIED, State.REVOKED]


async def test_without_the_store_a_revocation_is_in_force_in_memory(bench: Bench) -> None:
    request = opened(bench)
    bench.requests.away = True
    assert (await decide(bench, "approve", request.id, {"shown": request.new.shown})).status == 503
    for what, body in (("deny", {"because": "no"}), ("revoke", None)):
        reply = await decide(bench, what, request.id, body)
        assert reply.status == 200
        assert "kept in the hub's reserve until the store can take it" in reply.json["notice"]
    for revoked, by, settled in bench.requests.in_memory:
        assert (revoked, by) == (request.id, PERSON)
        settled()
    assert len(bench.requests.in_memory) == 2


async def test_what_differs_from_what_was_shown_is_not_approved(bench: Bench) -> None:
    request = opened(bench)
    reply = await decide(bench, "approve", request.id, {"shown": "0" * 64})
    assert (reply.status, reply.json["error"]["code"]) == (409, "shown_differs")
    for body in ({}, {"shown": None}, {"shown": request.new.shown, "by": "ada"}):
        assert (await decide(bench, "approve", request.id, body)).status == 422
    assert bench.requests.found == [request]


async def test_a_request_is_decided_once(bench: Bench) -> None:
    request = opened(bench)
    assert (await decide(bench, "deny", request.id, {"because": "no"})).status == 200
    for what, body in (("approve", {"shown": request.new.shown}), ("deny", {"because": "no"})):
        reply = await decide(bench, what, request.id, body)
        assert (reply.status, reply.json["error"]["code"]) == (409, "not_open")
    assert (await decide(bench, "deny", "none", {"because": "no"})).status == 404


@pytest.mark.parametrize("because", ["", "  ", "x" * 201, "two\nlines", "\x1b[2J"])
async def test_a_denial_has_a_reason_that_an_agent_can_read(bench: Bench, because: str) -> None:
    request = opened(bench)
    assert (await decide(bench, "deny", request.id, {"because": because})).status == 422
    assert bench.requests.found == [request]


async def test_an_admin_denies_and_revokes_by_the_name_of_its_token(bench: Bench) -> None:
    request, admin = opened(bench), ROLE_TOKENS[Role.ADMIN]
    shown = (await bench.ask("GET", f"/v1/requests/{request.id}", token=admin)).json
    assert not shown["may_approve"]
    assert "--role approver --person" in shown["may_not"]
    assert (await decide(bench, "revoke", request.id, token=admin)).json["decided_by"] == (
        "the admin token a-admin"
    )


async def test_a_difference_that_cannot_be_shown_cannot_be_approved(bench: Bench) -> None:
    request = opened(bench, view=View(summary="much", too_large=True))
    reply = await decide(bench, "approve", request.id, {"shown": request.new.shown})
    assert reply.status == 409
    assert "too large" in reply.json["error"]["message"]


async def test_requests_are_listed_in_pages_the_newest_first(bench: Bench) -> None:
    ids = [opened(bench, state=state).id for state in (State.PENDING, State.USED, State.APPROVED)]

    async def listed(query: str) -> Any:
        reply = await bench.ask("GET", f"/v1/requests?{query}", token=APPROVER)
        return reply.json if reply.status == 200 else reply.json["error"]["message"]

    found = await listed("")
    assert [row["id"] for row in found["requests"]] == ids[::-1]
    assert (found["more"], found["open"]) == (False, {"pending": 1, "approved": 1, "using": 0})
    page = await listed("limit=2&offset=0")
    assert ([row["id"] for row in page["requests"]], page["more"]) == ([ids[2], ids[1]], True)
    page = await listed("limit=2&offset=2")
    assert ([row["id"] for row in page["requests"]], page["more"]) == ([ids[0]], False)
    chosen = await listed("state=used,approved&agent=sre-1&cluster=prod")
    assert [row["state"] for row in chosen["requests"]] == ["approved", "used"]
    assert "choose pending, approved" in await listed("state=open")
    assert "there is no agent" in await listed("agent=none")
    for query in ("limit=0", "limit=501", "offset=-1", "offset=999999999", "q=x"):
        assert "query" in await listed(query)


async def test_the_overview_says_to_whom_it_matters_that_requests_wait(bench: Bench) -> None:
    async def overview(role: Role) -> tuple[int | None, list[str]]:
        reply = await bench.ask("GET", "/v1/overview", token=ROLE_TOKENS[role])
        found = [each for each in reply.json["attention"] if each["kind"] == "requests-wait"]
        return reply.json["requests"], [each["message"] for each in found]

    assert await overview(Role.APPROVER) == (0, [])
    opened(bench)
    assert await overview(Role.APPROVER) == (1, ["1 request waits for approval: hawse admin request list"])
    opened(bench)
    assert await overview(Role.ADMIN) == (2, ["2 requests wait for approval: hawse admin request list"])
    for role in (Role.VIEWER, Role.OPERATOR, Role.AUDITOR):
        assert await overview(role) == (None, [])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"role": "approver"}, "needs a person: --person"),
        ({"role": "approver", "person": ""}, "needs a person: --person"),
        ({"role": "admin", "person": PERSON}, "belongs to a token of the role approver alone"),
        ({"role": "approver", "person": "owner"}, "word of"),
        ({"role": "approver", "person": "any"}, "word of"),
        ({"role": "approver", "person": "!owner"}, "word of"),
        ({"role": "approver", "person": "group:ops"}, ""),
        ({"role": "approver", "person": " ada"}, "printable"),
        ({"role": "approver", "person": "a\tb"}, "printable"),
        ({"role": "approver", "person": "x" * 255}, "254"),
    ],
)
async def test_a_token_of_an_approver_belongs_to_a_person(
    bench: Bench, body: dict[str, str], told: str
) -> None:
    before = bench.directory.current
    reply = await bench.ask("POST", "/v1/tokens", {"name": "ada", **body})
    assert reply.status == 422
    assert told in reply.json["error"]["message"]
    assert bench.directory.current is before


async def test_the_person_of_a_token_is_listed_and_recorded(bench: Bench) -> None:
    bench.recorder.events.clear()
    body = {"name": "ada", "role": "approver", "person": "ada@example.com"}
    made = await bench.ok("POST", "/v1/tokens", body)
    assert made["person"] == "ada@example.com"
    assert bench.recorder.events[-1].note.endswith(" role=approver expires=never person=ada@example.com")
    persons = {row["name"]: row["person"] for row in (await bench.ok("GET", "/v1/tokens"))["tokens"]}
    assert (persons["ada"], persons["local"]) == ("ada@example.com", "")
