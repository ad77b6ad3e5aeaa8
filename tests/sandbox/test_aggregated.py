"""The API groups of aggregated servers: one ignores dry runs, and one honours them."""

from __future__ import annotations

import pytest

from sandbox.kinds import THINGS, WIDGETS, Kind
from sandbox.objects import Json, Object, lookup, mapping, text
from tests.sandbox.world import World

MERGE = "application/merge-patch+json"


def path(kind: Kind) -> str:
    return f"{kind.prefix}/namespaces/default/{kind.resource}"


def one(name: str, **spec: Json) -> Object:
    return {"metadata": {"name": name}, "spec": spec}


async def test_an_api_that_ignores_dry_run_stores_each_write(world: World) -> None:
    target = path(THINGS)
    await world.object("POST", f"{target}?dryRun=All", one("t", depth=1))
    await world.object("PATCH", f"{target}/t?dryRun=All", {"spec": {"depth": 2}}, content_type=MERGE)
    assert lookup(await world.object("GET", f"{target}/t"), "spec") == {"depth": 2}
    await world.object("PUT", f"{target}/t?dryRun=All", one("t", depth=3))
    assert lookup(await world.object("GET", f"{target}/t"), "spec") == {"depth": 3}
    await world.object("DELETE", f"{target}/t", {"dryRun": ["All"]})
    assert world.names(THINGS) == []


async def test_an_api_that_honours_dry_run_defaults_and_stores_nothing(world: World) -> None:
    target = path(WIDGETS)
    tried = await world.object("POST", f"{target}?dryRun=All", one("w", colour="red"))
    assert mapping(tried, "spec") == {"colour": "red", "size": "small"}
    assert world.names(WIDGETS) == []
    await world.object("POST", target, one("w", colour="red"))
    await world.object("PATCH", f"{target}/w?dryRun=All", {"spec": {"size": "big"}}, content_type=MERGE)
    await world.object("DELETE", f"{target}/w?dryRun=All")
    stored = await world.object("GET", f"{target}/w")
    assert lookup(stored, "spec", "size") == "small"


@pytest.mark.parametrize(
    ("name", "service"),
    [("v1.apps", ""), ("v1.", ""), (f"v1.{THINGS.group}", "aggregated"), (f"v1.{WIDGETS.group}", "stable")],
)
async def test_api_services_name_the_server_of_each_group(world: World, name: str, service: str) -> None:
    found = await world.object("GET", f"/apis/apiregistration.k8s.io/v1/apiservices/{name}")
    assert text(found, "spec", "service", "name") == service
