"""Dry runs: they default, validate and check like the write, and store nothing."""

from __future__ import annotations

import pytest

from sandbox.kinds import CONFIG_MAPS, PODS, SERVICES
from sandbox.objects import Json, Object, integer, items, lookup, text
from sandbox.server import Response
from sandbox.status import StatusError
from tests.sandbox.world import World

CORE = "/api/v1/namespaces/default"
MAPS = f"{CORE}/configmaps"
MAP: Object = {"metadata": {"name": "m"}, "data": {"a": "1"}}
POD: Object = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
ALL: Object = {"dryRun": ["All"]}


def service(**spec: Json) -> Object:
    return {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}, {"port": 81}], **spec}}


async def refusal(world: World, method: str, target: str, body: Json = None) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await world.ask(method, target, body)
    return caught.value


async def test_a_created_object_is_defaulted_and_has_no_version(world: World) -> None:
    made = await world.object("POST", f"{CORE}/pods?dryRun=All", POD)
    assert lookup(made, "spec", "restartPolicy") == "Always"
    assert text(made, "metadata", "uid")
    assert "resourceVersion" not in str(made)
    assert world.names(PODS) == []


async def test_an_updated_object_keeps_its_version(world: World) -> None:
    stored = await world.object("POST", MAPS, MAP)
    tried = await world.object("PUT", f"{MAPS}/m?dryRun=All", {**MAP, "data": {"a": "2"}})
    assert tried["data"] == {"a": "2"}
    version = text(stored, "metadata", "resourceVersion")
    assert text(tried, "metadata", "resourceVersion") == version
    assert (await world.object("GET", f"{MAPS}/m"))["data"] == {"a": "1"}


async def test_uids_and_generated_names_differ_between_two_dry_runs(world: World) -> None:
    generated: Object = {"metadata": {"generateName": "m-"}}
    made = [await world.object("POST", f"{MAPS}?dryRun=All", generated) for _ in range(2)]
    for field in ("uid", "name"):
        assert text(made[0], "metadata", field) != text(made[1], "metadata", field)


async def test_a_service_gets_dummies_that_no_service_can_have(world: World) -> None:
    def allocated(value: Object) -> tuple[str, list[int]]:
        ports = [integer(port, "nodePort") for port in items(value, "spec", "ports")]
        return text(value, "spec", "clusterIP"), ports

    tried = await world.object("POST", f"{CORE}/services?dryRun=All", service(type="NodePort"))
    assert allocated(tried) == ("10.96.0.0", [32769, 32770])
    assert world.names(SERVICES) == ["kubernetes"]
    stored = await world.object("POST", f"{CORE}/services", service(type="NodePort"))
    assert allocated(stored) == ("10.96.0.2", [30000, 30001])


async def test_a_service_that_becomes_a_node_port_gets_its_ports(world: World) -> None:
    stored = await world.object("POST", f"{CORE}/services", service())
    target = f"{CORE}/services/s"
    patch: Object = {"spec": {"type": "NodePort"}}
    merge = "application/merge-patch+json"
    tried = await world.object("PATCH", f"{target}?dryRun=All", patch, content_type=merge)
    assert [port["nodePort"] for port in items(tried, "spec", "ports")] == [32769, 32770]
    changed = await world.object("PATCH", target, patch, content_type=merge)
    assert [port["nodePort"] for port in items(changed, "spec", "ports")] == [30000, 30001]
    assert text(changed, "spec", "clusterIP") == text(stored, "spec", "clusterIP")


@pytest.mark.parametrize(
    ("method", "target", "body", "code"),
    [
        ("POST", MAPS, MAP, 409),
        ("POST", f"{CORE}/pods", {"metadata": {"name": "q"}, "spec": {}}, 422),
        ("PUT", f"{MAPS}/m", {"metadata": {"name": "m", "resourceVersion": "1"}}, 409),
        ("PUT", f"{MAPS}/missing", {"metadata": {"name": "missing"}}, 404),
        ("DELETE", f"{MAPS}/missing", None, 404),
    ],
)
async def test_it_is_refused_as_the_write_would_be(
    world: World, method: str, target: str, body: Json, code: int
) -> None:
    await world.object("POST", MAPS, MAP)
    assert (await refusal(world, method, f"{target}?dryRun=All", body)).code == code


@pytest.mark.parametrize("precondition", ["uid", "resourceVersion"])
async def test_preconditions_of_a_delete_are_checked(world: World, precondition: str) -> None:
    await world.object("POST", MAPS, MAP)
    options: Object = {**ALL, "preconditions": {precondition: "other"}}
    error = await refusal(world, "DELETE", f"{MAPS}/m", options)
    assert (error.code, error.reason) == (409, "Conflict")


@pytest.mark.parametrize(("query", "body"), [("?dryRun=All", None), ("", ALL)])
async def test_a_delete_is_tried_by_its_query_or_its_body(world: World, query: str, body: Json) -> None:
    await world.object("POST", MAPS, MAP)
    revision = world.store.revision
    await world.object("DELETE", f"{MAPS}/m{query}", body)
    await world.object("DELETE", f"{MAPS}{query}", body)
    assert world.store.revision == revision


@pytest.mark.parametrize("target", [f"{MAPS}/m", MAPS])
async def test_the_query_of_a_delete_with_a_body_is_ignored(world: World, target: str) -> None:
    await world.object("POST", MAPS, MAP)
    await world.object("DELETE", f"{target}?dryRun=All", {"kind": "DeleteOptions"})
    assert "m" not in world.names(CONFIG_MAPS)


async def test_a_tried_deletion_shows_what_would_begin(world: World) -> None:
    held: Object = {"metadata": {"name": "m", "finalizers": ["example.com/hold"]}}
    await world.object("POST", MAPS, held)
    tried = await world.object("DELETE", f"{MAPS}/m?dryRun=All")
    assert text(tried, "metadata", "deletionTimestamp")
    assert "deletionTimestamp" not in str(await world.object("GET", f"{MAPS}/m"))


@pytest.mark.parametrize("eviction", [{}, {"deleteOptions": {"dryRun": ["All"]}}])
async def test_an_eviction_is_tried_by_its_query_or_its_body(world: World, eviction: Object) -> None:
    await world.object("POST", f"{CORE}/pods", POD)
    query = "" if eviction else "?dryRun=All"
    answer = await world.ask(
        "POST", f"{CORE}/pods/p/eviction{query}", {"metadata": {"name": "p"}, **eviction}
    )
    assert isinstance(answer, Response)
    assert answer.status == 201
    assert world.names(PODS) == ["p"]


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", f"{MAPS}?dryRun=", MAP),
        ("POST", f"{MAPS}?dryRun=All&dryRun=Some", MAP),
        ("DELETE", f"{MAPS}/kube-root-ca.crt?dryRun=all", None),
        ("DELETE", f"{MAPS}/kube-root-ca.crt", {"dryRun": ["Some"]}),
    ],
)
async def test_another_value_is_refused(world: World, method: str, target: str, body: Json) -> None:
    revision = world.store.revision
    error = await refusal(world, method, target, body)
    assert (error.code, error.reason) == (422, "Invalid")
    assert 'supported values: "All"' in error.message
    assert world.store.revision == revision
