"""The body of `kubectl rollout restart`, which holds the current time. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from auth.requestinfo import RequestInfo

# Far from now, the value would be a choice of the agent.
_AROUND_S: Final = 24 * 3600.0
_TYPE: Final = b"application/strategic-merge-patch+json"
_RESTARTED: Final = frozenset({"daemonsets", "deployments", "statefulsets"})
# The bytes that kubectl sends, from 1.15 on. The time is Go's RFC 3339 in the client's time zone.
_BODY: Final = re.compile(
    rb'\{"spec":\{"template":\{"metadata":\{"annotations":\{"kubectl\.kubernetes\.io/restartedAt":'
    rb'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d))"\}\}\}\}\}'
)


def is_restart(info: RequestInfo, content_types: tuple[bytes, ...], body: bytes, now: float) -> bool:
    """Return whether a call is exactly `kubectl rollout restart` of about now (epoch seconds)."""
    if info.verb != "patch" or info.group != "apps" or info.resource not in _RESTARTED or info.subresource:
        return False
    match = _BODY.fullmatch(body) if content_types == (_TYPE,) else None
    if match is None:
        return False
    try:
        at = datetime.fromisoformat(match[1].decode("ascii")).timestamp()
    except (ValueError, OverflowError):
        return False
    return abs(at - now) <= _AROUND_S
