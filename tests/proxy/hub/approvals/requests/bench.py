"""Requests in a store of one agent and one cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from typing import Any

import attrs

from auth.keys import SigningKey
from proxy.hub.approvals.request import NewRequest
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.approvals.view import Change, View
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.entities import Snapshot
from proxy.hub.store.store import Store
from tests.fakes.databases import run

VIEW = View(
    "deletes Deployment web, at least 6 pods",
    ("scales to 0",),
    (Change("spec.replicas", "3", "0"),),
    ("metadata.name",),
    ("not tried out",),
    "body",
)
NEW_REQUEST = NewRequest(
    agent_id="",
    cluster_id="",
    plan="0" * 64,
    effect="salt:0a1b",
    what="delete deployments.apps shop/web",
    reason="look at deletions",
    policy="shop",
    rule="risky",
    bundle="3-0144c5c9",
    approvers=("ann@example.com", "owner"),
    valid_for_s=900,
    interactive=False,
    view=VIEW,
    method="DELETE",
    target="/apis/apps/v1/namespaces/shop/deployments/web",
)
TIMES = ("created_at", "changed_at", "expires_at", "decided_at", "valid_until", "ended_at")


def populate(location: Location, agents: int = 1) -> Snapshot:
    """Add agents `robot0` … and the cluster `prod`, and return the snapshot."""
    with closing(Store(location, org="acme", clock=lambda: 1000.0)) as store:
        store.add_team("sre")
        for number in range(agents):
            store.add_agent(f"robot{number}", owner="ann@example.com", teams=["sre"])
        store.add_cluster("prod", relay_key=SigningKey.generate().public, teams=["sre"])
        return store.snapshot()


def plan(number: int) -> str:
    return sha256(b"%d" % number).hexdigest()


def new_request(snapshot: Snapshot, number: int = 0, agent: str = "robot0", **changes: Any) -> NewRequest:
    agent_id = snapshot.agents_by_name[agent].id
    cluster_id = snapshot.clusters_by_name["prod"].id
    new = attrs.evolve(NEW_REQUEST, agent_id=agent_id, cluster_id=cluster_id, plan=plan(number))
    return attrs.evolve(new, **changes)


@contextmanager
def opened(
    location: Location, boot: str = "boot-a", webhooks: tuple[str, ...] = ()
) -> Iterator[RequestsTable]:
    with closing(RequestsTable(location, org="acme", boot=boot, clock=float, webhooks=webhooks)) as table:
        yield table


def grant(location: Location, snapshot: Snapshot, agent: str = "robot0") -> str:
    """Open a request and approve it; returns its id."""
    with opened(location) as table:
        request = table.open(new_request(snapshot, agent=agent), serves="")
        table.decide(request.id, approve=True, by="ann@example.com", answer="", shown=request.new.shown)
        return request.id


def wait(location: Location, seconds: float) -> None:
    """Let time pass for all requests."""
    run(location, "update requests set " + ", ".join(f"{name} = {name} - {seconds}" for name in TIMES))
