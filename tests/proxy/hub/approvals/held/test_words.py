"""A call in one line, as lists of requests show it."""

from __future__ import annotations

import pytest

from auth.requestinfo import parse
from proxy.hub.approvals.held.words import WHAT_CHARACTERS_MAX, what_of

POD = "/api/v1/namespaces/shop/pods/web-1"


@pytest.mark.parametrize(
    ("method", "target", "line"),
    [
        (
            "DELETE",
            "/apis/apps/v1/namespaces/shop/deployments/web",
            "delete deployments.apps shop/web",
        ),
        ("DELETE", "/api/v1/namespaces/shop/pods", "deletecollection pods shop/*"),
        ("GET", "/api/v1/pods", "list pods"),
        # Neither says that all objects of the namespace are meant.
        ("POST", "/api/v1/namespaces/shop/pods", "create pods in shop"),
        ("DELETE", "/api/v1/namespaces/shop", "delete namespaces shop"),
        ("POST", "/api/v1/namespaces", "create namespaces"),
        ("PUT", "/api/v1/namespaces/shop/finalize", "update namespaces/finalize shop"),
        ("DELETE", "/api/v1/nodes/a", "delete nodes a"),
        # WebSocket and SPDY are one.
        ("GET", f"{POD}/exec?command=ls", "create pods/exec shop/web-1"),
        ("POST", f"{POD}/exec?command=ls", "create pods/exec shop/web-1"),
        ("GET", f"{POD}/log", "get pods/log shop/web-1"),
        ("GET", "/healthz", "get /healthz"),
        ("GET", "/api/v1/namespaces/shop/pods/%E2%80%AEx", "get pods shop/\\u202ex"),
    ],
)
def test_a_call_is_one_line(method: str, target: str, line: str) -> None:
    assert what_of(parse(method.encode(), target.encode())) == line


def test_a_long_line_is_cut() -> None:
    line = what_of(parse(b"GET", b"/api/v1/nodes/" + b"a" * 400))
    assert len(line) == WHAT_CHARACTERS_MAX
    assert line.endswith("...")
