"""Which calls an approval can be bound to. Pure.

An approval is bound to one exact call. What a client sends after the head and the body cannot be bound, so a
rule has to allow such calls by `interactive: true`, and the request says so. What the API server sends later,
as in a watch, is not what an approver saw, so those calls are refused.
"""

from __future__ import annotations

from typing import Final

from auth.policy.ask import Ask
from auth.requestinfo import RequestInfo
from proxy.hub.approvals.plan.query import bound_query, may_be_set, may_be_true
from proxy.hub.approvals.plan.refusal import CannotAskError
from proxy.message.rewrite import is_tail

_STREAMS: Final = frozenset({"exec", "attach", "portforward"})
_INPUTS: Final = ("stdin", "tty")
_EXEC_WITH_INPUT: Final = "exec with stdin or tty"


def check_bindable(info: RequestInfo, ask: Ask) -> bool:
    """Return whether an approval binds all that the call does; raises CannotAskError.

    Call it before the body is read. `info.upgrade` must say whether the headers ask for an upgrade.
    """
    if not is_tail(info):
        # Raises for a query that cannot be bound.
        bound_query(info)
        _refuse_other_times(info)
    unseen = _unseen(info)
    if unseen is None:
        return True
    if not ask.interactive:
        # The agent can only do the one, the policy's author the other.
        instead = "leave out -i and -t, or " if unseen == _EXEC_WITH_INPUT else ""
        reason = (
            f"{unseen} cannot be approved exactly, since an approver cannot see its input: {instead}its "
            "rule's `ask` needs `interactive: true`"
        )
        raise CannotAskError(403, reason)
    return False


def is_pod_stream(info: RequestInfo) -> bool:
    """Return whether it is exec, attach or portforward of a pod."""
    return info.is_resource and (info.group, info.resource) == ("", "pods") and info.subresource in _STREAMS


def _refuse_other_times(info: RequestInfo) -> None:
    """Refuse reads whose answer goes on or continues another one, and deletions of what was there earlier."""
    reads = info.method in {"GET", "HEAD"} and info.subresource not in _STREAMS
    if info.verb == "watch" or (reads and may_be_true(info.query, "watch")):
        raise CannotAskError(
            403,
            "a watch cannot be approved: an approval is bound to one exact call, and a watch goes on. Use a "
            "command that reads once, without --watch",
        )
    if reads and may_be_true(info.query, "follow"):
        raise CannotAskError(
            403,
            "a followed log cannot be approved: an approval is bound to one exact call, and the log goes on. "
            "Read it without --follow",
        )
    if may_be_set(info.query, "continue"):
        raise CannotAskError(
            403,
            "a further page of a list cannot be approved: an approval is bound to one exact call. List fewer "
            "objects, or all at once (kubectl get --chunk-size=0)",
        )
    if info.verb == "deletecollection" and may_be_set(info.query, "resourceVersion"):
        # It deletes what matched at that time, by name. The preview shows what matches now.
        raise CannotAskError(
            403,
            "a deletion of the objects of an earlier version cannot be approved: leave out resourceVersion",
        )


def _unseen(info: RequestInfo) -> str | None:
    """Return what the call is, if bytes of it reach a server and cannot be bound; else None."""
    if info.verb == "proxy" or info.subresource == "proxy":
        return "a call through the API server's proxy"
    if is_pod_stream(info) and info.subresource == "exec":
        if any(may_be_true(info.query, name) for name in _INPUTS):
            return _EXEC_WITH_INPUT
        return None
    if info.subresource in _STREAMS:
        return {"attach": "attach", "exec": "exec", "portforward": "port-forward"}[info.subresource]
    return "an upgraded connection" if info.upgrade else None
