"""A call in one line, as approvers read it."""

from __future__ import annotations

from typing import Final

from auth.policy.match import Bundle, Decision
from auth.requestinfo import RequestInfo

WHAT_CHARACTERS_MAX: Final = 300


def what_of(info: RequestInfo) -> str:
    """Return `delete deployments.apps shop/web`, or the verb and the path where there is no resource.

    An agent chooses the names, so characters that are not printed stand as `\\u202e`.
    """
    if not info.is_resource:
        line = f"{info.verb} {info.path}"
    else:
        resource = f"{info.resource}.{info.group}" if info.group else info.resource
        if info.subresource:
            resource = f"{resource}/{info.subresource}"
        name = info.name or ("*" if info.namespace else "")
        place = f"{info.namespace}/{name}" if info.namespace else name
        line = f"{info.verb} {resource} {place}".rstrip()
    shown = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in line)
    return shown if len(shown) <= WHAT_CHARACTERS_MAX else f"{shown[: WHAT_CHARACTERS_MAX - 3]}..."


def reason_of(bundle: Bundle, decision: Decision) -> str:
    """Return the reason of the rule that decided; "" if it has none."""
    rules = (rule for policy in bundle.policies if policy.name == decision.policy for rule in policy.rules)
    return next((rule.reason for rule in rules if rule.id == decision.rule), "")
