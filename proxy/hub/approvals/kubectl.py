"""The call of a request as a kubectl command, for approvers to read."""

from __future__ import annotations

from audit.kubectl import kubectl_line, words_of
from audit.record import Request, Stream
from auth.requestinfo import BadTarget, RequestInfo, decode_value, parse, raw_values
from proxy.hub.approvals.plan.query import may_be_true
from proxy.hub.approvals.request import NewRequest


def kubectl_of(new: NewRequest, cluster: str) -> str:
    """Return the command line; "" if no command sends this call, or the call is deleted."""
    if not new.target:
        return ""
    try:
        info = parse(new.method.encode("latin-1"), new.target.encode("latin-1"))
    except BadTarget:
        return ""
    recorded = Request(
        info.method,
        new.target,
        info.verb,
        info.group,
        info.version,
        info.resource,
        info.subresource,
        info.namespace,
        info.name,
        info.dry_run,
    )
    words = words_of(recorded, _stream_of(info))
    return kubectl_line(["kubectl", "--context", cluster, *words]) if words else ""


def _stream_of(info: RequestInfo) -> Stream:
    # A part that cannot be decoded is seen as such in the target.
    command = tuple(decode_value(value) or "" for value in raw_values(info.query, "command"))
    return Stream(command=command, tty=may_be_true(info.query, "tty"))
