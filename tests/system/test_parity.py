"""Through Hawse a command prints and exits as it does at the API server itself, under the same identity."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.system.parity import STREAMING, ageless, echoed_by
from tests.system.waiting import wait_until
from tests.system.world import DEADLINE_S, NAMESPACE, POD, WAYS, World

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

PLAIN = [
    ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"],
    ["version", "-o", "json"],
    ["api-resources", "--sort-by=name"],
    ["get", "pods", "-o", "wide"],
    ["get", "pod", POD, "-o", "yaml"],
    ["get", "pods", "--chunk-size=1", "-l", f"app={POD}"],
    ["get", "pod", "missing"],
    ["describe", "pod", POD],
    ["explain", "pods.spec.containers"],
    ["auth", "can-i", "--list"],
    ["auth", "can-i", "delete", "nodes"],
    ["get", "--raw", "/healthz"],
    ["get", "nodes"],
    ["get", "secrets", "--namespace=kube-system"],
    ["logs", POD],
    ["logs", POD, "--tail=1", "--timestamps=false"],
    ["wait", "--for=condition=Ready", f"pod/{POD}", "--timeout=10s"],
]


EVENTS = """
  Type    Reason   Age{0}  From     Message
  ----    ------   ----{1}  ----     -------
  Normal  Started  {2}  kubelet  Container started: main
