"""The command of a request, its target, and what its body is."""

from __future__ import annotations

import attrs
import pytest

from proxy.hub.approvals.kubectl import body_is, call_of, kubectl_of
from proxy.hub.approvals.request import NewRequest
from proxy.hub.approvals.view import View

NEW = NewRequest(
    agent_id="a",
    cluster_id="c",
    plan="",
    effect="",
    what="",
    reason="",
    policy="shop",
    rule="risky",
    bundle="1",
    approvers=("any",),
    valid_for_s=900,
    interactive=False,
    view=View(),
)
POD = "/api/v1/namespaces/shop/pods/web-1"


@pytest.mark.parametrize(
    ("method", "target", "command"),
    [
        (
            "DELETE",
            "/apis/apps/v1/namespaces/shop/deployments/web",
            "kubectl --context prod delete deployments.apps web -n shop",
        ),
        ("DELETE", "/api/v1/namespaces/shop/pods", "kubectl --context prod delete pods --all -n shop"),
        (
            "GET",
            f"{POD}/exec?container=app&command=sh&command=-c&command=rm+-rf+%2Fdata&tty=true&stdin=true",
            "kubectl --context prod exec web-1 -n shop -c app -i -t -- sh -c 'rm -rf /data'",
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/shop/deployments/web",
            "kubectl --context prod patch deployments.apps web -f ... -n shop",
        ),
        # The API server takes the first value, also if it is empty.
        (
            "DELETE",
            "/api/v1/namespaces/shop/pods?labelSelector=&labelSelector=a%3Db&fieldSelector",
            "kubectl --context prod delete pods --all -n shop",
        ),
        (
            "POST",
            f"{POD}/exec?command=sh&stdin=1&tty=&container=&container=app",
            "kubectl --context prod exec web-1 -n shop -i -t -- sh",
        ),
        (
            "POST",
            f"{POD}/exec?command=sh&stdin=False&tty=0",
            "kubectl --context prod exec web-1 -n shop -- sh",
        ),
        # No command sends it.
        ("POST", f"{POD}/proxy/admin", ""),
        # An option in the place of a name would change the command.
        ("DELETE", "/api/v1/namespaces/shop/pods/--all", ""),
        ("DELETE", "/api/v1/namespaces/%zz/pods/web-1", ""),
        # Deleted, some days after the end.
        ("DELETE", "", ""),
    ],
)
def test_a_call_is_a_kubectl_command(method: str, target: str, command: str) -> None:
    assert kubectl_of(attrs.evolve(NEW, method=method, target=target), "prod") == command


def test_the_call_has_the_path_behind_a_proxy_and_each_parameter() -> None:
    target = "/api/v1/namespaces/shop/services/http:web:80/proxy/admin/wipe?all=true"
    assert call_of(attrs.evolve(NEW, method="POST", target=target)) == f"POST {target}"
    # Deleted, some days after the end.
    assert call_of(attrs.evolve(NEW, method="POST", target="")) == ""


@pytest.mark.parametrize(
    ("method", "target", "words"),
    [
        ("DELETE", POD, "what it deletes"),
        ("DELETE", "/api/v1/namespaces/shop/pods", "what it deletes"),
        ("DELETE", f"{POD}/proxy/admin", "what it sends"),
        ("POST", "/api/v1/namespaces/shop/pods", "what it writes"),
        ("PATCH", POD, "what it writes"),
        ("GET", f"{POD}/exec?command=ls", "images in the pod"),
        ("POST", f"{POD}/eviction", "images in the pod"),
        ("POST", "/healthz", "what it sends"),
        ("DELETE", "", "what it sends"),
    ],
)
def test_a_body_is_named_by_what_it_is(method: str, target: str, words: str) -> None:
    assert body_is(attrs.evolve(NEW, method=method, target=target)) == words
