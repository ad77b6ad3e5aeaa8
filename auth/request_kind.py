"""The kind of a request in policy terms: its verb, its subject, and whether it only reads.

The HTTP method does not always show what a request does. Exec, attach and port-forward act on a pod as a
create does, regardless of the method. An upgrade opens a connection for arbitrary data, so it needs two
permissions: the one for its method, since the API server may ignore the upgrade, and `create`, since it may
not (`implied_create`). kube-apiserver itself requires both for an exec over a WebSocket, since 1.35. The
exceptions are watches and pod logs, which do the same over a WebSocket as without (see `_is_stream`).
"""

from __future__ import annotations

import attrs

from auth.kinds import CLUSTER_SCOPED
from auth.requestinfo import RequestInfo

# These act on a pod as a create does, even if a GET opens them as a WebSocket.
_CREATES = frozenset({"exec", "attach", "portforward"})
_COLLECTIVE = frozenset({"list", "watch", "deletecollection"})
_METHOD_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch"}
_DISCOVERY = frozenset({"/api", "/apis", "/openapi", "/version"})
_DISCOVERY_BELOW = ("/api/", "/apis/", "/openapi/")


@attrs.frozen
class RequestKind:
    """The kind of a request, in policy terms."""

    verb: str
    """Exec and its like are `create`. For a non-resource path it is the HTTP method, with HEAD as `get`."""
    reads: bool
    group: str
    resource: str
    """Empty for a non-resource path."""
    subresource: str
    """`proxy` under the legacy /proxy/ prefix too."""
    namespace: str
    path: str
    """Empty for a resource."""
    collective: bool
    """Whether the request covers all objects at once, unless it selects one by name."""
    across: bool
    """Whether the request covers all namespaces at once."""


def is_discovery(info: RequestInfo) -> bool:
    """Whether the request only reads which API resources the server has, or its version."""
    if info.is_resource or info.method not in {"GET", "HEAD"}:
        return False
    return info.path.removesuffix("/") in _DISCOVERY or info.path.startswith(_DISCOVERY_BELOW)


def request_kind_of(info: RequestInfo) -> RequestKind:
    """Return the kind of a request."""
    if not info.is_resource:
        verb = "get" if info.verb == "head" else info.verb
        return RequestKind(verb, not info.is_write, "", "", "", "", info.path, False, False)
    verb, subresource = info.verb, info.subresource
    if verb == "proxy":
        verb, subresource = _METHOD_VERBS.get(info.method, "delete"), "proxy"
    if subresource in _CREATES and verb:
        verb = "create"
    collective = verb in _COLLECTIVE
    # A kind of unknown scope counts as namespaced: its list may show objects of a denied namespace.
    across = collective and not info.namespace and (info.group, info.resource) not in CLUSTER_SCOPED
    return RequestKind(
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


def as_plain(info: RequestInfo) -> RequestInfo:
    """Return the request that an upgrade is if the API server ignores the upgrade.

    It has no query. An upgrade is no dry run: what is sent on the connection takes effect.
    """
    return attrs.evolve(info, upgrade=False, query=b"")


def as_read(info: RequestInfo) -> RequestInfo:
    """Return the request that reads the object of a request."""
    return attrs.evolve(info, method="GET", verb="get", upgrade=False, query=b"")


def implied_create(info: RequestInfo) -> RequestInfo | None:
    """Return the request that an upgrade must also be allowed as; None if its own method is enough.

    A non-resource path has no create; POST is the nearest to it. It has no query: see `as_plain`.
    """
    if not info.upgrade or info.method == "POST" or info.subresource in _CREATES or _is_stream(info):
        return None
    if not info.is_resource:
        return attrs.evolve(info, method="POST", verb="post", upgrade=False, query=b"")
    # Under the legacy /proxy/ prefix, only the method shows what is done.
    verb = info.verb if info.verb == "proxy" else "create"
    return attrs.evolve(info, method="POST", verb=verb, upgrade=False, query=b"")


def _is_stream(info: RequestInfo) -> bool:
    """Whether the request is a watch or a log, which a WebSocket answers too, in one direction.

    kube-apiserver serves these itself. It only forwards a watch of an aggregated API, and trusts that API
    server to send nothing but events. A request does not show whether its group is aggregated.
    """
    if info.verb == "watch":
        return not info.subresource
    return info.verb == "get" and (info.group, info.resource, info.subresource) == ("", "pods", "log")