"""


def test_a_tick_of_the_clock_is_no_difference() -> None:
    def events(age: str) -> bytes:
        width = max(4, len(age))
        return EVENTS.format(" " * (width - 3), " " * (width - 4), age.ljust(width)).encode()

    assert len({ageless(events(age)) for age in ("9s", "10s", "119s", "2m", "2m10s")}) == 1
    assert ageless(events("9s")) != ageless(events("9s").replace(b"main", b"other"))
    assert ageless(b"NAME   AGE   IP\na      99s   ::1\n") == ageless(
        b"NAME   AGE    IP\na      100s   ::1\n"
    )


@pytest.mark.parametrize("args", PLAIN, ids=lambda args: " ".join(args)[:40])
def test_a_plain_command_prints_the_same(world: World, args: list[str]) -> None:
    straight = world.kubectl("straight", *args)
    through = world.kubectl("tunnel", *args)

    assert (through.code, ageless(through.out)) == (straight.code, ageless(straight.out)), through.err
    # A forbidden answer names the user: the same one both ways.
    assert through.err == straight.err


@pytest.mark.parametrize("way", WAYS)
def test_objects_are_written_as_straight(world: World, way: str) -> None:
    def lifecycle(by: str, name: str) -> list[tuple[int, bytes]]:
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"colour": "green"},
        }
        changed = manifest | {"data": {"colour": "blue"}}
        steps = [
            (["apply", "-f", "-"], manifest),
            (["apply", "-f", "-"], changed),
            (["apply", "--server-side", "--force-conflicts", "-f", "-"], changed),
            (["get", "configmap", name, "-o", "jsonpath={.data}"], None),
            (
                [
                    "patch",
                    "configmap",
                    name,
                    "--type=json",
                    "-p",
                    '[{"op":"add","path":"/data/a","value":"b"}]',
                ],
                None,
            ),
            (["label", "configmap", name, "tier=test"], None),
            (["get", "configmap", name, "-o", "jsonpath={.data} {.metadata.labels}"], None),
            (["create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/configmaps", "-f", "-"], manifest),
            (["delete", "configmap", name, "--wait=true"], None),
            (["get", "configmap", name], None),
        ]
        results = []
        for args, document in steps:
            done = world.kubectl(by, *args, stdin=json.dumps(document).encode() if document else None)
            results.append((done.code, (done.out + done.err).replace(name.encode(), b"NAME")))
        return results

    assert lifecycle(way, f"notes-{way}") == lifecycle("straight", f"straight-{way}")


def test_a_deployment_rolls_out(world: World) -> None:
    name = "web-" + os.urandom(3).hex()
    created = world.kubectl(
        "tunnel", "create", "deployment", name, "--image=busybox", "--replicas=2", "--", "sleep", "60"
    )
    assert created.code == 0, created.err
    status = world.kubectl("tunnel", "rollout", "status", f"deployment/{name}", "--timeout=20s")
    assert b"successfully rolled out" in status.out, status.err
    scaled = world.kubectl("tunnel", "scale", f"deployment/{name}", "--replicas=1")
    assert scaled.code == 0, scaled.err
    deleted = world.kubectl("tunnel", "delete", "deployment", name)
    assert deleted.code == 0, deleted.err


def begun_watches(world: World) -> list[dict[str, Any]]:
    """What the API server says of the watches that have begun."""
    lines = world.cluster_audit()
    return [line for line in lines if (line["verb"], line["stage"]) == ("watch", "ResponseStarted")]


@pytest.mark.parametrize("way", WAYS)
def test_a_watch_delivers_events_as_they_happen(world: World, way: str) -> None:
    name = f"watched-{way}"
    assert world.kubectl(way, "create", "configmap", name, "--from-literal=a=0").code == 0
    watching = world.popen(way, "get", "configmap", name, "--watch", "-o", "jsonpath={.data.a}{'\\n'}")
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"0\n"
        # That was of a get, and kubectl does not print what happens between that and its watch.
        wait_until(lambda: any(name in str(line["requestURI"]) for line in begun_watches(world)))
        for value in ("1", "2"):
            patch = json.dumps({"data": {"a": value}})
            assert world.kubectl(way, "patch", "configmap", name, "-p", patch).code == 0
            # The next line is not written before the next change: this returns only if nothing is held back.
            assert watching.stdout.readline() == f"{value}\n".encode()
    finally:
        watching.kill()
        watching.communicate()


@pytest.mark.parametrize(("way", "spdy"), STREAMING)
def test_exec_carries_both_outputs_stdin_and_the_exit_code(world: World, way: str, spdy: bool) -> None:
    script = "echo out; echo err >&2; exit 3"
    args = ["exec", POD, "--", "sh", "-c", script]
    through, straight = world.kubectl(way, *args, spdy=spdy), world.kubectl("straight", *args, spdy=spdy)
    assert through == straight
    assert (through.code, through.out) == (3, b"out\n")

    content = os.urandom(300_000)
    echoed = world.kubectl(way, "exec", "-i", POD, "--", "cat", stdin=content, spdy=spdy)
    assert (echoed.code, echoed.out) == (0, content), echoed.err


@pytest.mark.parametrize(("way", "spdy"), STREAMING)
def test_attach_reaches_the_running_process(world: World, way: str, spdy: bool) -> None:
    name = f"echo-{way}-{'spdy' if spdy else 'ws'}"
    # Reads one line from the attached client, answers, and ends.
    script = "read line; echo got $line; sleep 1"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "stdin": True,
                    "stdinOnce": True,
                    "command": ["sh", "-c", script],
                }
            ],
        },
    }
    assert world.kubectl(way, "apply", "-f", "-", stdin=json.dumps(pod).encode()).code == 0
    assert world.kubectl(way, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=10s").code == 0
    attached = world.kubectl(way, "attach", "-i", name, stdin=b"hello\n", spdy=spdy)
    assert b"got hello\n" in attached.out, attached.err


@pytest.mark.parametrize(("way", "spdy"), STREAMING)
def test_cp_keeps_every_byte_both_ways(world: World, way: str, spdy: bool, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(3_000_000))
    remote = f"copied-{way}-{spdy}"
    assert world.kubectl(way, "cp", str(there), f"{POD}:{remote}", spdy=spdy).code == 0
    copied = world.kubectl(way, "cp", f"{POD}:{remote}", str(back), spdy=spdy)
    assert copied.code == 0, copied.err
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(there.read_bytes()).digest()


@pytest.mark.parametrize(("way", "spdy"), STREAMING)
def test_port_forward_reaches_the_pods_port(world: World, way: str, spdy: bool, echo_port: int) -> None:
    forwarding = world.popen(
        way, "port-forward", f"pod/{POD}", f":{echo_port}", "--address=127.0.0.1", spdy=spdy
    )
    try:
        assert forwarding.stdout is not None
        found = re.search(rb"127\.0\.0\.1:(\d+)", forwarding.stdout.readline())
        assert found is not None
        for size in (1, 100_000, 1_000_000):
            content = os.urandom(size)
            received = echoed_by(int(found[1]), content)
            assert received == content
    finally:
        forwarding.kill()
        forwarding.communicate()


@pytest.mark.parametrize("way", WAYS)
def test_logs_follow_a_pod_to_its_end(world: World, way: str) -> None:
    name = f"counter-{way}"
    # It is there when `wait` looks, however late that is.
    script = "until [ -e go ]; do sleep 0.05; done; for i in 1 2 3; do echo line $i; sleep 0.2; done"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "command": ["sh", "-c", script],
                }
            ],
        },
    }
    assert world.kubectl(way, "apply", "-f", "-", stdin=json.dumps(pod).encode()).code == 0
    assert world.kubectl(way, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=10s").code == 0
    following = world.popen(way, "logs", "--follow", name)
    try:
        assert world.kubectl("straight", "exec", name, "--", "touch", "go").code == 0
        out, err = following.communicate(timeout=DEADLINE_S)
    finally:
        following.kill()
        following.wait()
    assert (following.returncode, out) == (0, b"line 1\nline 2\nline 3\n"), err
