"""The tables of built-in kinds, compared with the API of the pinned Kubernetes client."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes

from auth.kinds import CLUSTER_SCOPED, NAMESPACED

PATH = re.compile(
    r"'(?:/api|/apis/(?P<group>[^/'{]+))/v[^/']+/(?P<namespace>namespaces/\{namespace\}/)?"
    r"(?P<resource>[a-z]+)(?=[/'])"
)


def test_each_built_in_kind_is_in_the_table_of_its_scope() -> None:
    assert kubernetes.__version__.startswith("37.")
    scopes: dict[tuple[str, str], set[bool]] = {}
    for file in (Path(kubernetes.__file__).parent / "client" / "api").glob("*_api.py"):
        for path in PATH.finditer(file.read_text("utf-8")):
            kind = path["group"] or "", path["resource"]
            scopes.setdefault(kind, set()).add(path["namespace"] is not None)
    assert ("apps", "deployments") in scopes
    # A namespaced kind is also listed across all namespaces, by a path without one.
    assert {kind for kind, found in scopes.items() if True in found} == {
        kind for kind in NAMESPACED if kind[0] != "metrics.k8s.io"
    }
    assert {kind for kind, found in scopes.items() if True not in found} == {
        kind for kind in CLUSTER_SCOPED if kind[0] != "metrics.k8s.io"
    }
