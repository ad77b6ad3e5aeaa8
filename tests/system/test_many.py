"""Many at once over one tunnel, and one that stalls among them."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import ExitStack
from urllib.request import Request, urlopen

import pytest

from proxy.exchange.wire import CONNECTION_BYTES
from proxy.process.settings import MIB
from tests.system.load import execute, get, parallel, resident_kib, streaming, timed
from tests.system.raw import RawClient
from tests.system.victims import enrol_victim
from tests.system.world import DEADLINE_S, NAMESPACE, POD_PATH, WAYS, World

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

# A look at all calls every two seconds, on a busy machine.
COUNTED_WITHIN_S = 10.0


@pytest.fixture
def client(world: World) -> RawClient:
    return RawClient(world, "tunnel")


def test_two_hundred_gets_a_hundred_watches_and_fifty_execs_at_once(world: World, client: RawClient) -> None:
    token = client.token()
    # An agent may have 256 under way.
    watcher = RawClient(world, "tunnel", enrol_victim(world, "watcher").api_key)
    watcher_token = watcher.token()
    created = world.kubectl("tunnel", "create", "configmap", "watched-by-many", "--from-literal=a=0")
    assert created.code == 0, created.err
    selector = "fieldSelector=metadata.name%3Dwatched-by-many"
    watched = f"/api/v1/namespaces/{NAMESPACE}/configmaps?watch=1&{selector}"

    def get_or_execute(number: int) -> tuple[object, bytes]:
        if number % 5:
            return get(client, token, POD_PATH)[0], b""
        out, status = execute(client, token, "echo", f"I am {number}")
        return status["status"], out

    with ExitStack() as stack:
        watches = [stack.enter_context(streaming(watcher, watcher_token, watched)) for _ in range(100)]
        assert {watch.status for watch in watches} == {200}

        results = parallel(250, get_or_execute)
        for number, (status, out) in enumerate(results):
            expected = (200, b"") if number % 5 else ("Success", f"I am {number}\n".encode())
            assert (status, out) == expected

        patch = json.dumps({"data": {"a": "changed"}})
        patched = world.kubectl("tunnel", "patch", "configmap", "watched-by-many", "-p", patch)
        assert patched.code == 0, patched.err

        def see_change(number: int) -> bool:
            while line := watches[number].readline():
                if json.loads(line)["object"].get("data") == {"a": "changed"}:
                    return True
            return False

        assert all(parallel(100, see_change))


@pytest.mark.parametrize("way", WAYS)
def test_hub_and_relay_tell_how_full_their_memory_is(world: World, way: str) -> None:
    client = RawClient(world, way)
    token = client.token()
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps?watch=1"
    at_least = 20 * CONNECTION_BYTES * (2 if way == "direct" else 1)
    with ExitStack() as stack:
        watches = [stack.enter_context(streaming(client, token, path)) for _ in range(20)]
        assert {watch.status for watch in watches} == {200}
        deadline = time.monotonic() + COUNTED_WITHIN_S
        while min(page['hawse_memory_bytes{by="calls"}'] for page in scraped(world, way)) < at_least:
            assert time.monotonic() < deadline, scraped(world, way)
            time.sleep(0.1)
    hub, relay = scraped(world, way)
    assert hub["hawse_memory_limit_bytes"] == 1024 * MIB
    assert relay["hawse_memory_limit_bytes"] == 320 * MIB
    # A tunnel holds the agents' tokens at least; in direct mode there is none.
    assert bool(relay['hawse_memory_bytes{by="tunnels"}']) == (way == "tunnel")


def scraped(world: World, way: str) -> list[dict[str, float]]:
    """The samples that Prometheus gets of the hub, and of the relay of a way."""
    admin = world.administration
    as_operator = {"Authorization": f"Bearer {admin.token}"}
    pages = [
        (Request(f"{admin.url}/metrics", headers=as_operator), admin.context),
        (Request(f"http://127.0.0.1:{world.health_ports[way]}/metrics"), None),
    ]
    samples = []
    for request, context in pages:
        with urlopen(request, timeout=DEADLINE_S, context=context) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if line[0] != "#"]
            samples.append({name: float(value) for name, _, value in lines})
    return samples


def test_a_reader_that_stops_stalls_only_itself(world: World, client: RawClient) -> None:
    flood = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "flood"},
        "spec": {"containers": [{"name": "main", "image": "busybox", "command": ["yes", "x" * 1000]}]},
    }
    assert world.kubectl("tunnel", "apply", "-f", "-", stdin=json.dumps(flood).encode()).code == 0
    waited = world.kubectl("tunnel", "wait", "--for=condition=Ready", "pod/flood", "--timeout=10s")
    assert waited.code == 0, waited.err
    token = client.token()
    assert world.hub is not None
    processes = [world.hub.process.pid, world.relays["tunnel"].process.pid]
    try:
        alone = [timed(lambda: get(client, token, POD_PATH)) for _ in range(20)]
        memory = [resident_kib(pid) for pid in processes]
        # Opened, and then never read: what is under way fills the socket, the window, and stops there.
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/flood/log?follow=true"
        with streaming(client, token, path) as stalled:
            assert stalled.status == 200
            assert stalled.read(1_000_000)
            beside = [timed(lambda: get(client, token, POD_PATH)) for _ in range(50)]
        grown = [resident_kib(pid) - before for pid, before in zip(processes, memory, strict=True)]
    finally:
        world.kubectl("tunnel", "delete", "pod", "flood", "--now")
    # The sandbox writes the flood with half of the machine meanwhile; no other client may have to wait.
    assert statistics.median(beside) < 10 * statistics.median(alone) + 0.1
    assert max(grown) < 64 * 1024, f"hub and relay grew by {grown} KiB beside one stalled reader"
