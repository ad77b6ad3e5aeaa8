"""Requests for approval: the list, one request with what its call would do, and the decision about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.console.base.api import Answer, Api, ApiError, at
from proxy.console.base.routes import Ask, Page, Redirect, Route
from proxy.console.views.listing import ROWS, filters_of, offset_of
from proxy.console.views.requests import (
    DECIDED,
    TABS,
    WAITING,
    Listed,
    approvers_of,
    commands_of,
    differences,
    may_deny,
    may_revoke,
    outcome_of,
    request_path,
    rule_of,
    state_of_request,
    value_of,
)
from proxy.console.views.rows import cut, sentence

# The role that sees requests and decides about them. An admin sees them too, denies and revokes.
ROLE = "approver"
DENIAL_HINT = "The agent reads it, and the trail keeps it."
_FILTERS = ("state", "agent", "cluster")


async def show_all(ask: Ask) -> Page:
    """Show those that wait, the oldest first, and below them a page of the others."""
    filters = filters_of(ask.request.query_params, _FILTERS)
    offset, state = offset_of(ask.query("offset")), filters["state"]
    found = await _found(ask, filters, state or DECIDED, offset)
    waiting = found if state == WAITING else None
    if not state and not offset:
        waiting = await _found(ask, filters, WAITING, 0)
    shown = {
        "listed": Listed(filters, offset, len(found["requests"]), found["more"]),
        "tabs": [
            {"title": title, "state": states, "here": states == state, "count": _open(found, states)}
            for states, title in TABS
        ],
        "waiting": None if waiting is None else [*map(_row, reversed(waiting["requests"]))],
        "more_waiting": not state and waiting is not None and waiting["more"],
        "decided": None if state == WAITING else [*map(_row, found["requests"])],
    }
    return Page("requests.html", "Requests", shown)


async def _found(ask: Ask, filters: Mapping[str, str], state: str, offset: int) -> Answer:
    named = {"agent": filters["agent"], "cluster": filters["cluster"]}
    return await ask.api.get("/v1/requests", state=state, **named, offset=offset, limit=ROWS)


def _open(found: Answer, states: str) -> int:
    """The number of open requests in the states of a tab; 0 for states that have ended."""
    return sum(found["open"].get(state, 0) for state in states.split(","))


def _row(request: Answer) -> dict[str, Any]:
    return {**request, "badge": state_of_request(request)}


async def number_waiting(api: Api) -> int:
    """Return how many wait; raises ApiError."""
    found = await api.get("/v1/requests", state=WAITING, limit=1)
    count: int = found["open"].get(WAITING, 0)
    return count


async def show_number(ask: Ask) -> Page:
    """Show the number of those that wait, for the navigation of the page that reads it again."""
    return Page("waiting.html", "Requests")


async def show(ask: Ask) -> Page:
    """Show one request."""
    return await _shown(ask, await ask.api.get(at("/v1/requests/{}", ask.path("id"))))


async def show_state(ask: Ask) -> Page:
    """Show the state alone, for the page that reads it again: a difference takes seconds to print."""
    request = await ask.api.get(at("/v1/requests/{}", ask.path("id")))
    return Page("request_state.html", "Request", {**_state(request), "alone": True})


async def _shown(ask: Ask, request: Answer, fault: str = "") -> Page:
    shown = {
        **_state(request),
        "differences": differences(request["changes"]),
        "approvers": approvers_of(request),
        "rule": rule_of(request),
        "teams": await _teams(ask, request["agent"]),
        "body": value_of("same", request["body"]),
        "commands": commands_of(request),
        "fault": fault,
    }
    return Page("request.html", cut(request["what"]), shown, 409 if fault else 200)


def _state(request: Answer) -> dict[str, object]:
    return {
        "request": request,
        "badge": state_of_request(request),
        "outcome": outcome_of(request),
        "may_deny": may_deny(request),
        "may_revoke": may_revoke(request),
        "may_not": sentence(request["may_not"]),
    }


async def _teams(ask: Ask, agent: str) -> list[str]:
    """The teams of the agent; none if it is gone."""
    try:
        found = await ask.api.get(at("/v1/agents/{}", agent))
    except ApiError as error:
        if error.status != 404:
            raise
        return []
    teams: list[str] = found["teams"]
    return teams


async def approve(ask: Ask) -> Page | Redirect:
    """Approve what the page has shown."""
    return await _decided(ask, "approve", {"shown": ask.form.get("shown", "")}, "Approved.")


async def ask_denial(ask: Ask) -> Page:
    """Ask for the reason of a denial."""
    text = "The command fails with your reason. The same call is refused for ten minutes, without asking."
    return await _asked(ask, "Deny", may_deny, text, DENIAL_HINT)


async def deny(ask: Ask) -> Page | Redirect:
    """Deny it."""
    return await _decided(ask, "deny", {"because": ask.form.get("reason", "")}, "Denied.")


async def ask_end(ask: Ask) -> Page:
    """Ask before an approval is taken back."""
    text = "The agent can no longer make the call. A call that is under way by this approval ends."
    return await _asked(ask, "Revoke", may_revoke, text)


async def revoke(ask: Ask) -> Page | Redirect:
    """Take the approval back."""
    return await _decided(ask, "revoke", {}, "The approval is revoked.")


async def _asked(ask: Ask, button: str, may: Callable[[Answer], bool], text: str, reason: str = "") -> Page:
    request = await ask.api.get(at("/v1/requests/{}", ask.path("id")))
    back = request_path(request["id"])
    if not may(request):
        return Page("gone.html", "This was decided meanwhile", {"back": back})
    shown = {
        "action": at(f"/requests/{{}}/{button.lower()}", request["id"]),
        "fields": {},
        "text": text,
        "facts": {"Agent": request["agent"], "Cluster": request["cluster"], "Call": request["what"]},
        "reason": reason,
        "button": button,
        "tone": "danger",
        "back": back,
    }
    return Page("confirm.html", f"{button} this request?", shown)


async def _decided(ask: Ask, verb: str, body: Mapping[str, str], said: str) -> Page | Redirect:
    """Make a decision. If another one was faster, or the call changed, show the request as it is now."""
    request_id = ask.path("id")
    try:
        answer = await ask.api.post(at(f"/v1/requests/{{}}/{verb}", request_id), body)
    except ApiError as error:
        if error.status != 409:
            raise
        request = await ask.api.get(at("/v1/requests/{}", request_id))
        return await _shown(ask, request, f"{sentence(str(error))}. Nothing was changed.")
    return Redirect(request_path(request_id), " ".join(filter(None, (said, answer.get("notice", "")))))


ROUTES = (
    Route("GET", "/requests", ROLE, show_all, "requests"),
    Route("GET", "/requests/waiting", ROLE, show_number, "requests"),
    Route("GET", "/requests/{id}", ROLE, show, "requests"),
    Route("GET", "/requests/{id}/state", ROLE, show_state, "requests"),
    Route("POST", "/requests/{id}/approve", ROLE, approve, "requests", by_person=True),
    Route("GET", "/requests/{id}/deny", ROLE, ask_denial, "requests"),
    Route("POST", "/requests/{id}/deny", ROLE, deny, "requests"),
    Route("GET", "/requests/{id}/revoke", ROLE, ask_end, "requests"),
    Route("POST", "/requests/{id}/revoke", ROLE, revoke, "requests"),
)
