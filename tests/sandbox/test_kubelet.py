"""Pods as real processes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from sandbox.kinds import CONFIG_MAPS, EVENTS, NODES, PODS, SECRETS
from sandbox.kubelet import Kubelet
from sandbox.objects import Json, Object, child, items, lookup, text
from sandbox.options import Deletion
from sandbox.processes import Registry
from sandbox.recorder import EventRecorder
from sandbox.server import ClientGone, Streamed
from tests.sandbox.world import World

LOG = "/api/v1/namespaces/default/pods/p/log"


def pod(script: str = "exec sleep 100", **spec: Json) -> Object:
    container: Object = {"name": "main", "image": "i", "command": ["sh", "-c", script]}
    return {
        "metadata": {"name": "p", "labels": {"app": "x"}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1, **spec},
    }


@pytest.fixture
async def node(world: World, registry: Registry) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Kubelet(world.store, registry, EventRecorder(world.store)).run)
        await trio.testing.wait_all_tasks_blocked()
        yield world
        nursery.cancel_scope.cancel()


async def until(world: World, test: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not test():
            await world.store.changed.wait()


async def first_line(world: World) -> bytes:
    """Follow the log until a line arrives."""
    answer = await world.ask("GET", f"{LOG}?follow=true")
    assert isinstance(answer, Streamed)
    data = bytearray()

    async def send(chunk: bytes) -> None:
        data.extend(chunk)
        if data.endswith(b"\n"):
            raise ClientGone

    with trio.fail_after(10), contextlib.suppress(ClientGone):
        await answer.produce(send)
    return bytes(data)


def phase(world: World) -> str:
    return text(world.status(PODS, "p"), "phase")


async def test_a_pod_runs_and_says_so(node: World) -> None:
    node.writer.create(PODS, "default", pod("echo hello; exec sleep 100"))
    await until(node, lambda: phase(node) == "Running")
    status = node.status(PODS, "p")
    assert {text(each, "type"): text(each, "status") for each in items(status, "conditions")} == {
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "Ready": "True",
        "ContainersReady": "True",
        "PodScheduled": "True",
    }
    assert (text(status, "podIP"), bool(text(status, "startTime"))) == ("127.0.0.1", True)
    assert await first_line(node) == b"hello\n"
    reasons = [text(item.value, "reason") for item in node.store.collection("", EVENTS.resource).items()]
    assert set(reasons) == {"Scheduled", "Pulled", "Created", "Started"}


async def test_a_pod_that_ends_is_done(node: World) -> None:
    node.writer.create(PODS, "default", pod("exit 3", restartPolicy="Never"))
    await until(node, lambda: phase(node) == "Failed")
    status = node.status(PODS, "p")
    [container] = items(status, "containerStatuses")
    assert lookup(container, "state", "terminated", "exitCode") == 3
    ready = next(each for each in items(status, "conditions") if each["type"] == "Ready")
    assert (ready["status"], ready["message"]) == ("False", "containers with unready status: [main]")
    # It has no processes left, and is gone at once.
    assert node.writer.delete(PODS, "default", "p")[1]


async def test_a_deleted_pod_stops_before_it_is_gone(node: World, registry: Registry) -> None:
    node.writer.create(PODS, "default", pod())
    await until(node, lambda: phase(node) == "Running")
    uid = text(node.writer.found(PODS, "default", "p").value, "metadata", "uid")
    _, gone = node.writer.delete(PODS, "default", "p")
    assert not gone
    await until(node, lambda: node.names(PODS) == [])
    assert registry.get(uid) is None


async def test_a_pod_removed_by_force_is_killed_afterwards(node: World, registry: Registry) -> None:
    node.writer.create(PODS, "default", pod("trap '' TERM; while :; do sleep 1; done"))
    await until(node, lambda: phase(node) == "Running")
    uid = text(node.writer.found(PODS, "default", "p").value, "metadata", "uid")
    processes = registry.get(uid)
    assert processes is not None
    assert node.writer.delete(PODS, "default", "p", Deletion(grace_s=0))[1]
    await trio.testing.wait_all_tasks_blocked()
    assert processes.grace_s == 0
    with trio.fail_after(10):
        # A second call also waits for the end.
        await registry.stop(uid, grace_s=0)
    assert registry.get(uid) is None


async def test_the_environment_comes_from_where_the_pod_says(node: World) -> None:
    node.writer.create(CONFIG_MAPS, "default", {"metadata": {"name": "c"}, "data": {"k": "from-map"}})
    node.writer.create(SECRETS, "default", {"metadata": {"name": "s"}, "stringData": {"k": "from-secret"}})
    value = pod("echo $A $B $C $D $PRE_k; exec sleep 100")
    child(items(value, "spec", "containers")[0]).update(
        {
            "envFrom": [{"prefix": "PRE_", "configMapRef": {"name": "c"}}],
            "env": [
                {"name": "A", "value": "plain"},
                {"name": "B", "value": "$(A)-again"},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k"}}},
            ],
        }
    )
    node.writer.create(PODS, "default", value)
    await until(node, lambda: phase(node) == "Running")
    assert await first_line(node) == b"plain plain-again from-secret x from-map\n"


async def test_a_cordoned_node_takes_no_pods_until_it_is_back(node: World) -> None:
    def cordon(value: Object, *, on: bool) -> Object:
        child(value, "spec")["unschedulable"] = on
        return value

    node.writer.update(NODES, "", "sandbox", lambda value: cordon(value, on=True))
    node.writer.create(PODS, "default", pod())
    await trio.testing.wait_all_tasks_blocked()
    assert phase(node) == "Pending"
    node.writer.update(NODES, "", "sandbox", lambda value: cordon(value, on=False))
    await until(node, lambda: phase(node) == "Running")


async def test_an_ephemeral_container_joins(node: World) -> None:
    node.writer.create(PODS, "default", pod())
    await until(node, lambda: phase(node) == "Running")
    added: Object = {"spec": {"ephemeralContainers": [{"name": "debugger", "image": "i"}]}}
    await node.object(
        "PATCH",
        "/api/v1/namespaces/default/pods/p/ephemeralcontainers",
        added,
        content_type="application/strategic-merge-patch+json",
    )
    await until(node, lambda: bool(items(node.status(PODS, "p"), "ephemeralContainerStatuses")))


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("?container=other", "container other is not valid for pod p"),
        ("?tailLines=x", 'parsing "x": invalid syntax'),
        ("?sinceTime=x", 'parsing time "x"'),
        ("?previous=true", "previous terminated container"),
    ],
)
async def test_logs_that_cannot_be_had(node: World, query: str, part: str) -> None:
    node.writer.create(PODS, "default", pod())
    await until(node, lambda: phase(node) == "Running")
    with pytest.raises(Exception, match=part.replace("(", r"\(")) as caught:
        await node.ask("GET", LOG + query)
    assert getattr(caught.value, "code", 0) == 400


async def test_a_pod_without_a_node_has_no_streams(world: World) -> None:
    world.writer.create(PODS, "default", pod())
    for path in ("log", "exec"):
        with pytest.raises(Exception, match="does not have a host assigned"):
            await world.ask("GET", f"/api/v1/namespaces/default/pods/p/{path}")
