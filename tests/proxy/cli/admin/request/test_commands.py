"""`hawse admin request` against a hub's API."""

from __future__ import annotations

from collections.abc import Mapping

from tests.proxy.cli.admin.conftest import Hub

PERSON = "grace@example.com"


async def a_request(hub: Hub, **more: object) -> str:
    """Open a request of the agent sre-1 on prod; return its id."""
    if "sre-1" not in hub.directory.current.agents_by_name:
        await hub.ok("team", "add", "sre")
        await hub.ok("cluster", "add", "prod", "--team", "sre")
        await hub.ok("agent", "add", "sre-1", "--owner", "ada@example.com", "--team", "sre")
    now = hub.directory.current
    return hub.requests.add(now.agents_by_name["sre-1"].id, now.clusters_by_name["prod"].id, **more).id


async def as_approver(hub: Hub, person: str = PERSON) -> Mapping[str, str | None]:
    """Return the environment of an approver on another machine."""
    name = person.partition("@")[0]
    made = await hub.ok("token", "add", name, "--role", "approver", "--person", person)
    return {**hub.elsewhere(), "HAWSE_ADMIN_TOKEN": made.stdout.strip()}
