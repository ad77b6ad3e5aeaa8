from __future__ import annotations

import pytest

from sandbox.requestinfo import RequestInfo, parse


def info(method: str, target: str) -> RequestInfo:
    path, _, query = target.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    return parse(method, path, {key: [value] for key, _, value in pairs})


@pytest.mark.parametrize(
    ("method", "target", "verb", "namespace", "resource", "name", "subresource"),
    [
        ("GET", "/api/v1/pods", "list", "", "pods", "", ""),
        ("GET", "/api/v1/namespaces/a/pods", "list", "a", "pods", "", ""),
        ("GET", "/api/v1/namespaces/a/pods?watch=true", "watch", "a", "pods", "", ""),
        ("GET", "/api/v1/namespaces/a/pods?watch=0", "list", "a", "pods", "", ""),
        ("GET", "/api/v1/namespaces/a/pods/p", "get", "a", "pods", "p", ""),
        ("HEAD", "/api/v1/namespaces/a/pods/p", "get", "a", "pods", "p", ""),
        ("GET", "/api/v1/namespaces/a/pods/p/log", "get", "a", "pods", "p", "log"),
        ("POST", "/api/v1/namespaces/a/pods/p/exec", "create", "a", "pods", "p", "exec"),
        ("GET", "/api/v1/namespaces", "list", "", "namespaces", "", ""),
        ("GET", "/api/v1/namespaces/a", "get", "a", "namespaces", "a", ""),
        ("PUT", "/api/v1/namespaces/a/finalize", "update", "a", "namespaces", "a", "finalize"),
        ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection", "a", "pods", "", ""),
        ("PATCH", "/api/v1/nodes/n", "patch", "", "nodes", "n", ""),
        ("GET", "/api/v1/watch/namespaces/a/pods/p", "watch", "a", "pods", "p", ""),
        ("GET", "/api/v1/pods?fieldSelector=metadata.name=p", "list", "", "pods", "p", ""),
        ("TRACE", "/api/v1/pods", "", "", "pods", "", ""),
    ],
)
def test_a_resource_request(
    method: str, target: str, verb: str, namespace: str, resource: str, name: str, subresource: str
) -> None:
    found = info(method, target)
    assert found.is_resource
    assert (found.verb, found.namespace, found.resource, found.name, found.subresource) == (
        verb,
        namespace,
        resource,
        name,
        subresource,
    )


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version", "/healthz"]
)
def test_what_is_no_resource(path: str) -> None:
    found = info("GET", path)
    assert (found.is_resource, found.verb, found.path) == (False, "get", path)


def test_a_group_is_read_from_the_path() -> None:
    found = info("GET", "/apis/apps/v1/namespaces/a/deployments/d/scale")
    assert (found.group, found.version, found.resource, found.subresource) == (
        "apps",
        "v1",
        "deployments",
        "scale",
    )
