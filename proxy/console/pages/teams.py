"""Teams: the list, and one team with its agents and clusters."""

from __future__ import annotations

from proxy.console.base.api import at
from proxy.console.base.routes import Ask, Page, Route
from proxy.console.views.fleet import state_of_agent, state_of_cluster
from proxy.console.views.listing import ROWS, Few, Listing, filters_of, offset_of

CLUSTERS_IN_A_CELL = 4
# Of each, on the page of a team; the lists have the rest.
MEMBERS_SHOWN = 20


async def show_all(ask: Ask) -> Page:
    """Show a page of the teams that match."""
    filters = filters_of(ask.request.query_params, ("q",))
    offset = offset_of(ask.query("offset"))
    answer = await ask.api.get("/v1/teams", **filters, offset=offset, limit=ROWS)
    shown = {
        "listing": Listing("/teams", filters, offset, len(answer["teams"]), answer["total"]),
        "rows": [{**team, "reach": Few.of(team["clusters"], CLUSTERS_IN_A_CELL)} for team in answer["teams"]],
    }
    return Page("teams.html", "Teams", shown)


async def show(ask: Ask) -> Page:
    """Show one team."""
    name = ask.path("name")
    team = await ask.api.get(at("/v1/teams/{}", name))
    agents = await ask.api.get("/v1/agents", team=name, limit=MEMBERS_SHOWN)
    clusters = await ask.api.get("/v1/clusters", team=name, limit=MEMBERS_SHOWN)
    shown = {
        "team": team,
        "agents": [{**agent, "badge": state_of_agent(agent)} for agent in agents["agents"]],
        "agents_total": agents["total"],
        "clusters": [{**each, "badge": state_of_cluster(each)} for each in clusters["clusters"]],
        "clusters_total": clusters["total"],
    }
    return Page("team.html", name, shown)


ROUTES = (
    Route("GET", "/teams", "viewer", show_all, "teams"),
    Route("GET", "/teams/{name}", "viewer", show, "teams"),
)
