"""Locking an agent and unlocking it."""

from __future__ import annotations

from proxy.console.base.api import at
from proxy.console.base.routes import Ask, Page, Redirect, Route


async def ask_lock(ask: Ask) -> Page:
    """Ask before an agent is locked."""
    text = (
        "Its calls end now, and its requests are refused until it is unlocked. Its keys stay valid for then."
    )
    return await _asked(ask, "lock", "Lock", "danger", text)


async def ask_unlock(ask: Ask) -> Page:
    """Ask before an agent is unlocked."""
    return await _asked(
        ask, "unlock", "Unlock", "primary", "Its requests are accepted again, under its policies."
    )


async def lock(ask: Ask) -> Redirect:
    """Lock it."""
    return await _changed(ask, "lock", "is locked")


async def unlock(ask: Ask) -> Redirect:
    """Unlock it."""
    return await _changed(ask, "unlock", "is active again")


async def _asked(ask: Ask, verb: str, button: str, tone: str, text: str) -> Page:
    agent = await ask.api.get(at("/v1/agents/{}", ask.path("name")))
    shown = {
        "action": at("/agents/{}/" + verb, agent["name"]),
        "fields": {},
        "text": text,
        "facts": {"Owner": agent["owner"], "Teams": ", ".join(agent["teams"]), "State": agent["state"]},
        "reason": "",
        "button": button,
        "tone": tone,
        "back": at("/agents/{}", agent["name"]),
    }
    return Page("confirm.html", f"{button} {agent['name']}?", shown)


async def _changed(ask: Ask, verb: str, state: str) -> Redirect:
    name = ask.path("name")
    answer = await ask.api.post(at("/v1/agents/{}/" + verb, name))
    said = f"{name} {state}."
    if notice := answer.get("notice", ""):
        said = f"{said} {notice}"
    return Redirect(at("/agents/{}", name), said)


ROUTES = (
    Route("GET", "/agents/{name}/lock", "operator", ask_lock, "agents"),
    Route("POST", "/agents/{name}/lock", "operator", lock, "agents"),
    Route("GET", "/agents/{name}/unlock", "operator", ask_unlock, "agents"),
    Route("POST", "/agents/{name}/unlock", "operator", unlock, "agents"),
)
