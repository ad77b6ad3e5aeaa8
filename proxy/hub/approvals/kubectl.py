"""The call of a request, for approvers to read: its target, a kubectl command, and what its body is."""

from __future__ import annotations

from audit.kubectl import kubectl_line, words_of
from audit.record import Stream
from auth.requestinfo import RequestInfo, decode_value, raw_values
from proxy.hub.approvals.plan.bindable import is_pod_stream
from proxy.hub.approvals.plan.query import may_be_true
from proxy.hub.approvals.request import NewRequest
from proxy.hub.authorize.events import recorded_request


def call_of(new: NewRequest) -> str:
    """Return the method and the whole target, to which an approval is bound; "" if the call is deleted.

    No other text of a request has all of it: not the path behind a proxy, nor each parameter of the query.
    """
    return f"{new.method} {new.target}" if new.target else ""


def kubectl_of(new: NewRequest, cluster: str) -> str:
    """Return the command line; "" if no command sends this call, or the call is deleted."""
    info = new.info
    if info is None:
        return ""
    words = words_of(recorded_request(info, new.target), _stream_of(info))
    return kubectl_line(["kubectl", "--context", cluster, *words]) if words else ""


def body_is(new: NewRequest) -> str:
    """Return what the body of a request's view is."""
    info = new.info
    if info is None or "proxy" in (info.verb, info.subresource):
        return "what it sends"
    if is_pod_stream(info) or info.subresource == "eviction":
        return "images in the pod"
    if info.verb in {"delete", "deletecollection"}:
        return "what it deletes"
    return "what it writes" if info.verb in {"create", "update", "patch"} else "what it sends"


def _stream_of(info: RequestInfo) -> Stream:
    # A part that cannot be decoded is seen as such in the target.
    command = tuple(decode_value(value) or "" for value in raw_values(info.query, "command"))
    return Stream(command=command, tty=may_be_true(info.query, "tty"))
