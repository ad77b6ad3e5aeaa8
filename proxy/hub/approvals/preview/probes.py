"""The requests that the hub may make to find out what a call would do. Pure.

A preview must not change anything. Nothing but a `Probe` is sent, and a Probe checks itself: it is a GET of
an object or a list, or a dry run that the API certainly honours. An aggregated API may ignore `dryRun`, and
some subresources act on a dry run. There the dry run would be the write that is not approved.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import attrs

from auth.policy.ask import TRUSTED_DRY_RUN_SUBRESOURCES, Ask
from auth.requestinfo import BadTarget, RequestInfo, parse, raw_values

_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
_SELECTORS: Final = ("labelSelector", "fieldSelector")
# Names, labels, owners and finalizers, without the objects' contents. An old API server sends whole objects.
_METADATA_LIST: Final = (
    b"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json;q=0.9"
)
_JSON: Final = b"application/json"
_DRY_RUN: Final = b"dryRun=All"


class NotAllowedError(Exception):
    """The request is neither a read nor a dry run that is trusted."""


@attrs.frozen
class Probe:
    """One request of a preview. Raises BadTarget or NotAllowedError if it must not be made."""

    method: bytes
    target: bytes
    accept: bytes = _JSON
    trusted_by: Ask | None = None
    """Of a dry run, which has the call's body: the rule that trusts the API."""
    info: RequestInfo = attrs.field(init=False)
    """As the API server parses the method and the target that are sent."""

    @info.default
    def _parsed(self) -> RequestInfo:
        return parse(self.method, self.target)

    def __attrs_post_init__(self) -> None:
        info = self.info
        if self.trusted_by is not None:
            allowed = info.method in _METHODS and self.trusted_by.trusts(info)
        else:
            allowed = info.method == "GET" and info.verb in {"get", "list"} and not info.is_write
            allowed = allowed and info.is_resource and info.subresource in TRUSTED_DRY_RUN_SUBRESOURCES
        if not allowed:
            raise NotAllowedError(f"{info.method} {info.path}")

    @property
    def dry(self) -> bool:
        """Whether it is a dry run."""
        return self.trusted_by is not None


def dry_run_of(info: RequestInfo, ask: Ask) -> Probe | None:
    """Return the dry run of a call; None if its API may write all the same.

    The target is parsed again with the added parameter. So a parameter of the call cannot take its place.
    """
    if info.upgrade or not info.is_resource:
        return None
    query = info.query + b"&" + _DRY_RUN if info.query else _DRY_RUN
    return _probe(info.method.encode("ascii"), info.raw_path + b"?" + query, trusted_by=ask)


def read_of(info: RequestInfo, subresource: str) -> Probe | None:
    """Return the GET of the object that a call is about, or of its subresource; None if there is none.

    The query of the call is not used: for a GET it would mean something else.
    """
    if not (info.is_resource and info.name) or subresource not in TRUSTED_DRY_RUN_SUBRESOURCES:
        return None
    path = _path(info, info.resource, info.name, *([subresource] if subresource else []))
    return _read(path)


def list_of(info: RequestInfo, count_max: int) -> Probe | None:
    """Return the list of the objects that a deletecollection deletes, without their contents."""
    if not info.is_resource or info.verb != "deletecollection" or info.subresource:
        return None
    pairs = [name.encode() + b"=" + value for name in _SELECTORS for value in raw_values(info.query, name)]
    query = b"&".join((*pairs, b"limit=%d" % count_max))
    return _read(info.raw_path.rstrip(b"/") + b"?" + query, _METADATA_LIST)


def dependants_of(namespace: str, group: str, resource: str, count_max: int) -> Probe | None:
    """Return the list of objects of a namespace, to find those that belong to an object."""
    root = "/apis/" + group if group else "/api"
    path = f"{root}/v1/namespaces/{quote(namespace, safe='')}/{resource}?limit={count_max}"
    return _read(path.encode("ascii"), _METADATA_LIST)


def _read(target: bytes, accept: bytes = _JSON) -> Probe | None:
    return _probe(b"GET", target, accept)


def _probe(
    method: bytes, target: bytes, accept: bytes = _JSON, *, trusted_by: Ask | None = None
) -> Probe | None:
    try:
        return Probe(method, target, accept, trusted_by)
    except (BadTarget, NotAllowedError):
        return None


def _path(info: RequestInfo, *parts: str) -> bytes:
    root = f"/apis/{quote(info.group, safe='')}" if info.group else "/api"
    # A namespace itself, as an object, is not in itself.
    within = info.namespace and (info.group, info.resource) != ("", "namespaces")
    place = f"/namespaces/{quote(info.namespace, safe='')}" if within else ""
    named = "/".join(quote(part, safe="") for part in parts)
    return f"{root}/{quote(info.version, safe='')}{place}/{named}".encode("ascii")
