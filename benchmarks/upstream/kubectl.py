"""The part of the Kubernetes API that `kubectl get pods` uses, served by nginx, which takes no time for it.

Discovery in its older form, of one group with one resource; the list of pods as the table that kubectl wants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.nginx import issue_certificate, nginx_version, start_nginx
from benchmarks.processes import Daemons, free_port
from benchmarks.system import Endpoint
from benchmarks.upstream.other import OtherUpstream

NAMESPACE: Final = "work"
POD: Final = "workbench"
_POD_OBJECT: Final = {
    "kind": "PartialObjectMetadata",
    "apiVersion": "meta.k8s.io/v1",
    "metadata": {"name": POD, "namespace": NAMESPACE, "uid": "0199a1b2", "resourceVersion": "4711"},
}
_COLUMNS: Final = ("Name", "Ready", "Status", "Restarts", "Age")
ANSWERS: Final[dict[str, dict[str, object]]] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "verbs": ["get", "list", "watch"],
                "shortNames": ["po"],
            }
        ],
    },
    f"/api/v1/namespaces/{NAMESPACE}/pods": {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": "4711"},
        "columnDefinitions": [
            {"name": name, "type": "string", "format": "", "description": "", "priority": 0}
            for name in _COLUMNS
        ],
        "rows": [{"cells": [POD, "1/1", "Running", "0", "5m"], "object": _POD_OBJECT}],
    },
}


@contextmanager
def open_kubectl_server(folder: Path) -> Iterator[OtherUpstream]:
    """Start it in `folder`; raises Missing."""
    ca = issue_certificate(folder)
    port = free_port()
    with Daemons(folder) as daemons:
        nginx = start_nginx(daemons, "upstream", folder, port, server(port))
        endpoint = Endpoint("127.0.0.1", port, ca)
        processes = {"upstream": nginx.process.pid}
        yield OtherUpstream(endpoint, processes, {"nginx": nginx_version("upstream")})


def server(port: int) -> str:
    """The block of nginx's configuration that answers."""
    locations = "".join(
        f"    location = {path} {{ return 200 '{json.dumps(answer)}'; }}\n"
        for path, answer in ANSWERS.items()
    )
    return (
        f"server {{\n    listen 127.0.0.1:{port} ssl;\n    default_type application/json;\n{locations}"
        '    location / { return 404 \'{"kind": "Status", "apiVersion": "v1", "code": 404}\'; }\n}\n'
    )
