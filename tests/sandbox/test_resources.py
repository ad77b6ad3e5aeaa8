"""The effects of each verb on each kind of object, without sockets."""

from __future__ import annotations

import json

import pytest

from sandbox.authn import User
from sandbox.kinds import CONFIG_MAPS, PODS
from sandbox.objects import Json, Object, child, integer, items, lookup, mapping, text
from sandbox.server import Response
from sandbox.status import StatusError
from tests.sandbox.world import World

DEFAULT = "/api/v1/namespaces/default"
MAPS = f"{DEFAULT}/configmaps"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
NOTES: Object = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "notes"}, "data": {"a": "1"}}
WEB: Object = {
    "metadata": {"name": "web"},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "main", "image": "i"}]},
        },
    },
}


async def refused(world: World, method: str, target: str, body: Json = None, **headers: str) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await world.object(method, target, body, **headers)
    return caught.value


async def test_an_object_is_created_read_replaced_and_deleted(world: World) -> None:
    answer = await world.ask("POST", f"{MAPS}?fieldManager=me", NOTES)
    assert isinstance(answer, Response)
    assert answer.status == 201
    made: Object = json.loads(answer.body)
    assert await world.object("GET", f"{MAPS}/notes") == made
    metadata = mapping(made, "metadata")
    assert all(text(metadata, key) for key in ("uid", "creationTimestamp", "resourceVersion"))
    assert [(entry["manager"], entry["operation"]) for entry in items(metadata, "managedFields")] == [
        ("me", "Update")
    ]
    made["data"] = {"b": "2"}
    replaced = await world.object("PUT", f"{MAPS}/notes", made)
    assert replaced["data"] == {"b": "2"}
    assert (await refused(world, "PUT", f"{MAPS}/notes", made)).reason == "Conflict"
    gone = await world.object("DELETE", f"{MAPS}/notes", {"propagationPolicy": "Foreground"})
    # The collector removes the finalizer, and waits for no dependents.
    assert text(gone, "metadata", "deletionTimestamp")
    await world.object("DELETE", f"{MAPS}/notes", {"propagationPolicy": "Background"})
    assert (await refused(world, "GET", f"{MAPS}/notes")).code == 404


async def test_a_deletion_at_once_is_answered_by_a_status(world: World) -> None:
    await world.object("POST", MAPS, NOTES)
    answer = await world.object("DELETE", f"{MAPS}/notes")
    assert (answer["kind"], answer["status"], text(answer, "details", "kind")) == (
        "Status",
        "Success",
        "configmaps",
    )


async def test_preconditions_of_a_deletion(world: World) -> None:
    await world.object("POST", MAPS, NOTES)
    for precondition in ({"uid": "other"}, {"resourceVersion": "1"}):
        error = await refused(world, "DELETE", f"{MAPS}/notes", {"preconditions": {**precondition}})
        assert error.code == 409
        assert "Precondition failed" in error.message


@pytest.mark.parametrize(
    ("method", "target", "body", "code", "part"),
    [
        (
            "POST",
            MAPS,
            {"metadata": {"name": "x", "namespace": "other"}},
            400,
            "does not match the namespace sent",
        ),
        (
            "POST",
            "/api/v1/namespaces/nope/configmaps",
            {"metadata": {"name": "x"}},
            404,
            'namespaces "nope" not found',
        ),
        ("POST", MAPS, {"metadata": {}}, 422, "name or generateName is required"),
        ("POST", MAPS, {"kind": "Pod", "apiVersion": "v1"}, 400, "do not match"),
        ("POST", f"{MAPS}/x", {}, 405, "does not allow this method"),
        ("PUT", f"{MAPS}/x", {"metadata": {"name": "x"}}, 404, 'configmaps "x" not found'),
        (
            "PUT",
            f"{MAPS}/kube-root-ca.crt",
            {"metadata": {"name": "y"}},
            400,
            "does not match the name on the URL",
        ),
        ("GET", f"{DEFAULT}/things", None, 404, "could not find the requested resource"),
        ("GET", f"{MAPS}/x/scale", None, 404, "could not find the requested resource"),
        ("GET", f"{MAPS}/x/y/z", None, 404, "could not find the requested resource"),
        ("DELETE", "/api/v1/namespaces", None, 405, "does not allow this method"),
        ("DELETE", "/api/v1/namespaces/default", None, 403, "this namespace may not be deleted"),
        ("POST", f"{MAPS}?dryRun=Some", {}, 422, 'supported values: "All"'),
        (
            "GET",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            None,
            405,
            "does not allow this method",
        ),
        ("DELETE", f"{MAPS}/kube-root-ca.crt", {"propagationPolicy": "Sideways"}, 422, "supported values"),
    ],
)
async def test_refusals(world: World, method: str, target: str, body: Json, code: int, part: str) -> None:
    error = await refused(world, method, target, body)
    assert (error.code, part in error.message) == (code, True), error.message


