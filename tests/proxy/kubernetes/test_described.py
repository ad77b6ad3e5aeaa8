from __future__ import annotations

import pytest

from auth.requestinfo import parse
from proxy.kubernetes.described import request_for


@pytest.mark.parametrize(
    ("asked", "method", "verb", "rest"),
    [
        (("get", "pods", "web", "app"), "GET", "get", ("", "app", "pods", "", "web")),
        (("get", "pods/log", "web", "app"), "GET", "get", ("", "app", "pods", "log", "web")),
        (("create", "pods/exec", "web", "app"), "POST", "create", ("", "app", "pods", "exec", "web")),
        (("list", "pods", "", "app"), "GET", "list", ("", "app", "pods", "", "")),
        (("list", "secrets", "a", "app"), "GET", "list", ("", "app", "secrets", "", "a")),
        (("watch", "pods"), "GET", "watch", ("", "", "pods", "", "")),
        (("create", "deployments.apps", "", "app"), "POST", "create", ("apps", "app", "deployments", "", "")),
        (
            ("create", "deployments", "", "app", "apps"),
            "POST",
            "create",
            ("apps", "app", "deployments", "", ""),
        ),
        (("get", "widgets.example.com", "w"), "GET", "get", ("example.com", "", "widgets", "", "w")),
        (("update", "nodes", "n"), "PUT", "update", ("", "", "nodes", "", "n")),
        (("patch", "nodes/status", "n"), "PATCH", "patch", ("", "", "nodes", "status", "n")),
        (("delete", "pods", "web", "app"), "DELETE", "delete", ("", "app", "pods", "", "web")),
        (("deletecollection", "pods", "", "app"), "DELETE", "deletecollection", ("", "app", "pods", "", "")),
    ],
)
def test_a_request_is_made_of_what_a_person_says(
    asked: tuple[str, ...], method: str, verb: str, rest: tuple[str, ...]
) -> None:
    made, target = request_for(*asked)
    info = parse(made.encode(), target.encode())
    assert (made, info.verb) == (method, verb)
    assert (info.group, info.namespace, info.resource, info.subresource, info.name) == rest


def test_a_path_is_asked_for_by_its_method() -> None:
    assert request_for("get", "/metrics") == ("GET", "/metrics")
    assert request_for("post", "/reload") == ("POST", "/reload")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("exec", "pods", "web"), "exec is no verb: one of get, list"),
        (("get", "pods"), "get needs the name of an object: for all of them say list"),
        (("delete", "pods"), "delete needs the name of an object: for all of them say deletecollection"),
        (("update", "pods"), "update needs the name of an object$"),
        (("create", "pods/exec"), "pods/exec needs the name of an object"),
        # An answer about an impossible request would mislead.
        (("get", "pdos", "web", "app"), r"the core API group has no pdos \(did you mean pods\?\): for"),
        (("get", "pod", "web", "app"), r"has no pod \(did you mean pods\?\): .* write RESOURCE\.GROUP$"),
        (("list", "deployment.apps"), r"^the API group apps has no deployment \(did you mean deployments"),
        (("list", "pods/log", "web", "app"), "pods/log has no list: say get"),
        (("list", "widgets"), r"has no widgets: for another group write RESOURCE\.GROUP$"),
        (("delete", "deployments", "web", "app"), r"has no deployments: write deployments\.apps$"),
        (("get", "pods", "web"), r"pods lie in namespaces: name one by -n"),
        (("create", "deployments.apps"), r"deployments\.apps lie in namespaces: name one by -n"),
        (("get", "nodes", "n", "app"), "nodes lie in no namespace: leave out -n app"),
        (("get", "namespaces", "app", "app"), "namespaces lie in no namespace: leave out -n app"),
    ],
)
def test_what_is_not_said_is_asked_for(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_for(*asked)
