"""Agents: the list, one agent with its keys and what binds it, its one-time code, and its keys' end."""

from __future__ import annotations

from proxy.console.base.api import Answer, ApiError, at
from proxy.console.base.routes import Ask, Page, Redirect, Route
from proxy.console.views.fleet import limits_of, state_of_agent, state_of_key
from proxy.console.views.listing import ROWS, Few, Listing, filters_of, offset_of

# The names in a cell of the list, and in a list beside an agent.
CLUSTERS_IN_A_CELL = 3
CLUSTERS_BESIDE = 12
DENIALS_SHOWN = 10
_FILTERS = ("q", "team", "cluster", "policy", "state")


async def show_all(ask: Ask) -> Page:
    """Show a page of the agents that match."""
    filters = filters_of(ask.request.query_params, _FILTERS)
    offset = offset_of(ask.query("offset"))
    answer = await ask.api.get("/v1/agents", **filters, offset=offset, limit=ROWS)
    listing = Listing("/agents", filters, offset, len(answer["agents"]), answer["total"])
    shown = {
        "listing": listing,
        "rows": [
            {**agent, "reach": Few.of(agent["clusters"], CLUSTERS_IN_A_CELL), "badge": state_of_agent(agent)}
            for agent in answer["agents"]
        ],
        "tabs": _tabs(listing, answer["states"]),
    }
    return Page("agents.html", "Agents", shown)


def _tabs(listing: Listing, states: dict[str, int]) -> list[dict[str, object]]:
    """The states, each with its number of agents and its address. Retired agents count only if asked for."""
    chosen = listing.filters["state"]
    present = states["active"] + states["locked"]
    counts = {"": present, "active": states["active"], "locked": states["locked"], "retired": None}
    if chosen == "retired":
        counts = {"": None, "active": None, "locked": None, "retired": states["retired"]}
    return [
        {
            "title": state.capitalize() or "All",
            "count": count,
            "href": listing.address(state=state),
            "here": state == chosen,
        }
        for state, count in counts.items()
    ]


async def show(ask: Ask) -> Page:
    """Show one agent."""
    name = ask.path("name")
    agent = await ask.api.get(at("/v1/agents/{}", name))
    federation = await ask.api.get("/v1/federation", agent=name)
    keys = [{**key, "badge": state_of_key(key)} for key in agent["keys"]]
    # Valid keys first, and of each kind the newest.
    keys.sort(key=lambda key: key["created_at"], reverse=True)
    keys.sort(key=lambda key: key["revoked_at"] is not None)
    shown = {
        "agent": agent,
        "badge": state_of_agent(agent),
        "keys": keys,
        "rules": federation["rules"],
        "reach": Few.of(agent["clusters"], CLUSTERS_BESIDE),
        "denials": await _denials(ask, name),
        "limits": limits_of(agent),
    }
    return Page("agent.html", name, shown)


async def _denials(ask: Ask, name: str) -> list[Answer] | str:
    """Return the agent's last refused calls; or a sentence, if the trail cannot be searched now."""
    if not ask.person.may("auditor"):
        return []
    try:
        found = await ask.api.get("/v1/audit/events", agent=name, status="403", limit=DENIALS_SHOWN)
    except ApiError as error:
        # The rest of the page does not need the trail.
        return str(error)
    events: list[Answer] = found["events"]
    return events


async def ask_code(ask: Ask) -> Page:
    """Ask before a one-time code is made."""
    name = ask.path("name")
    agent = await ask.api.get(at("/v1/agents/{}", name))
    shown = {
        "action": at("/agents/{}/code", name),
        "fields": {},
        "text": "With the code, anyone can register a key and act as this agent. "
        "It works once, within 15 minutes.",
        "facts": {"Agent": name, "Owner": agent["owner"]},
        "reason": "",
        "button": "Make the code",
        "tone": "primary",
        "back": at("/agents/{}", name),
    }
    return Page("confirm.html", f"Make a one-time code for {name}?", shown)


async def make_code(ask: Ask) -> Page:
    """Make the code, and show it on this page alone."""
    name = ask.path("name")
    made = await ask.api.post(at("/v1/agents/{}/codes", name))
    hub = await ask.api.get("/v1/hub")
    ca = " --ca hub-ca.pem" if hub["ca_pem"] else ""
    command = f"hawse login --hub {hub['public_url']} --code{ca}"
    return Page(
        "code.html", f"A code for {name}", {"name": name, "made": made, "login": command, "ca": bool(ca)}
    )


async def ask_revoke(ask: Ask) -> Page:
    """Ask before a key is revoked."""
    name, key_id = ask.path("name"), ask.path("id")
    agent = await ask.api.get(at("/v1/agents/{}", name))
    found = [key for key in agent["keys"] if key["id"] == key_id and not key["revoked_at"]]
    back = at("/agents/{}", name)
    if not found:
        return Page("gone.html", "This key is revoked already", {"back": back})
    shown = {
        "action": at("/agents/{}/keys/{}/revoke", name, key_id),
        "fields": {},
        "text": "Calls with this key end at once. A revoked key never works again.",
        "facts": {"Agent": name, "Key": found[0]["hint"]},
        "reason": "",
        "button": "Revoke the key",
        "tone": "danger",
        "back": back,
    }
    return Page("confirm.html", "Revoke this key?", shown)


async def revoke(ask: Ask) -> Redirect:
    """Revoke it."""
    name = ask.path("name")
    done = await ask.api.delete(at("/v1/agents/{}/keys/{}", name, ask.path("id")))
    said = f"Revoked a key of {name}."
    return Redirect(at("/agents/{}", name), " ".join(filter(None, (said, done.get("notice", "")))))


ROUTES = (
    Route("GET", "/agents", "viewer", show_all, "agents"),
    Route("GET", "/agents/{name}", "viewer", show, "agents"),
    Route("GET", "/agents/{name}/code", "admin", ask_code, "agents"),
    Route("POST", "/agents/{name}/code", "admin", make_code, "agents"),
    Route("GET", "/agents/{name}/keys/{id}/revoke", "admin", ask_revoke, "agents"),
    Route("POST", "/agents/{name}/keys/{id}/revoke", "admin", revoke, "agents"),
)
