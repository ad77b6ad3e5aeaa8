"""API discovery: the aggregated discovery document and the older unaggregated ones."""

from __future__ import annotations

import hashlib

from sandbox.kinds import GROUPS, Kind, of_group
from sandbox.objects import Json, Object, encode
from sandbox.server import Request, Response

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
SERVER_VERSION: Object = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2+sandbox",
    "gitCommit": "0000000000000000000000000000000000000000",
    "gitTreeState": "clean",
    "buildDate": "2026-06-09T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux/amd64",
}


def answer(request: Request, address: str) -> Response | None:
    """Answer a GET of /api, /apis or below; None for an unknown path."""
    parts = request.path.strip("/").split("/")
    match parts:
        case ["api"]:
            return _root(request, ("",), _api_versions(address))
        case ["apis"]:
            return _root(request, GROUPS[1:], _group_list())
        case ["api", "v1"]:
            return _json(_resource_list(""))
        case ["apis", group] if group in GROUPS and group:
            return _json({"kind": "APIGroup", "apiVersion": "v1", **_group(group)})
        case ["apis", group, "v1"] if group in GROUPS and group:
            return _json(_resource_list(group))
    return None


def _root(request: Request, groups: tuple[str, ...], plain: Object) -> Response:
    """Answer in the aggregated format if the client accepts it."""
    accepted = [part.strip() for line in request.header_values(b"accept") for part in line.split(",")]
    if not any(_is_aggregated(media_type) for media_type in accepted):
        return _json(plain)
    body = encode(
        {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": [_aggregated(group) for group in groups],
        }
    )
    return cached(request, body, AGGREGATED, [("Vary", "Accept"), ("Cache-Control", "public")])


def _is_aggregated(media_type: str) -> bool:
    kind, *parameters = (part.strip() for part in media_type.split(";"))
    accepted = {"g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"}
    return kind == "application/json" and accepted <= set(parameters)


def cached(request: Request, body: bytes, content_type: str, headers: list[tuple[str, str]]) -> Response:
    """Answer 304 to a client that has this body already."""
    etag = f'"{hashlib.sha256(body).hexdigest().upper()}"'
    headers = [*headers, ("ETag", etag)]
    if request.header(b"if-none-match") == etag:
        return Response(304, b"", "", headers)
    return Response(200, body, content_type, headers)


def _json(body: Object) -> Response:
    return Response(200, encode(body))


def _aggregated(group: str) -> Object:
    resources: list[Json] = [_aggregated_resource(kind) for kind in of_group(group)]
    return {
        "metadata": {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None},
        "versions": [{"version": "v1", "resources": resources, "freshness": "Current"}],
    }


def _aggregated_resource(kind: Kind) -> Object:
    body: Object = {
        "resource": kind.resource,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": [*kind.verbs],
    }
    if kind.short_names:
        body["shortNames"] = [*kind.short_names]
    if kind.categories:
        body["categories"] = [*kind.categories]
    if kind.subresources:
        body["subresources"] = [
            {
                "subresource": sub.name,
                "responseKind": {
                    "group": sub.group or kind.group,
                    "version": sub.version or kind.version,
                    "kind": sub.kind,
                },
                "verbs": [*sub.verbs],
            }
            for sub in kind.subresources
        ]
    return body


def _api_versions(address: str) -> Object:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def _group_list() -> Object:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in GROUPS[1:]]}


def _group(group: str) -> Object:
    version: Object = {"groupVersion": f"{group}/v1", "version": "v1"}
    return {"name": group, "versions": [version], "preferredVersion": {**version}}


def _resource_list(group: str) -> Object:
    resources: list[Json] = []
    for kind in of_group(group):
        resources.append(_resource(kind))
        resources += [
            {
                "name": f"{kind.resource}/{sub.name}",
                "singularName": "",
                "namespaced": kind.namespaced,
                **({"group": sub.group, "version": sub.version} if sub.group else {}),
                "kind": sub.kind,
                "verbs": [*sub.verbs],
            }
            for sub in kind.subresources
        ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/v1" if group else "v1",
        "resources": resources,
    }


def _resource(kind: Kind) -> Object:
    body: Object = {
        "name": kind.resource,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": [*kind.verbs],
    }
    if kind.short_names:
        body["shortNames"] = [*kind.short_names]
    if kind.categories:
        body["categories"] = [*kind.categories]
    return body
