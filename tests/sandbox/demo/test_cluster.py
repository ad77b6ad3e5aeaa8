from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import yaml

from sandbox.demo.cluster import (
    NAMESPACE,
    POD,
    Administrator,
    last_line,
    manifests,
    prepared,
    why_pending,
    why_stuck,
)
from sandbox.demo.processes import Daemons, DemoError


def test_the_agent_may_do_what_the_steps_do_and_only_in_its_namespace() -> None:
    role, binding, pod = yaml.safe_load_all(manifests("agent:robot", "acme/demo", 8080))
    assert {each["metadata"]["namespace"] for each in (role, binding, pod)} == {NAMESPACE}
    assert (role["kind"], binding["roleRef"]["kind"]) == ("Role", "Role")
    assert [subject["name"] for subject in binding["subjects"]] == ["agent:robot", "acme/demo"]
    granted = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert {"pods/exec", "pods/portforward", "pods/log"} <= granted
    assert not granted & {"*", "secrets"}


def test_the_pod_serves_the_port_that_is_forwarded() -> None:
    *_, pod = yaml.safe_load_all(manifests("agent:robot", "acme/demo", 8123))
    [container] = pod["spec"]["containers"]
    assert pod["metadata"]["name"] == POD
    assert "http.server 8123" in container["command"][-1]
    assert container["ports"] == [{"containerPort": 8123}]


def test_the_last_line_is_what_kubectl_means() -> None:
    assert last_line("E1 memcache\nThe connection was refused\n\n") == "The connection was refused"
    assert last_line("") == "no message"


UNPULLABLE = "registry.invalid/tools/workbench:1"
RBAC = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: hawse-relay-impersonation, labels: {app.kubernetes.io/managed-by: hawse}}
rules: []
"""


@pytest.mark.kubectl
def test_an_image_that_cannot_be_pulled_is_named_with_the_pods_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    # 20 s on a real cluster, in which a kubelet tries a few times.
    monkeypatch.setattr("sandbox.demo.cluster.POD_PATIENCE_S", 3)
    documents = list(yaml.safe_load_all(manifests("agent:robot", "acme/demo", 8080)))
    documents[2]["spec"]["containers"][0]["image"] = UNPULLABLE
    objects = yaml.safe_dump_all(documents)
    with Daemons(tmp_path) as daemons:
        daemons.start(
            "sandbox", [sys.executable, "-m", "sandbox", "--dir", str(tmp_path / "cluster")]
        ).wait_for("ready ")
        administrator = Administrator(tmp_path / "cluster" / "admin.kubeconfig")
        began_s = time.monotonic()
        with pytest.raises(DemoError) as caught:
            with prepared(administrator, namespace=NAMESPACE, rbac=RBAC, objects=objects):
                pass
        assert time.monotonic() - began_s < 30
        said = str(caught.value)
        assert f"pod {POD} in namespace {NAMESPACE} does not start: ImagePullBackOff: " in said
        assert UNPULLABLE in said
        assert "no such host" in said
        assert "\n" not in said
        # It is still cleaned up.
        administrator.check(NAMESPACE, "hawse")


def test_what_may_still_start_is_waited_for() -> None:
    for reason in ("ContainerCreating", "PodInitializing"):
        assert why_stuck({"containerStatuses": [{"state": {"waiting": {"reason": reason}}}]}) == ""
    assert why_stuck({"containerStatuses": [{"state": {"running": {}}}]}) == ""
    assert why_stuck({}) == ""
    crashed = {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}}
    assert why_stuck({"initContainerStatuses": [crashed]}) == "CrashLoopBackOff: back-off 10s"
    full = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    assert why_pending({"conditions": [full]}) == "PodScheduled: 0/1 nodes are available"
    assert why_pending({}) == ""
