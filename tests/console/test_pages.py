"""Every page: its HTML, with hostile texts, for every role, and on an empty hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.console.app import ROUTES, console_app
from proxy.console.views.filters import NAMES
from proxy.hub.store.roles import Role
from tests.console.fakes import FakePerson, FakeSignIn
from tests.console.markup import faults_of, text_of
from tests.console.world import open_world
from tests.fakes.asgi import call

PLAIN = [route for route in ROUTES if route.method == "GET" and "{" not in route.path and not route.stream]


# Of agents, clusters, teams and policies; some of them name what an empty hub does not have.
FLEET = [
    "/agents/{agent}", "/agents?team={team}&policy=guard&q=bot", "/agents?offset=900&state=locked",
    "/agents/{agent}/code", "/agents/{agent}/keys/x/revoke", "/clusters/{cluster}", "/clusters?team={team}",
    "/teams/{team}", "/policies/guard", "/policies/payments-readers", "/policies/payments-readers?version=2",
    "/policy-diff?before=1&after=4", "/policy-check?policy=guard",
    "/add-cluster?name=prod-eu-1&teams={team}&labels=env%3Dprod",
    "/add-cluster?name=%3Cscript%3E%1b&teams=%22&labels='&mode=direct&relay_url=x&image=%22%3E%3Cimg",
    "/policies/odd", "/policy-diff?before=5&after=6", "/agents?q=%3Cscript%3E%1b%22'",
    "/clusters?q=%22%3E%3Cimg", "/teams?q=%7B%7B7*7%7D%7D", "/agents?team=%3Cb%3E", "/policies/%3Cscript%3E",
    "/policy-diff?before=%3Cb%3E&after=-1", "/policies/guard?version=%22",
    "/policy-simulations/%3Cscript%3E", "/agents?state=odd", "/agents?offset=x",
]  # fmt: skip


@pytest.mark.parametrize(
    "size",
    [
        {"events": 60},
        {"hostile": True, "calls": 16, "events": 60},
        {"clusters": 0, "agents": 0, "calls": 0, "events": 0},
    ],
    ids=["some", "hostile", "empty"],
)
async def test_pages_are_sound(tmp_path: Path, size: dict[str, Any]) -> None:
    async with open_world(tmp_path, **size) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        agent = next(iter(bench.directory.current.agents_by_name), "none")
        calls = [f"/calls/end?id={one.id}" for one in bench.sessions.live]
        pages = [route.path for route in PLAIN] + [
            *calls, f"/calls?agent={agent}", f"/agents/{agent}/lock", f"/calls/end?agent={agent}",
            *(f"/audit/{event['eid']}" for event in (await bench.ok("GET", "/v1/audit/events"))["events"]),
            *(f"/audit?{name}=%3Cscript%3E%1b\"'" for name in NAMES), "/audit?status=9", "/audit/x",
            "/audit?before=x", "/audit?follow=1", f"/audit?agent={agent}&verb=get&team=sre",
            f"/decision?agent={agent}&cluster=prod-eu-1&verb=get&resource=pods&name=w&namespace=n",
            f"/decision?agent={agent}&cluster=prod-eu-1&verb=delete&resource=secrets&name=w&namespace=n",
            f"/decision?agent={agent}&cluster=x&verb=%3Cb%3E&resource=%3Cscript%3E&name=\"'%1b",
            "/decision?agent=%3Cscript%3E&cluster=%1b&resource=/%22&verb=get", "/decision?agent=x",
            *(page.format(agent=agent, cluster="prod-eu-1", team="platform") for page in FLEET),
            "/nothing", "/calls?agent=%3Cscript%3E", "/agents/%1b%2e/lock",
        ]  # fmt: skip
        for page in pages:
            reply = await call(app, "GET", page)
            assert reply.status in {200, 400, 404, 422}, (page, reply.status)
            assert faults_of(reply.body) == [], page


async def test_each_role_sees_what_its_route_declares(tmp_path: Path) -> None:
    async with open_world(tmp_path, events=5) as bench:
        for role in Role:
            app = console_app(bench.app, FakeSignIn(FakePerson(role)), "hub.example", bench.clock)
            for route in PLAIN:
                reply = await call(app, "GET", route.path)
                may = role.may(Role(route.role))
                assert (reply.status != 403) == may, (role, route.path)
                assert faults_of(reply.body) == []
                if not may:
                    holders = Role(route.role).holders
                    assert all(str(holder) in text_of(reply.body) for holder in holders)
