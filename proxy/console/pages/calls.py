"""Live calls: what is under way at all hubs, and ending it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from proxy.console.base.api import Answer, ApiError
from proxy.console.base.routes import Ask, Page, Redirect, Route
from proxy.console.base.templating import plural

# The newest. A page of 2,000 has 2 MB, and a person looks for one agent or one cluster there.
ROWS_MAX = 300

REASON_HINT = "The agent reads it, and the trail keeps it."


# What an agent types into, or tunnels through: it stands out.
_INTERACTIVE = frozenset({"exec", "attach", "portforward"})


@attrs.frozen
class Row:
    """A call as the table shows it."""

    id: str
    agent: str
    owner: str
    cluster: str
    verb: str
    protocol: str
    what: str
    where: str
    relay: str
    hub: str
    client: str
    started_at: str
    bytes_in: int
    bytes_out: int
    claimed_reason: str

    @property
    def tone(self) -> str:
        """The colour of the verb."""
        return "warn" if self.verb in _INTERACTIVE else ""


def row_of(session: Mapping[str, Any]) -> Row:
    """Make a row of a call of the API: its kind is `watch`, `exec/websocket`, or `request`."""
    kind, _, protocol = session["kind"].partition("/")
    resource, _, subresource = session["resource"].partition("/")
    verb = session["verb"] if kind == "request" else kind
    # `exec pods/web` has the subresource in its verb.
    if subresource and subresource != verb:
        resource = session["resource"]
    return Row(
        id=session["id"],
        agent=session["agent"],
        owner=session["owner"],
        cluster=session["cluster"],
        verb=verb,
        protocol=protocol,
        what=f"{resource}/{session['name']}" if session["name"] else resource,
        where=session["namespace"],
        relay=session["relay"],
        hub=session["hub"],
        client=session["client"],
        started_at=session["started_at"],
        bytes_in=session["bytes_in"],
        bytes_out=session["bytes_out"],
        claimed_reason=session["claimed_reason"],
    )


async def show(ask: Ask) -> Page:
    """Show the calls, of an agent or on a cluster if the query says so."""
    agent, cluster = ask.query("agent"), ask.query("cluster")
    answer = await ask.api.get("/v1/sessions", agent=agent, cluster=cluster, limit=ROWS_MAX)
    shown = {
        "rows": [row_of(session) for session in reversed(answer["sessions"])],
        "count": answer["total"],
        "agent": agent,
        "cluster": cluster,
        "missing": missing(answer),
    }
    return Page("calls.html", "Live calls", shown)


def missing(answer: Answer) -> str:
    """Return a sentence about the calls that an answer of the API lacks."""
    if answer["silent_hubs"]:
        return f"{', '.join(answer['silent_hubs'])} did not answer in time: calls there are missing here."
    if answer["hubs_beside"]:
        return f"{plural(answer['hubs_beside'], 'replaced hub')} still finishing calls, which are not listed."
    return ""


async def ask_end(ask: Ask) -> Page:
    """Ask before one call, or all calls of an agent, are ended."""
    agent, call = ask.query("agent"), ask.query("id")
    answer = await ask.api.get("/v1/sessions", agent=agent)
    chosen = [session for session in answer["sessions"] if not call or session["id"] == call]
    title = f"End all calls of {agent}?" if agent else "End this call?"
    if not chosen:
        return Page("gone.html", "Already ended", {"back": "/calls"})
    facts = {"Calls": str(len(chosen))}
    if not agent:
        row = row_of(chosen[0])
        facts = {"Agent": row.agent, "Cluster": row.cluster, "Call": f"{row.verb} {row.what}"}
        if row.where:
            facts["Namespace"] = row.where
    shown = {
        "action": "/calls/end",
        "fields": {"agent": agent} if agent else {"id": call},
        "text": "",
        "facts": facts,
        "reason": REASON_HINT,
        "button": f"End {plural(len(chosen), 'call')}" if agent else "End call",
        "tone": "danger",
        "back": "/calls",
    }
    return Page("confirm.html", title, shown)


async def end(ask: Ask) -> Page | Redirect:
    """End them."""
    named = {name: ask.form[name] for name in ("id", "agent") if ask.form.get(name)}
    try:
        answer = await ask.api.post("/v1/sessions/kill", {**named, "reason": ask.form.get("reason", "")})
    except ApiError as error:
        # Another person may have ended it since the question.
        if error.status != 404 or "id" not in named:
            raise
        return Redirect("/calls", "This call had ended already. Nothing was changed.")
    said = f"Ended {plural(len(answer['killed']), 'call')}."
    return Redirect("/calls", " ".join(filter(None, (said, missing(answer), answer.get("notice", "")))))


ROUTES = (
    Route("GET", "/calls", "operator", show, "calls"),
    Route("GET", "/calls/end", "operator", ask_end, "calls"),
    Route("POST", "/calls/end", "operator", end, "calls"),
)