async def test_a_dry_run_leaves_nothing(world: World) -> None:
    revision = world.store.revision
    made = await world.object("POST", f"{MAPS}?dryRun=All", NOTES)
    assert text(made, "metadata", "uid")
    await world.object(
        "PATCH",
        f"{MAPS}/kube-root-ca.crt?dryRun=All",
        {"data": {"x": "y"}},
        content_type="application/merge-patch+json",
    )
    await world.object("DELETE", f"{MAPS}/kube-root-ca.crt?dryRun=All")
    assert world.store.revision == revision


async def test_generated_names_differ(world: World) -> None:
    names = {
        text(await world.object("POST", MAPS, {"metadata": {"generateName": "x-"}}), "metadata", "name")
        for _ in range(5)
    }
    assert len(names) == 5
    assert all(name.startswith("x-") and len(name) == 7 for name in names)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json-patch+json", [{"op": "replace", "path": "/data/a", "value": "2"}]),
        ("application/merge-patch+json", {"data": {"a": "2"}}),
        ("application/strategic-merge-patch+json; charset=utf-8", {"data": {"a": "2"}}),
    ],
)
async def test_patches(world: World, content_type: str, body: Json) -> None:
    await world.object("POST", MAPS, NOTES)
    patched = await world.object("PATCH", f"{MAPS}/notes", body, content_type=content_type)
    assert patched["data"] == {"a": "2"}
    error = await refused(world, "PATCH", f"{MAPS}/missing", body, content_type=content_type)
    assert error.code == 404


async def test_patches_that_are_refused(world: World) -> None:
    await world.object("POST", MAPS, NOTES)
    merge = "application/merge-patch+json"
    stale = await refused(
        world, "PATCH", f"{MAPS}/notes", {"metadata": {"resourceVersion": "1"}}, content_type=merge
    )
    assert stale.reason == "Conflict"
    other = await refused(world, "PATCH", f"{MAPS}/notes", {"kind": "Secret"}, content_type=merge)
    assert other.code == 400
    renamed = await refused(world, "PATCH", f"{MAPS}/notes", {"metadata": {"name": "x"}}, content_type=merge)
    assert renamed.code == 400
    assert (await refused(world, "PATCH", f"{MAPS}/notes", {}, content_type="application/json")).code == 415


async def test_a_change_of_nothing_changes_nothing(world: World) -> None:
    made = await world.object("POST", MAPS, NOTES)
    same = await world.object("PATCH", f"{MAPS}/notes", {}, content_type="application/merge-patch+json")
    assert text(same, "metadata", "resourceVersion") == text(made, "metadata", "resourceVersion")


async def test_apply_creates_and_merges(world: World) -> None:
    target, content_type = f"{MAPS}/notes?fieldManager=me", "application/apply-patch+yaml"
    yaml = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {a: '1'}\n"
    answer = await world.ask("PATCH", target, yaml, headers={"content-type": content_type})
    assert isinstance(answer, Response)
    assert answer.status == 201
    configuration: Object = {**NOTES, "data": {"b": "2"}}
    merged = await world.object("PATCH", target, configuration, content_type=content_type)
    assert merged["data"] == {"a": "1", "b": "2"}
    assert [entry["operation"] for entry in items(merged, "metadata", "managedFields")] == ["Apply"]
    nameless = await refused(world, "PATCH", f"{MAPS}/notes", configuration, content_type=content_type)
    assert "is required for apply patch" in nameless.message
    other: Object = {**NOTES, "kind": "Secret"}
    assert (await refused(world, "PATCH", target, other, content_type=content_type)).code == 400


async def test_generations_count_what_is_wanted(world: World) -> None:
    await world.object("POST", DEPLOYMENTS, WEB)
    merge = "application/merge-patch+json"
    labelled = await world.object(
        "PATCH", f"{DEPLOYMENTS}/web", {"metadata": {"labels": {"x": "y"}}}, content_type=merge
    )
    assert integer(labelled, "metadata", "generation") == 1
    scaled = await world.object("PATCH", f"{DEPLOYMENTS}/web", {"spec": {"replicas": 5}}, content_type=merge)
    assert integer(scaled, "metadata", "generation") == 2


async def test_status_and_spec_are_written_apart(world: World) -> None:
    await world.object("POST", DEPLOYMENTS, {**WEB, "status": {"replicas": 9}})
    merge = "application/merge-patch+json"
    both: Object = {"spec": {"replicas": 7}, "status": {"replicas": 7}}
    by_spec = await world.object("PATCH", f"{DEPLOYMENTS}/web", both, content_type=merge)
    assert (lookup(by_spec, "spec", "replicas"), lookup(by_spec, "status", "replicas")) == (7, None)
    both = {"spec": {"replicas": 3}, "status": {"replicas": 3}}
    by_status = await world.object("PATCH", f"{DEPLOYMENTS}/web/status", both, content_type=merge)
    assert (lookup(by_status, "spec", "replicas"), lookup(by_status, "status", "replicas")) == (7, 3)


