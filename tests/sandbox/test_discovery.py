from __future__ import annotations

import json
from typing import TypeAlias

import pytest

from sandbox import discovery
from sandbox.server import Request, Response

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
Document: TypeAlias = "dict[str, list[dict[str, object]]]"


def get(path: str, accept: str = "application/json", etag: str = "") -> Response | None:
    headers = [(b"accept", accept.encode()), *([(b"if-none-match", etag.encode())] if etag else [])]
    return discovery.answer(Request("GET", path, path, {}, tuple(headers)), "127.0.0.1:6443")


def get_body(path: str) -> bytes:
    answer = get(path)
    assert answer is not None
    return answer.body


def document(path: str, accept: str = "application/json") -> Document:
    answer = get(path, accept)
    assert answer is not None
    found: Document = json.loads(answer.body)
    return found


def test_the_aggregated_document_has_the_media_type_it_was_asked_for_by() -> None:
    answer = get("/apis", AGGREGATED)
    assert answer is not None
    assert answer.content_type == "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    assert ("Vary", "Accept") in answer.headers
    groups = [item["metadata"] for item in document("/apis", AGGREGATED)["items"]]
    assert {"name": "apps", "creationTimestamp": None} in groups


def test_parameters_may_come_in_any_order_and_others_do_not_count() -> None:
    reordered = "application/json;as=APIGroupDiscoveryList; v=v2 ;g=apidiscovery.k8s.io"
    assert "items" in document("/api", reordered)
    assert "versions" in document("/api", AGGREGATED.replace("v=v2", "v=v2beta1"))


def test_a_known_etag_saves_the_body() -> None:
    answer = get("/apis", AGGREGATED)
    assert answer is not None
    etag = dict(answer.headers)["ETag"]
    again = get("/apis", AGGREGATED, etag)
    assert again is not None
    assert (again.status, again.body) == (304, b"")
    assert get("/apis", AGGREGATED, '"other"') == answer


def test_both_ways_tell_the_same() -> None:
    plain: set[tuple[object, ...]] = {
        (group or "", resource["name"], tuple(resource["verbs"]))  # type: ignore[arg-type]
        for group in ("", "apps", "policy", "rbac.authorization.k8s.io")
        for resource in document(f"/apis/{group}/v1" if group else "/api/v1")["resources"]
        if "/" not in str(resource["name"])
    }
    aggregated = {
        (item["metadata"].get("name", ""), resource["resource"], tuple(resource["verbs"]))  # type: ignore[attr-defined]
        for path in ("/api", "/apis")
        for item in document(path, AGGREGATED)["items"]
        for version in item["versions"]  # type: ignore[attr-defined]
        for resource in version["resources"]
    }
    assert plain <= aggregated


def test_groups_and_versions() -> None:
    assert b'"versions":["v1"]' in get_body("/api")
    assert {group["name"] for group in document("/apis")["groups"]} >= {"apps", "policy"}
    answer = get("/apis/apps")
    assert answer is not None
    assert json.loads(answer.body)["preferredVersion"] == {"groupVersion": "apps/v1", "version": "v1"}


@pytest.mark.parametrize("path", ["/apis/nothing", "/apis/apps/v2", "/api/v2", "/apis//v1", "/other"])
def test_what_is_not_served(path: str) -> None:
    assert get(path) is None


def test_subresources_are_listed_with_their_own_kinds() -> None:
    found = {resource["name"]: resource for resource in document("/apis/apps/v1")["resources"]}
    assert found["deployments/scale"] == {
        "name": "deployments/scale",
        "singularName": "",
        "namespaced": True,
        "group": "autoscaling",
        "version": "v1",
        "kind": "Scale",
        "verbs": ["get", "patch", "update"],
    }
