"""A request in the words of a policy: which verb it counts as, what it is about, and whether it only reads.

HTTP's method does not always tell what is done. Exec, attach and port-forward act on a pod as a create does,
whatever carries them. And an upgrade opens a connection on which anything may be said: whoever asks for one
has to be allowed what its method says, since the API server may answer as if no upgrade had been asked for,
and a create as well, since it may not (`opening_of`). kube-apiserver itself asks for both where a WebSocket
opens an exec, since 1.35. Only watches and a pod's log are taken to be the same by a WebSocket as without one
(`_is_stream` says whose word that is).
"""

from __future__ import annotations

import attrs

from auth.kinds import CLUSTER_SCOPED
from auth.requestinfo import RequestInfo

# Whatever carries them (a WebSocket is opened by GET), these act on a pod as a create does.
_CREATES = frozenset({"exec", "attach", "portforward"})
_COLLECTIVE = frozenset({"list", "watch", "deletecollection"})
_METHOD_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch"}
_DISCOVERY = frozenset({"/api", "/apis", "/openapi", "/version"})
_DISCOVERY_BELOW = ("/api/", "/apis/", "/openapi/")


@attrs.frozen
class Asked:
    """The kind of a request, in the words of a policy."""

    verb: str
    """Exec and its like are `create`; of a path about no resource it is the method, and HEAD is `get`."""
    reads: bool
    group: str
    resource: str
    """Empty for a path about no resource."""
    subresource: str
    """Under the old /proxy/ prefix it is `proxy`, as it is without."""
    namespace: str
    path: str
    """Empty for a resource."""
    collective: bool
    """Whether it is about all names at once, where it has none."""
    across: bool
    """Whether it is about every namespace at once."""


def is_discovery(info: RequestInfo) -> bool:
    """Whether it reads what kinds of things the API server has, and of which version it is."""
    if info.is_resource or info.method not in {"GET", "HEAD"}:
        return False
    return info.path.removesuffix("/") in _DISCOVERY or info.path.startswith(_DISCOVERY_BELOW)


def asked_of(info: RequestInfo) -> Asked:
    """Put a request into a policy's words."""
    if not info.is_resource:
        verb = "get" if info.verb == "head" else info.verb
        return Asked(verb, not info.is_write, "", "", "", "", info.path, False, False)
    verb, subresource = info.verb, info.subresource
    if verb == "proxy":
        verb, subresource = _METHOD_VERBS.get(info.method, "delete"), "proxy"
    if subresource in _CREATES and verb:
        verb = "create"
    collective = verb in _COLLECTIVE
    # A kind of unknown scope counts as one that lies in namespaces: the list may show the denied one.
    across = collective and not info.namespace and (info.group, info.resource) not in CLUSTER_SCOPED
    return Asked(
        verb,
        not info.is_write,
        info.group,
        info.resource,
        subresource,
        info.namespace,
        "",
        collective,
        across,
    )


def opening_of(info: RequestInfo) -> RequestInfo | None:
    """What an upgrade has to be allowed as besides what its method says; None when that is all.

    A path about no resource has no creates, and a POST is the nearest to it.
    """
    if not info.upgrade or info.method == "POST" or info.subresource in _CREATES or _is_stream(info):
        return None
    if not info.is_resource:
        return attrs.evolve(info, method="POST", verb="post", upgrade=False)
    # Under the old /proxy/ prefix the method is all that tells.
    verb = info.verb if info.verb == "proxy" else "create"
    return attrs.evolve(info, method="POST", verb=verb, upgrade=False)


def _is_stream(info: RequestInfo) -> bool:
    """Whether it is a watch or a log, which are answered by a WebSocket as well, in one direction.

    kube-apiserver answers them so itself. A watch of an aggregated API it only passes on: that a WebSocket of
    it carries nothing but events is that API server's word. Which groups are aggregated no request tells.
    """
    if info.verb == "watch":
        return not info.subresource
    return info.verb == "get" and (info.group, info.resource, info.subresource) == ("", "pods", "log")
