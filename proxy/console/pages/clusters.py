"""Clusters: the list, one cluster with its relays and who may reach it, and the enrolment of another."""

from __future__ import annotations

from proxy.console.base.api import Answer, ApiError, at
from proxy.console.base.routes import Ask, Page, Route
from proxy.console.views.fleet import (
    Enrolment,
    enrolment_steps,
    rbac_command,
    relay_row,
    state_of_cluster,
)
from proxy.console.views.listing import ROWS, Few, Listing, filters_of, offset_of

TEAMS_IN_A_CELL = 3
AGENTS_BESIDE = 12
_FILTERS = ("q", "team", "agent", "policy")


async def show_all(ask: Ask) -> Page:
    """Show a page of the clusters that match."""
    filters = filters_of(ask.request.query_params, _FILTERS)
    offset = offset_of(ask.query("offset"))
    answer = await ask.api.get("/v1/clusters", **filters, offset=offset, limit=ROWS)
    shown = {
        "listing": Listing("/clusters", filters, offset, len(answer["clusters"]), answer["total"]),
        "rows": [
            {
                **cluster,
                "badge": state_of_cluster(cluster),
                "granted": Few.of(cluster["teams"], TEAMS_IN_A_CELL),
            }
            for cluster in answer["clusters"]
        ],
    }
    return Page("clusters.html", "Clusters", shown)


async def show(ask: Ask) -> Page:
    """Show one cluster."""
    name = ask.path("name")
    cluster = await ask.api.get(at("/v1/clusters/{}", name))
    relays = (await ask.api.get("/v1/relays", cluster=name))["relays"]
    rows = [relay_row(relay, ask.now) for relay in relays]
    seen = max((row.last_seen_at for row in rows if row.last_seen_at), default=None)
    shown = {
        "cluster": cluster,
        "badge": state_of_cluster({**cluster, "last_seen_at": seen}),
        "seen": seen,
        "relays": rows,
        "several_hubs": any(row.hub for row in rows),
        "reach": Few.of(cluster["agents"], AGENTS_BESIDE),
        "rbac": rbac_command(name),
    }
    return Page("cluster.html", name, shown)


async def enrol(ask: Ask) -> Page:
    """Show the command that adds a cluster, and how far it has come."""
    enrolment = Enrolment.of(ask.request.query_params)
    asked = bool(ask.request.query_params)
    faults = enrolment.faults if asked else {}
    steps = None
    if asked and not faults:
        cluster = await _cluster(ask, enrolment.name)
        relays = []
        if cluster is not None:
            relays = (await ask.api.get("/v1/relays", cluster=enrolment.name))["relays"]
        steps = enrolment_steps(cluster, relays)
    teams = (await ask.api.get("/v1/teams", limit=ROWS))["teams"]
    shown = {
        "enrolment": enrolment,
        "faults": faults,
        "steps": steps,
        "done": steps is not None and all(step.state.tone == "ok" for step in steps),
        "teams": Few.of([team["name"] for team in teams], 8),
    }
    return Page("enrol.html", "Add a cluster", shown)


async def _cluster(ask: Ask, name: str) -> Answer | None:
    try:
        return await ask.api.get(at("/v1/clusters/{}", name))
    except ApiError as error:
        if error.status != 404:
            raise
        return None


ROUTES = (
    Route("GET", "/clusters", "viewer", show_all, "clusters"),
    Route("GET", "/add-cluster", "viewer", enrol, "clusters"),
    Route("GET", "/clusters/{name}", "viewer", show, "clusters"),
)
