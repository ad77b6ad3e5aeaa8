"""Calls that wait: an exec over both protocols, how a call ends around its approval, a hub that leaves."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.system.approvals.effects import config_map
from tests.system.approvals.scene import DEADLINE_S, HELD, LATER, Row, Scene
from tests.system.approvals.scene import POLICY as APPROVALS
from tests.system.waiting import wait_until
from tests.system.world import POD, WAYS, Result

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

WAIT_S = 4
POLICY = f"""
kind: Policy
metadata: {{name: waiting}}
spec:
  bind: {{teams: ["*"]}}
  rules:
    - {{id: exec, effect: ask, verbs: [create, get], resources: [pods/exec], reason: sessions are looked at,
       ask: {{approvers: ["ann@example.com"], wait: {WAIT_S}s, interactive: true}}}}
    - {{id: create, effect: ask, verbs: [create], resources: [configmaps], reason: new ones are looked at,
       ask: {{approvers: ["ann@example.com"], wait: 45s}}}}
"""
DENIES = """
kind: Policy
metadata: {name: denying}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: no-exec, effect: deny, verbs: [create], resources: [pods/exec]}
"""
EXEC = ("exec", "-i", POD, "--", "cat")


@pytest.fixture(scope="module")
def waiting(scene: Scene) -> Iterator[Scene]:
    apply(scene, POLICY, "waiting")
    yield scene
    scene.world.admin("policy", "remove", "waiting")


def apply(scene: Scene, policy: str, name: str) -> None:
    file = scene.world.folder / f"{name}.yaml"
    file.write_text(policy)
    scene.world.admin("policy", "apply", str(file))


def start_exec(scene: Scene) -> tuple[subprocess.Popen[bytes], Row]:
    """Start an approved exec, and wait until it runs."""
    process = scene.world.popen("tunnel", *EXEC)
    row = scene.waiting("pods/exec")
    scene.approve(row)
    assert echoed(process, b"hello\n")
    return process, row


def echoed(process: subprocess.Popen[bytes], line: bytes) -> bool:
    """Whether the command in the pod sends a line back."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    got = process.stdout.readline()
    assert got == line, process.communicate(timeout=DEADLINE_S)
    return True


def finished(process: subprocess.Popen[bytes], deadline_s: float = DEADLINE_S) -> Result:
    out, err = process.communicate(timeout=deadline_s)
    return Result(process.returncode, out, err)


def test_an_exec_waits_once_and_comes_back_over_spdy_as_the_same_request(waiting: Scene) -> None:
    began = time.monotonic()
    refused = waiting.kubectl(*EXEC)
    assert refused.code == 1
    # Held a second time, over SPDY, it would have taken twice as long.
    assert time.monotonic() - began < 2 * WAIT_S
    row = waiting.waiting("pods/exec")
    assert str(row["id"]).encode() in refused.err
    assert row["interactive"] is True
    waiting.approve(row)
    # A client that only knows SPDY finds the approval of the call over WebSocket.
    done = waiting.world.kubectl("tunnel", *EXEC, stdin=b"hello\n", spdy=True)
    assert (done.code, done.out) == (0, b"hello\n"), done.err
    assert waiting.ended(row) == "used"
    waiting.age(row)


def test_an_approved_exec_ends_when_its_approval_is_revoked(waiting: Scene) -> None:
    process, row = start_exec(waiting)
    try:
        waiting.approver.post("requests", str(row["id"]), "revoke")
        assert finished(process).code != 0
    finally:
        process.kill()
        process.wait()
    assert waiting.shown(row)["state"] == "revoked"


def test_an_approved_exec_ends_when_a_policy_denies_it_and_not_by_the_rule_that_asked(waiting: Scene) -> None:
    process, row = start_exec(waiting)
    try:
        # It is judged again, and its rule still asks.
        apply(waiting, POLICY.replace("new ones", "they"), "waiting")
        assert echoed(process, b"still here\n")
        apply(waiting, DENIES, "denying")
        assert finished(process).code != 0
    finally:
        process.kill()
        process.wait()
        waiting.world.admin("policy", "remove", "denying")
    waiting.age(row)


def test_a_lock_ends_a_call_that_waits(waiting: Scene) -> None:
    name = waiting.named(HELD)
    waiting.create(config_map(name))
    process = waiting.world.popen("tunnel", "delete", "configmap", name)
    try:
        row = waiting.waiting(name)
        waiting.world.admin("agent", "lock", "probe")
        done = finished(process)
        # No later approval counts.
        assert waiting.ended(row) == "cancelled"
    finally:
        process.kill()
        process.wait()
        waiting.world.admin("agent", "unlock", "probe")
    assert (done.code, b"is locked" in done.err) == (1, True), done.err
    assert (waiting.is_there(name), waiting.writes(name)) == (True, [])


def test_a_client_that_is_killed_as_the_approval_comes_is_not_served(waiting: Scene) -> None:
    name = waiting.named(HELD)
    waiting.create(config_map(name))
    with waiting.world.popen("tunnel", "delete", "configmap", name) as process:
        row = waiting.waiting(name)
        process.kill()
    waiting.approve(row)
    assert (waiting.is_there(name), waiting.writes(name)) == (True, [])
    # The approval is still there for the same command.
    done = waiting.kubectl("delete", "configmap", name)
    assert (done.code, waiting.ended(row)) == (0, "used"), done.err
    assert waiting.writes(name) == [200]


@pytest.mark.parametrize("way", WAYS)
def test_a_body_of_a_hundred_kilobytes_waits_and_arrives_whole(waiting: Scene, way: str) -> None:
    name = f"{waiting.named('large')}-{way}"
    text = "0123456789abcdef" * 9_000
    file = waiting.world.folder / "large.txt"
    file.write_text(text)
    process = waiting.world.popen(way, "create", "configmap", name, f"--from-file=text={file}")
    try:
        waiting.approve(waiting.waiting("create configmaps"))
        done = finished(process)
    finally:
        process.kill()
        process.wait()
    assert done.code == 0, done.err
    assert waiting.value("configmap", name, "{.data.text}") == text


def test_a_hub_that_is_replaced_refuses_what_waits_and_the_next_one_serves_the_repeat(waiting: Scene) -> None:
    name = waiting.named(HELD)
    waiting.create(config_map(name))
    delete = ("delete", "configmap", name)
    process = waiting.world.popen("tunnel", *delete)
    try:
        row = waiting.waiting(name)
        began = time.monotonic()
        waiting.world.replace_hub()
        done = finished(process)
    finally:
        process.kill()
        process.wait()
    assert (done.code, str(row["id"]).encode() in done.err) == (1, True), done.err
    assert time.monotonic() - began < DEADLINE_S
    waiting.approve(row)
    # Its relay may still be on its way to the new hub.
    wait_until(lambda: waiting.kubectl(*delete).code == 0, DEADLINE_S)
    assert waiting.ended(row) == "used"
    assert waiting.writes(name) == [200]
    assert not waiting.is_there(name)


def test_a_request_ends_when_its_rule_asks_no_more(waiting: Scene) -> None:
    name = waiting.named(LATER)
    waiting.create(config_map(name))
    delete = ("delete", "configmap", name)
    assert waiting.kubectl(*delete).code == 1
    row = waiting.waiting(name)
    waiting.world.admin("policy", "remove", "approvals")
    try:
        assert waiting.ended(row) == "cancelled"
        assert waiting.kubectl(*delete).code == 0
    finally:
        apply(waiting, APPROVALS, "approvals")
