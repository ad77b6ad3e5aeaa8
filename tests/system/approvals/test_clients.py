"""Unmodified clients whose calls are asked about: kubectl of two versions, and the official Python client.

Helm and client-node are in tests/clients.
"""

from __future__ import annotations

import sys

import pytest

from tests.programs import installed
from tests.system.approvals.scenarios import approved_while_it_waits, repeated_after_its_approval
from tests.system.approvals.scene import Program, Scene
from tests.system.world import NAMESPACE

pytestmark = pytest.mark.kubectl

CLIENTS = ["kubectl", "older kubectl", "python"]


def program(scene: Scene, client: str) -> Program:
    if client == "python":
        return scene.program(sys.executable, "-m", "tests.system.approvals.by_python", NAMESPACE)
    # Debian 13 has kubectl 1.32. The one of the environment is 1.37.
    older = client == "older kubectl"
    binary = installed("kubectl", "kubectl", path="/usr/bin:/usr/local/bin") if older else "kubectl"
    return scene.program(binary, "delete", "configmap", f"--namespace={NAMESPACE}")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_call_that_waits_succeeds_once_it_is_approved(scene: Scene, client: str) -> None:
    approved_while_it_waits(scene, program(scene, client))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_call_that_is_refused_succeeds_when_it_is_repeated_after_its_approval(
    scene: Scene, client: str
) -> None:
    repeated_after_its_approval(scene, program(scene, client))
