"""Parses method, path and query into verb, resource and name, as the API server does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from sandbox.selectors import exact_name

_VERBS = {
    "POST": "create",
    "GET": "get",
    "HEAD": "get",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
# In a namespace's path, these words are a subresource of the namespace, not a resource in it.
_NAMESPACE_SUBRESOURCES = ("status", "finalize")
_SPECIAL_VERBS = ("proxy", "watch")


@attrs.frozen
class RequestInfo:
    """The attributes of a request for authorisation and dispatch."""

    verb: str
    path: str
    is_resource: bool = False
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    rest: tuple[str, ...] = ()


def parse(method: str, path: str, query: Mapping[str, Sequence[str]]) -> RequestInfo:
    """Parse a request whose path is already percent-decoded."""
    parts = path.strip("/").split("/")
    other = RequestInfo(method.lower(), path)
    if parts[0] not in ("api", "apis"):
        return other
    group = ""
    rest = parts[1:]
    if parts[0] == "apis":
        if len(parts) < 4:
            return other
        group, rest = parts[1], parts[2:]
    if len(rest) < 2:
        return other
    version, rest = rest[0], rest[1:]

    verb = _VERBS.get(method, "")
    if rest[0] in _SPECIAL_VERBS and len(rest) >= 2:
        verb, rest = rest[0], rest[1:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]
    resource = rest[0]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if verb == "get" and not name:
        verb = "watch" if _flag(query, "watch") else "list"
        name = exact_name(_first(query, "fieldSelector"))
    elif verb == "delete" and not name:
        verb = "deletecollection"
    return RequestInfo(
        verb=verb,
        path=path,
        is_resource=True,
        group=group,
        version=version,
        namespace=namespace,
        resource=resource,
        subresource=subresource,
        name=name,
        rest=tuple(rest[3:]),
    )


def _first(query: Mapping[str, Sequence[str]], key: str) -> str:
    values = query.get(key, ())
    return values[0] if values else ""


def _flag(query: Mapping[str, Sequence[str]], key: str) -> bool:
    return key in query and _first(query, key).lower() not in ("false", "0")
