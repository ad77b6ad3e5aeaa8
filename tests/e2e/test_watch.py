"""Watches and waits: events come as they happen, and the end is clean."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

import pytest

from tests.system.load import parallel, streaming
from tests.system.raw import RawClient
from tests.system.world import NAMESPACE, POD, WAYS, World

CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
# An event that is held back until the next one, or until a buffer is full, takes for ever.
PROMPT_S = 2.0
WATCHES = 100
CHANGES = 20


@pytest.mark.parametrize("way", WAYS)
def test_each_event_comes_before_the_next_is_made(world: World, way: str) -> None:
    name = f"watched-{way}"
    assert world.kubectl(way, "create", "configmap", name, "--from-literal=a=0").code == 0
    watching = world.popen(way, "get", "configmap", name, "--watch", "-o", "jsonpath={.data.a}{'\\n'}")
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"0\n"
        for value in ("1", "2", "3"):
            patch = json.dumps({"data": {"a": value}})
            assert world.kubectl(way, "patch", "configmap", name, "-p", patch).code == 0
            written = time.monotonic()
            assert watching.stdout.readline() == f"{value}\n".encode()
            assert time.monotonic() - written < PROMPT_S
    finally:
        watching.kill()
        watching.communicate()


@pytest.mark.parametrize("way", WAYS)
def test_a_watch_whose_time_is_over_ends_cleanly(world: World, way: str) -> None:
    answer = RawClient(world, way).get(f"{CONFIG_MAPS}?watch=1&timeoutSeconds=2&resourceVersion=0")
    assert (answer.status, answer.headers["transfer-encoding"]) == (200, "chunked")
    assert answer.body.endswith(b"\r\n0\r\n\r\n") or answer.body == b"0\r\n\r\n"


@pytest.mark.parametrize("way", WAYS)
def test_bookmarks_come_and_events_are_whole_lines(world: World, way: str) -> None:
    client = RawClient(world, way)
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    with streaming(client, client.token(), f"{CONFIG_MAPS}?{query}") as watch:
        assert watch.status == 200
        kinds = []
        while "BOOKMARK" not in kinds:
            kinds.append(json.loads(watch.readline())["type"])
    assert set(kinds) == {"ADDED", "BOOKMARK"}


@pytest.mark.parametrize("way", WAYS)
def test_wait_ends_when_it_has_come_true(world: World, way: str) -> None:
    name = f"awaited-{way}"
    created = world.kubectl(way, "create", "configmap", name, "--from-literal=a=0")
    assert created.code == 0, created.err
    ready = world.kubectl(way, "wait", "--for=condition=Ready", f"pod/{POD}", "--timeout=30s")
    assert ready == world.kubectl("straight", "wait", "--for=condition=Ready", f"pod/{POD}", "--timeout=30s")
    waiting = [
        (
            world.popen(way, "wait", "--for=jsonpath={.data.a}=1", f"configmap/{name}", "--timeout=60s"),
            "patch",
        ),
        (world.popen(way, "wait", "--for=delete", f"configmap/{name}", "--timeout=60s"), "delete"),
    ]
    for process, change in waiting:
        more = ("-p", '{"data":{"a":"1"}}') if change == "patch" else ()
        changed = world.kubectl(way, change, "configmap", name, *more)
        assert changed.code == 0, changed.err
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, f"configmap/{name} condition met\n".encode()), err
    late = world.kubectl(way, "wait", "--for=condition=Never", f"pod/{POD}", "--timeout=1s")
    straight = world.kubectl("straight", "wait", "--for=condition=Never", f"pod/{POD}", "--timeout=1s")
    assert (late.code, late.err.splitlines()[-1]) == (straight.code, straight.err.splitlines()[-1])


def test_a_hundred_watches_on_one_tunnel_lose_nothing(world: World) -> None:
    client = RawClient(world, "tunnel")
    token = client.token()
    name = "soaked"
    assert world.kubectl("tunnel", "create", "configmap", name, "--from-literal=a=none").code == 0
    path = f"{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3D{name}"
    with ExitStack() as stack:
        watches = [stack.enter_context(streaming(client, token, path)) for _ in range(WATCHES)]
        assert {watch.status for watch in watches} == {200}
        expected = [str(number) for number in range(CHANGES)]
        for value in expected:
            patch = json.dumps({"data": {"a": value}})
            world.administrator("patch", "configmap", name, f"--namespace={NAMESPACE}", "-p", patch)

        def seen(number: int) -> list[str]:
            values: list[str] = []
            while expected[-1] not in values:
                values.append(json.loads(watches[number].readline())["object"]["data"]["a"])
            return [value for value in values if value != "none"]

        assert parallel(WATCHES, seen) == [expected] * WATCHES