async def test_a_scale_is_read_and_set(world: World) -> None:
    await world.object("POST", DEPLOYMENTS, WEB)
    scale = await world.object("GET", f"{DEPLOYMENTS}/web/scale")
    assert (scale["kind"], scale["spec"], text(scale, "status", "selector")) == (
        "Scale",
        {"replicas": 1},
        "a=b",
    )
    child(scale, "spec")["replicas"] = 4
    assert (await world.object("PUT", f"{DEPLOYMENTS}/web/scale", scale))["spec"] == {"replicas": 4}
    assert (await refused(world, "PUT", f"{DEPLOYMENTS}/web/scale", scale)).reason == "Conflict"
    patched = await world.object(
        "PATCH",
        f"{DEPLOYMENTS}/web/scale",
        {"spec": {"replicas": 2}},
        content_type="application/merge-patch+json",
    )
    assert patched["spec"] == {"replicas": 2}
    negative: Object = {"metadata": {"name": "web"}, "spec": {"replicas": -1}}
    assert (await refused(world, "PUT", f"{DEPLOYMENTS}/web/scale", negative)).code == 422


async def test_a_collection_is_deleted_by_its_labels(world: World) -> None:
    for name, label in (("a", "x"), ("b", "y"), ("c", "x")):
        await world.object("POST", MAPS, {"metadata": {"name": name, "labels": {"l": label}}})
    deleted = await world.object("DELETE", f"{MAPS}?labelSelector=l=x")
    assert deleted["kind"] == "ConfigMapList"
    assert world.names(CONFIG_MAPS) == ["b", "kube-root-ca.crt"]


async def test_nothing_is_made_in_a_namespace_on_its_way_out(world: World) -> None:
    await world.object("POST", "/api/v1/namespaces", {"metadata": {"name": "old"}})
    leaving = await world.object("DELETE", "/api/v1/namespaces/old")
    assert text(leaving, "status", "phase") == "Terminating"
    error = await refused(world, "POST", "/api/v1/namespaces/old/configmaps", {"metadata": {"name": "x"}})
    assert (error.code, "because it is being terminated" in error.message) == (403, True)


async def test_a_pod_without_a_node_is_gone_at_once_and_one_with_a_node_later(world: World) -> None:
    pod: Object = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    await world.object("POST", f"{DEFAULT}/pods", pod)
    await world.object("DELETE", f"{DEFAULT}/pods/p")
    assert world.names(PODS) == []
    await world.object("POST", f"{DEFAULT}/pods", {**pod, "spec": {**mapping(pod, "spec"), "nodeName": "n"}})
    leaving = await world.object("DELETE", f"{DEFAULT}/pods/p", {"gracePeriodSeconds": 5})
    assert lookup(leaving, "metadata", "deletionGracePeriodSeconds") == 5
    assert world.names(PODS) == ["p"]
    await world.object("DELETE", f"{DEFAULT}/pods/p?gracePeriodSeconds=0")
    assert world.names(PODS) == []


async def test_an_eviction_deletes(world: World) -> None:
    pod: Object = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    await world.object("POST", f"{DEFAULT}/pods", pod)
    answer = await world.object("POST", f"{DEFAULT}/pods/p/eviction", {"metadata": {"name": "p"}})
    assert answer["status"] == "Success"
    assert world.names(PODS) == []


async def test_services_get_addresses_of_their_own(world: World) -> None:
    def service(name: str, **spec: Json) -> Object:
        return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}

    made = [
        await world.object("POST", f"{DEFAULT}/services", service(name, type="NodePort")) for name in "ab"
    ]
    addresses = {text(each, "spec", "clusterIP") for each in made}
    ports = {integer(port, "nodePort") for each in made for port in items(each, "spec", "ports")}
    assert (len(addresses), len(ports)) == (2, 2)
    headless = await world.object("POST", f"{DEFAULT}/services", service("c", clusterIP="None"))
    assert text(headless, "spec", "clusterIP") == "None"


async def test_reviews_answer_for_whoever_asks(world: World) -> None:
    jane = User("jane", groups=("dev",))
    answer = await world.ask("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, user=jane)
    assert isinstance(answer, Response)
    assert json.loads(answer.body)["status"]["userInfo"] == {"username": "jane", "groups": ["dev"]}


async def test_warnings_come_with_the_answer(world: World) -> None:
    answer = await world.ask("POST", MAPS, {**NOTES, "datum": 1})
    assert isinstance(answer, Response)
    assert list(answer.headers) == [("Warning", '299 - "unknown field \\"datum\\""')]
