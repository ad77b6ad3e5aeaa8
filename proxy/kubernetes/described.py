"""The method and target of a request in the words of `kubectl auth can-i`."""

from __future__ import annotations

from collections.abc import Sequence

from auth.kinds import CLUSTER_SCOPED, NAMESPACED
from proxy.process.suggestions import did_you_mean

# The verbs of resources, each with its method.
METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
    "deletecollection": "DELETE",
}


def request_for(
    verb: str, resource: str, name: str = "", namespace: str = "", group: str = ""
) -> tuple[str, str]:
    """Return method and target of a request that is described as for `kubectl auth can-i`.

    `resource` is `pods`, `pods/log`, `deployments.apps`, or a non-resource path. Raises ValueError, also for
    a request that no API server supports: a decision about it would mislead.
    """
    if resource.startswith("/"):
        return ("GET" if verb == "get" else verb.upper()), resource
    if verb not in METHODS:
        raise ValueError(f"{verb} is no verb: one of {', '.join(METHODS)}")
    kind, _, subresource = resource.partition("/")
    kind, _, suffix = kind.partition(".")
    group = group or suffix
    if verb not in {"list", "create", "deletecollection", "watch"} and not name:
        of_all = {"get": ": for all of them say list", "delete": ": for all of them say deletecollection"}
        raise ValueError(f"{verb} needs the name of an object{of_all.get(verb, '')}")
    if subresource and not name:
        raise ValueError(f"{resource} needs the name of an object")
    if subresource and verb in {"list", "watch", "deletecollection"}:
        raise ValueError(f"{resource} has no {verb}: say get, update, patch or create")
    if fault := _fault_of_place(group, kind, verb, namespace):
        raise ValueError(fault)
    path = f"/apis/{group}/v1" if group else "/api/v1"
    if namespace:
        path += f"/namespaces/{namespace}"
    path += f"/{kind}"
    if name and (verb != "create" or subresource) and verb not in {"list", "watch", "deletecollection"}:
        path += f"/{name}"
    if subresource:
        path += f"/{subresource}"
    selector = f"fieldSelector=metadata.name%3D{name}" if name and verb in {"list", "watch"} else ""
    query = "&".join(part for part in (("watch=true" if verb == "watch" else ""), selector) if part)
    return METHODS[verb], f"{path}?{query}" if query else path


def _fault_of_place(group: str, kind: str, verb: str, namespace: str) -> str:
    """Return why a request is impossible for a built-in kind; empty if it is possible or unknown."""
    written = f"{kind}.{group}" if group else kind
    built_in = [(of, name) for of, name in sorted(NAMESPACED | CLUSTER_SCOPED) if of == group]
    # Groups without a dot in their name belong to Kubernetes, so all their kinds are known.
    if built_in and "." not in group and (group, kind) not in built_in:
        return _fault_of_kind(group, kind, [name for _, name in built_in])
    if (group, kind) in NAMESPACED and not namespace and verb not in {"list", "watch"}:
        return f"{written} lie in namespaces: name one by -n NAMESPACE"
    if (group, kind) in CLUSTER_SCOPED and namespace:
        return f"{written} lie in no namespace: leave out -n {namespace}"
    return ""


def _fault_of_kind(group: str, kind: str, there: Sequence[str]) -> str:
    """Return the error for a kind that its group does not have, with a suggestion."""
    if group:
        return f"the API group {group} has no {kind}{did_you_mean(kind, there)}"
    elsewhere = [f"{name}.{of}" for of, name in sorted(NAMESPACED | CLUSTER_SCOPED) if name == kind]
    if elsewhere:
        return f"the core API group has no {kind}: write {' or '.join(elsewhere)}"
    near = did_you_mean(kind, there)
    return f"the core API group has no {kind}{near}: for another group write RESOURCE.GROUP"
