"""A call in one line, as approvers read it."""

from __future__ import annotations

from typing import Final

from auth.policy.match import Bundle, Decision
from auth.requestinfo import RequestInfo
from proxy.hub.approvals.plan.bindable import is_pod_stream

WHAT_CHARACTERS_MAX: Final = 300


def what_of(info: RequestInfo) -> str:
    """Return `delete deployments.apps shop/web`, or the verb and the path where there is no resource.

    An agent chooses the names, so characters that are not printed stand as `\\u202e`. The verb is the one
    that policies decide about: `create` for an exec, whichever method carries it.
    """
    if not info.is_resource:
        line = f"{info.verb} {info.path}"
    else:
        resource = f"{info.resource}.{info.group}" if info.group else info.resource
        if info.subresource:
            resource = f"{resource}/{info.subresource}"
        verb = "create" if is_pod_stream(info) else info.verb
        line = f"{verb} {resource} {_place(info)}".rstrip()
    shown = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in line)
    return shown if len(shown) <= WHAT_CHARACTERS_MAX else f"{shown[: WHAT_CHARACTERS_MAX - 3]}..."


def _place(info: RequestInfo) -> str:
    # A namespace is in no namespace, although Kubernetes gives its own name as one.
    if not info.namespace or (info.group, info.resource) == ("", "namespaces"):
        return info.name
    if info.name:
        return f"{info.namespace}/{info.name}"
    # The name of what is created is in the body.
    return f"in {info.namespace}" if info.verb == "create" else f"{info.namespace}/*"


def reason_of(bundle: Bundle, decision: Decision) -> str:
    """Return the reason of the rule that decided; "" if it has none."""
    rules = (rule for policy in bundle.policies if policy.name == decision.policy for rule in policy.rules)
    return next((rule.reason for rule in rules if rule.id == decision.rule), "")
