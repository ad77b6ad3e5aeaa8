from __future__ import annotations

import json
from contextlib import closing

import pytest
from msgspec.structs import replace

from audit.members import Members
from audit.query import Query
from audit.record import Actor, ActorType, Event, Request, Response, Stream
from tests.audit.events import call
from tests.audit.trails import FileTrail, Trail, append_whole

# A client's text that looks like the searched members.
FORGED = '"verb":"get","status":403,"teams":["ops"],"namespace":"kube-system"'


def event(
    verb: str,
    resource: str,
    namespace: str = "",
    status: int | None = None,
    *,
    teams: tuple[str, ...] = ("sre",),
    subresource: str = "",
) -> Event:
    req = Request("X", f"/{FORGED}", verb, "", "v1", resource, subresource, namespace, FORGED)
    actor = Actor(ActorType.AGENT, "robot", owner="ops", teams=teams)
    resp = None if status is None else Response(status, FORGED)
    return replace(call(), actor=actor, req=req, resp=resp, stream=Stream(command=(FORGED,)), note=FORGED)


EVENTS = (
    event("get", "pods", "app", 200),
    event("list", "pods", "app", 403, teams=("sre", "ops")),
    event("create", "pods", "kube-system", 101, subresource="exec"),
    event("update", "agents/keys", status=0, teams=()),
    event("get", "nodes", status=503, teams=("ops-eu",)),
    event("delete", "pods", "app"),
)

CASES = [
    (Members(verbs=["get"]), [1, 5]),
    (Members(verbs=["list", "delete"]), [2, 6]),
    (Members(namespaces=["app"]), [1, 2, 6]),
    (Members(namespaces=["app", "kube-system"], verbs=["create", "get"]), [1, 3]),
    (Members(resources=["pods"]), [1, 2, 6]),
    (Members(resources=["pods/exec"]), [3]),
    (Members(resources=["agents/keys", "nodes"]), [4, 5]),
    (Members(resources=["pod"]), []),
    (Members(teams=["ops"]), [2]),
    (Members(teams=["sre", "ops-eu"]), [1, 2, 3, 5, 6]),
    (Members(statuses=["403"]), [2]),
    (Members(statuses=["4xx", "5xx"]), [2, 5]),
    (Members(statuses=["none"]), [4]),
    (Members(statuses=["1xx", "200"], teams=["sre"]), [1, 3]),
]


@pytest.mark.parametrize(("members", "found"), CASES, ids=str)
@pytest.mark.parametrize("whole", [False, True], ids=["in parts", "whole"])
def test_events_are_found_by_what_they_say_and_not_by_texts_in_them(
    trail: Trail, members: Members, found: list[int], whole: bool
) -> None:
    with closing(trail.open()) as store:
        if not whole:
            # In PostgreSQL, the events of an epoch of its own are in parts.
            store.append(EVENTS, boot="first")
        elif isinstance(trail, FileTrail):
            # An earlier version wrote them whole.
            for one in EVENTS:
                append_whole(trail.path, one)
        else:
            store.append(EVENTS)
    with closing(trail.reader()) as reader:
        eids = [json.loads(row.line)["eid"] for row in reader.query(Query(members=members))]
    assert [[event.eid for event in EVENTS].index(eid) + 1 for eid in eids] == found
