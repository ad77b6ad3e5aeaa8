from __future__ import annotations

import pytest
from msgspec.structs import replace

from audit.kubectl import kubectl_line, kubectl_words
from audit.record import Request, Stream
from tests.audit.events import call

PODS = "/api/v1/namespaces/app/pods"


def pods(
    method: str, verb: str, rest: str = "", *, sub: str = "", name: str = "", **other: object
) -> Request:
    return Request(method, PODS + rest, verb, "", "v1", "pods", sub, "app", name, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "stream", "line"),
    [
        (pods("GET", "get", "/web", name="web"), None, "get pods web -n app"),
        (pods("GET", "list", "?limit=500"), None, "get pods -n app"),
        (
            pods("GET", "list", "?labelSelector=app%3Dweb%2Ctier%21%3Dx&fieldSelector=spec.nodeName%3Da"),
            None,
            "get pods -n app -l 'app=web,tier!=x' --field-selector spec.nodeName=a",
        ),
        (pods("GET", "watch", "?watch=true"), Stream("http"), "get pods -n app --watch"),
        (
            pods("GET", "watch", "?watch=true&fieldSelector=metadata.name%3Dweb", name="web"),
            Stream("http"),
            "get pods web -n app --watch",
        ),
        (Request("GET", "/api/v1/pods", "list", "", "v1", "pods"), None, "get pods -A"),
        (
            Request("DELETE", "/x", "delete", "apps", "v1", "deployments", "", "app", "web", dry_run=True),
            None,
            "delete deployments.apps web -n app --dry-run=server",
        ),
        (pods("DELETE", "deletecollection"), None, "delete pods --all -n app"),
        (pods("DELETE", "deletecollection", "?labelSelector=a"), None, "delete pods -n app -l a"),
        (pods("POST", "create"), None, "create -f ... -n app"),
        (pods("PUT", "update", "/web", name="web"), None, "replace pods web -f ... -n app"),
        (
            pods("PATCH", "patch", "/web/status", sub="status", name="web"),
            None,
            "patch pods web -f ... --subresource=status -n app",
        ),
        (
            pods("GET", "get", "/web/exec?container=c&stdin=true&command=sh", sub="exec", name="web"),
            Stream("websocket", ("sh", "-c", "echo hi"), "c", tty=True),
            "exec web -n app -c c -i -t -- sh -c 'echo hi'",
        ),
        (
            pods("GET", "get", "/web/log?follow=true&container=c", sub="log", name="web"),
            Stream("http"),
            "logs web -n app -c c -f",
        ),
        (
            pods("POST", "create", "/web/portforward", sub="portforward", name="web"),
            Stream("spdy/3.1"),
            "port-forward web -n app ...",
        ),
        (pods("GET", "get", "/web/proxy/x", sub="proxy", name="web"), None, f"get --raw {PODS}/web/proxy/x"),
        (Request("GET", "/version", "get"), None, "get --raw /version"),
        # No kubectl command sends these requests.
        (pods("POST", "create", "/web/eviction", sub="eviction", name="web"), None, ""),
        (Request("POST", "/apis", "post"), None, ""),
        # kubectl would parse these names as options.
        (pods("DELETE", "delete", "/--all", name="--all"), None, ""),
        (pods("GET", "get", "/-s=x/log", sub="log", name="-s=x"), Stream("http"), ""),
        (Request("PATCH", "/api/v1/--all/x", "patch", "", "v1", "--all", "", "", "x"), None, ""),
        (Request("GET", "/"), None, ""),
    ],
)
def test_a_request_is_the_line_that_asks_for_it(request_: Request, stream: Stream | None, line: str) -> None:
    assert kubectl_line(kubectl_words(replace(call(), req=request_, stream=stream))) == line


def test_an_action_of_an_operator_is_no_kubectl_line() -> None:
    admin = Request("POST", "/v1/agents", "create", resource="agents")
    assert kubectl_words(replace(call(), cluster=None, req=admin)) == []
