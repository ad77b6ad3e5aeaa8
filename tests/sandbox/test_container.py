"""A container's spec and states as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sandbox.container import ContainerSpec, Running, Terminated, Waiting, expand

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_spec_is_read_from_a_manifest() -> None:
    manifest = {
        "name": "main",
        "image": "busybox:1",
        "command": ["sh", "-c"],
        "args": ["echo $(GREETING)", 3],
        "workingDir": "/srv",
        "stdin": True,
        "stdinOnce": True,
        "tty": False,
    }
    assert ContainerSpec.from_manifest(manifest, {"GREETING": "hello"}) == ContainerSpec(
        name="main",
        image="busybox:1",
        command=("sh", "-c", "echo hello", "3"),
        environment={"GREETING": "hello"},
        working_directory="/srv",
        stdin=True,
        stdin_once=True,
    )


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)-$(B)", "1-2"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$A $(A", "$A $(A"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


def test_states_have_the_form_of_the_api() -> None:
    assert Waiting("ContainerCreating").to_json() == {"waiting": {"reason": "ContainerCreating"}}
    assert Waiting("CrashLoopBackOff", "why").to_json() == {
        "waiting": {"reason": "CrashLoopBackOff", "message": "why"}
    }
    assert Running(MOMENT).to_json() == {"running": {"startedAt": "2026-01-02T03:04:05Z"}}
    assert Terminated(3, MOMENT, MOMENT, "sandbox://1").to_json() == {
        "terminated": {
            "exitCode": 3,
            "reason": "Error",
            "startedAt": "2026-01-02T03:04:05Z",
            "finishedAt": "2026-01-02T03:04:05Z",
            "containerID": "sandbox://1",
        }
    }
    assert Terminated(0, MOMENT, MOMENT, "x").reason == "Completed"
    assert Terminated(128, MOMENT, MOMENT, "x", "no such file").reason == "StartError"
