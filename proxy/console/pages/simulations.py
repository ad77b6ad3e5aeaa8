"""A policy before it is applied: its check, and its simulation against the calls of the trail.

It is applied on the command line; the pages show the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from proxy.console.base.api import Answer, ApiError, at
from proxy.console.base.routes import Ask, Page, Redirect, Route
from proxy.console.views.policies import SPANS, changes, checked, progress, state, verdict

RECENT = 5
DEFAULT_SPAN = "24h"


async def show_form(ask: Ask) -> Page:
    """Show the form, with a policy's text in it if one is named."""
    name, text = ask.query("policy"), ""
    if name:
        text = (await ask.api.get(at("/v1/policies/{}", name)))["document"]
    return await _form(ask, {"text": text})


async def check(ask: Ask) -> Page:
    """Check a text: what is wrong with it, and what would change."""
    return await _form(ask, ask.form, await ask.api.post("/v1/policies", {**_policies(ask), "dry_run": True}))


def _policies(ask: Ask) -> dict[str, object]:
    return {"files": [{"name": "", "text": _text(ask.form)}], "only": "only" in ask.form}


def _text(form: Mapping[str, str]) -> str:
    # A browser sends the lines of a field with a carriage return.
    return form.get("text", "").replace("\r\n", "\n")


async def _form(ask: Ask, form: Mapping[str, str], answer: Answer | None = None, fault: str = "") -> Page:
    text = _text(form)
    shown = {
        "form": {"text": text, **{name: form.get(name, "") for name in ("only", "agent", "cluster")}},
        "span": form.get("span", DEFAULT_SPAN),
        "spans": list(SPANS),
        "answer": answer,
        "fault": fault,
        "lines": checked(text, answer["faults"]) if answer is not None and answer["faults"] else [],
        "changes": changes(answer["diff"]) if answer is not None else [],
        "recent": await _recent(ask),
    }
    return Page("check.html", "Check a policy", shown)


async def _recent(ask: Ask) -> list[Answer]:
    """Return the last simulations, if the role may see them."""
    if not ask.person.may("auditor"):
        return []
    found = (await ask.api.get("/v1/policy-simulations"))["simulations"][:RECENT]
    return [{**each, "badge": state(each["state"])} for each in found]


async def start(ask: Ask) -> Page | Redirect:
    """Start a simulation."""
    span = SPANS.get(ask.form.get("span", ""), SPANS[DEFAULT_SPAN])
    since = datetime.fromtimestamp(ask.now - span, UTC).isoformat(timespec="seconds")
    body = {
        **_policies(ask),
        "since": since.replace("+00:00", "Z"),
        "agent": ask.form.get("agent", "").strip(),
        "cluster": ask.form.get("cluster", "").strip(),
    }
    try:
        made = await ask.api.post("/v1/policy-simulations", body)
    except ApiError as error:
        # The text stays in the form: a person may have typed it there.
        return await _form(ask, ask.form, fault=str(error))
    return Redirect(at("/policy-simulations/{}", made["id"]))


async def show(ask: Ask) -> Page:
    """Show how far a simulation is, or its result."""
    found = await ask.api.get(at("/v1/policy-simulations/{}", ask.path("id")))
    result = found["result"]
    shown = {
        "found": found,
        "badge": state(found["state"]),
        "going": found["state"] in {"waiting", "running"},
        "progress": progress(found),
        "result": result,
        "verdict": verdict(result) if result is not None else ("", ""),
        "rows": [
            {**change, "badge": state(change["change"])} for change in (result["changes"] if result else ())
        ],
        "changes": changes(result["diff"]) if result else [],
    }
    return Page("simulation.html", "Simulation", shown)


async def cancel(ask: Ask) -> Redirect:
    """Cancel it."""
    path = at("/policy-simulations/{}", ask.path("id"))
    await ask.api.delete(f"/v1{path}")
    return Redirect(path, "Cancelled the simulation.")


ROUTES = (
    Route("GET", "/policy-check", "viewer", show_form, "policies"),
    Route("POST", "/policy-check", "admin", check, "policies"),
    Route("POST", "/policy-simulations", "auditor", start, "policies"),
    Route("GET", "/policy-simulations/{id}", "auditor", show, "policies"),
    Route("POST", "/policy-simulations/{id}/cancel", "auditor", cancel, "policies"),
)
