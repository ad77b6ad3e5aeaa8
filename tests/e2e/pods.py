"""Pods of a case's own, and kubectl that must succeed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from sandbox.demo.cluster import IMAGE, Administrator, wait_until_ready
from tests.system.world import NAMESPACE, World

# A command may wait for a pod whose image is pulled first.
READY_DEADLINE_S = 200.0


def unique(name: str, way: str, spdy: bool) -> str:
    return f"{name}-{way}-{'spdy' if spdy else 'ws'}"


def must(world: World, way: str, *args: str, spdy: bool = False, stdin: bytes | None = None) -> bytes:
    done = world.kubectl(way, *args, spdy=spdy, stdin=stdin, deadline_s=READY_DEADLINE_S)
    assert done.code == 0, f"kubectl {' '.join(args)}: {done.err.decode()}"
    return done.out


@contextlib.contextmanager
def pod(world: World, name: str, *command: str, **container: object) -> Iterator[str]:
    """A pod of the case's own, ready when the block begins."""
    main = {"name": "main", "image": IMAGE, "command": [*command], **container}
    value = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"case": name}},
        "spec": {"containers": [main], "terminationGracePeriodSeconds": 1},
    }
    where = f"--namespace={NAMESPACE}"
    world.administrator("create", where, "-f", "-", stdin=json.dumps(value).encode())
    try:
        wait_until_ready(Administrator(world.admin_kubeconfig), NAMESPACE, name)
        yield name
    finally:
        world.administrator("delete", "pod", name, where, "--ignore-not-found", "--wait=false")
