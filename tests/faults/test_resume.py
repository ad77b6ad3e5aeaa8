"""What kubectl sees of a tunnel that is cut: nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.control import Way
from tests.faults.trail import closing
from tests.faults.world import CLUSTER, FaultWorld
from tests.system.world import NAMESPACE, POD

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

MIB = 1024 * 1024


@contextmanager
def cut_now_and_then(world: FaultWorld, chance: random.Random) -> Iterator[None]:
    """Cut the tunnel again and again, at some byte of what passes."""
    over = threading.Event()

    def cut() -> None:
        while not over.wait(chance.uniform(0.2, 0.7)):
            way = chance.choice((Way.UP, Way.DOWN))
            world.tunnel.cut(after=chance.randrange(1, 200_000), way=way)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def sessions(world: FaultWorld) -> int:
    """How many sessions the relay has begun."""
    return len(world.relay_says("is up, session"))


def comebacks(world: FaultWorld) -> int:
    return len(world.relay_says("is back, session"))


def test_an_exec_is_cut_and_gives_every_byte(world: FaultWorld) -> None:
    """A filter that is fed and read while the tunnel is cut at any byte, both ways."""
    world.tunnel.shape(mbit=40)
    content = random.Random(1).randbytes(6 * MIB)
    began, back = sessions(world), comebacks(world)
    with cut_now_and_then(world, random.Random(2)):
        done = world.kubectl(CLUSTER, "exec", "-i", POD, "--", "cat", stdin=content, deadline_s=120)
    assert (done.code, done.err) == (0, b"")
    assert hashlib.sha256(done.out).digest() == hashlib.sha256(content).digest()
    assert sessions(world) == began
    assert comebacks(world) >= back + 2
    event = closing(world, "exec")
    assert event["stream"]["bytes_out"] > len(content)
    assert event["tunnel"]["detaches"] >= 2
    assert event["tunnel"]["gap_ms"] > 0


def test_a_shell_goes_on_after_an_outage_of_some_seconds(world: FaultWorld) -> None:
    """Typed while the network is away, answered when it is back, and nothing printed about it."""
    shell = world.popen(CLUSTER, "exec", "-i", POD, "--", "sh")
    assert shell.stdin is not None
    assert shell.stdout is not None
    try:
        shell.stdin.write(b"echo one\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == b"one\n"
        world.tunnel.cut()
        world.tunnel.refuse(3.0)
        shell.stdin.write(b"echo two; exit 3\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == b"two\n"
        out, err = shell.communicate(timeout=30)
        assert (out, err, shell.returncode) == (b"", b"command terminated with exit code 3\n", 3)
    finally:
        shell.kill()
        shell.wait()


def test_logs_and_a_watch_go_on(world: FaultWorld) -> None:
    name = "talker"
    script = "for i in $(seq 1 40); do echo line $i; sleep 0.1; done; echo end"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "command": ["sh", "-c", script],
                }
            ]
        },
    }
    before = len(world.cluster_audit())
    watch = world.popen(CLUSTER, "get", "configmaps", "--watch-only", "--output=name")
    try:
        # It shows nothing of what was there before it began.
        world.until(
            lambda: (
                ("watch", "ResponseStarted")
                in [(line["verb"], line["stage"]) for line in world.cluster_audit()[before:]]
            ),
            "the watch has begun",
        )
        world.administrator("apply", "-f", "-", stdin=json.dumps(pod).encode())
        world.administrator(
            "wait", "--for=condition=Ready", f"pod/{name}", f"--namespace={NAMESPACE}", "--timeout=20s"
        )
        with cut_now_and_then(world, random.Random(3)):
            for number in range(20):
                args = ("create", "configmap", f"seen-{number}", f"--namespace={NAMESPACE}")
                world.administrator(*args)
            done = world.kubectl(CLUSTER, "logs", "--follow", name, deadline_s=60)
        assert (done.code, done.err) == (0, b"")
        assert done.out.splitlines() == [b"line %d" % number for number in range(1, 41)] + [b"end"]
        assert watch.stdout is not None
        seen = [watch.stdout.readline().strip() for _ in range(20)]
        assert seen == [b"configmap/seen-%d" % number for number in range(20)]
    finally:
        watch.kill()
        watch.communicate()
        for args in (("pod", name), ("configmaps", "--all")):
            world.administrator("delete", *args, f"--namespace={NAMESPACE}", "--wait=false")


def test_a_forwarded_port_and_a_copy_go_on(world: FaultWorld, echo_port: int, tmp_path: Path) -> None:
    world.tunnel.shape(mbit=40)
    content = os.urandom(4 * MIB)
    forwarding = world.popen(CLUSTER, "port-forward", f"pod/{POD}", f":{echo_port}", "--address=127.0.0.1")
    try:
        assert forwarding.stdout is not None
        local = int(forwarding.stdout.readline().split(b"127.0.0.1:")[1].split(b" ")[0])
        with cut_now_and_then(world, random.Random(4)):
            with socket.create_connection(("127.0.0.1", local), 60) as connection:
                sender = threading.Thread(
                    target=lambda: (connection.sendall(content), connection.shutdown(socket.SHUT_WR))
                )
                sender.start()
                received = bytearray()
                while data := connection.recv(65536):
                    received += data
                sender.join()
            assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()
            (tmp_path / "there").write_bytes(content)
            for source, target in (
                (str(tmp_path / "there"), f"{POD}:/tmp/copied"),
                (f"{POD}:/tmp/copied", str(tmp_path / "back")),
            ):
                done = world.kubectl(CLUSTER, "cp", source, target, deadline_s=60)
                assert (done.code, done.err) == (0, b"")
        assert (tmp_path / "back").read_bytes() == content
    finally:
        forwarding.kill()
        _, err = forwarding.communicate()
    assert err == b""


def test_a_write_that_is_under_way_at_a_cut_is_done_once(world: FaultWorld) -> None:
    world.run("create", "configmap", "counted")
    for number in range(10):
        # Behind so many bytes of the request, or of its answer.
        way = Way.DOWN if number % 2 else Way.UP
        world.tunnel.cut(after=30 + 60 * number, way=way)
        world.run("create", "configmap", f"once-{number}")
    names = world.run("get", "configmaps", "--output=name").decode().split()
    assert sorted(name for name in names if "once-" in name) == [
        f"configmap/once-{number}" for number in range(10)
    ]
    # A second execution would have been told that it exists already; and the API server has counted.
    created = [
        line
        for line in world.cluster_audit()
        if line.get("verb") == "create" and "once-" in str(line.get("objectRef", ""))
    ]
    assert len(created) in (0, 10)
    world.administrator("delete", "configmaps", "--all", f"--namespace={NAMESPACE}")


def test_a_request_while_the_tunnel_is_away_waits_for_it_or_is_told(world: FaultWorld) -> None:
    world.tunnel.refuse()
    world.tunnel.cut()
    began = time.monotonic()
    done = world.kubectl(CLUSTER, "get", "pods")
    assert done.code != 0
    assert b"its relay has lost its connection, and is not back yet" in done.err
    assert time.monotonic() - began < 10
    world.tunnel.accept()
    world.until(lambda: world.kubectl(CLUSTER, "get", "pods").code == 0, "the cluster is back")
    world.tunnel.cut()
    assert POD.encode() in world.run("get", "pods")


def test_a_relay_that_dies_takes_its_streams_along(world: FaultWorld) -> None:
    """Its successor of the same name knows nothing of them, and the hub lets go of them at once."""
    shell = world.popen(CLUSTER, "exec", "-i", POD, "--", "sh", "-c", "echo up; sleep 60")
    assert shell.stdout is not None
    assert shell.stdout.readline() == b"up\n"
    world.relays["relay-0"].process.send_signal(signal.SIGKILL)
    world.relays["relay-0"].process.wait()
    time.sleep(0.3)
    assert shell.poll() is None
    world.fresh_relay()
    _, err = shell.communicate(timeout=20)
    assert shell.returncode != 0
    assert err


@pytest.mark.long
def test_what_is_away_for_too_long_is_lost_on_both_sides(world: FaultWorld) -> None:
    shell = world.popen(CLUSTER, "exec", "-i", POD, "--", "sh", "-c", "echo up; sleep 600")
    assert shell.stdout is not None
    assert shell.stdout.readline() == b"up\n"
    world.tunnel.refuse()
    world.tunnel.cut()
    began = time.monotonic()
    _, err = shell.communicate(timeout=90)
    assert 50 < time.monotonic() - began < 75
    assert shell.returncode != 0
    assert err
    world.until(lambda: world.relay_says("away for 60 s"), "the relay has given up as well")
    event = closing(world, "exec")
    assert event["stream"]["close_reason"]
    assert event["tunnel"]["detaches"] == 1
    assert event["tunnel"]["gap_ms"] > 50_000
    assert event["resp"]["processed"] != "no"
