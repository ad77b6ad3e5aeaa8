"""Connecting relays: their number, identity and keys, and the reason that a refused relay gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from sandbox.demo.processes import Daemon
from tests.system.raw import Answer, RawClient, parse
from tests.system.world import NAMESPACE, World, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

DEADLINE_S = 30.0
# More than the calls of a test beside them.
WATCHES = 20


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """A world of this test's own: the rest would find other relays in it."""
    with running_world(tmp_path) as running:
        yield running


def start(world: World, name: str, folder: Path, **environment: str) -> Daemon:
    """One more relay of the tunnel's cluster."""
    settings: Mapping[str, str] = {
        "HAWSE_RELAY_KUBECONFIG": str(world.relay_kubeconfig),
        **{f"HAWSE_RELAY_{key.upper()}": value for key, value in environment.items()},
    }
    argv = ["hawse", "relay", "--config", str(folder / "relay.toml")]
    return world.daemons.start(name, argv, settings)


def connected(world: World) -> set[str]:
    rows = [row for row in world.relay_rows() if row["cluster"] == "tunnel"]
    return {str(row["instance"]) for row in rows if row["connected"]}


def wait_for(world: World, *instances: str, without: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not set(instances) <= connected(world) or without in connected(world):
        assert time.monotonic() < deadline, connected(world)
        time.sleep(0.1)


def test_two_relays_at_a_time_and_each_is_its_own(own_world: World) -> None:
    world = own_world
    (first,) = connected(world)
    folder = world.folder / "relay-tunnel"
    start(world, "second", folder, instance="second")
    wait_for(world, first, "second")

    third = start(world, "third", folder, instance="third")
    third.wait_for("cluster tunnel has 2 relays here")
    # Another process under a name that is taken, by one that answers.
    twin = start(world, "twin", folder, instance="second")
    twin.wait_for("another process is connected as relay second of cluster tunnel")
    assert connected(world) == {first, "second"}
    assert world.kubectl("tunnel", "get", "pods").code == 0

    # One goes away: there is room for who has been waiting.
    world.relays["tunnel"].process.terminate()
    wait_for(world, "second", "third", without=first)
    assert world.kubectl("tunnel", "get", "pods").code == 0

    events = [event for event in world.hub_audit() if str(event["kind"]).startswith("relay.")]
    new = {event["relay"]["instance"]: event["note"] for event in events if event["kind"] == "relay.new"}
    assert new[first].startswith("an instance that was not seen before; an address that was not seen before")
    assert new["second"] == "an instance that was not seen before"
    refused = {event["relay"]["instance"] for event in events if event["kind"] == "relay.refused"}
    assert refused == {"third", "second"}


def test_a_relay_with_the_key_of_another_cluster_gets_the_reason(world: World, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(world.folder / "relay-tunnel", mixed)
    world.admin("cluster", "add", "other", "--output-dir", str(tmp_path / "other"))
    shutil.copy(tmp_path / "other" / "relay.key", mixed / "relay.key")
    relay = start(world, "mixed", mixed, instance="mixed")
    line = relay.wait_for("the relay's key is of another cluster than its cluster_id")
    assert "apply both as one run of `hawse admin cluster key NAME` prints them" in line
    assert "mixed" not in connected(world)
    relay.stop()
    world.admin("cluster", "remove", "other", "--yes")


def test_a_relays_key_changes_without_an_outage(own_world: World, tmp_path: Path) -> None:
    world = own_world
    (first,) = connected(world)
    session = world.popen("tunnel", "exec", "-i", "workbench", "--", "cat")
    try:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(b"before\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"before\n"

        world.admin("cluster", "key", "tunnel", "--keep-old", "--output-dir", str(tmp_path / "new"))
        assert world.kubectl("tunnel", "get", "pods").code == 0
        start(world, "renewed", tmp_path / "new", instance="renewed")
        wait_for(world, first, "renewed")
        # Each relay is listed with its key, so that the old key is dropped once it is unused.
        listed = json.loads(world.admin("relay", "list", "--cluster", "tunnel", "--json"))
        used = {relay["instance"]: relay["key"] for relay in listed if relay["connected"]}
        kept = json.loads(world.admin("cluster", "show", "tunnel", "--json"))["relay_keys"]
        assert [used[first], used["renewed"]] == kept
        # The old one goes as in a rollout, with what is open on it.
        world.relays["tunnel"].process.terminate()
        assert world.kubectl("tunnel", "get", "pods").code == 0
        out, err = session.communicate(b"after\n", timeout=20)
        assert (session.returncode, out) == (0, b"after\n"), err
    finally:
        session.kill()
        session.wait()
    wait_for(world, "renewed", without=first)

    world.admin("cluster", "key", "tunnel", "--drop-old", "--yes")
    assert world.kubectl("tunnel", "get", "pods").code == 0
    # Who still has the old key is out.
    late = start(world, "late", world.folder / "relay-tunnel", instance="late")
    late.wait_for("401 instead of 101")
    assert connected(world) == {"renewed"}


@attrs.define(eq=False)
class Timed:
    """One request on a connection of its own: what was answered, and when."""

    client: RawClient
    request: bytes
    body: bytes = b""
    took_s: float = 0.0
    answer: Answer | None = None
    thread: threading.Thread = attrs.Factory(lambda self: threading.Thread(target=self.run), takes_self=True)

    def run(self) -> None:
        began_s = time.monotonic()
        self.answer = parse(self.client.send(self.request + self.body))
        self.took_s = time.monotonic() - began_s


def test_reads_at_a_silent_relay_are_answered_by_its_sibling(own_world: World) -> None:
    with ExitStack() as watches:
        ask_a_silent_relay(own_world, watches)


def ask_a_silent_relay(world: World, watches: ExitStack) -> None:
    (first,) = connected(world)
    client = RawClient(world, "tunnel")
    maps = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    # Calls go to the relay with the fewest streams: with these open at the first one, to the second.
    for _ in range(WATCHES):
        talk = watches.enter_context(client.talk(client.head(f"{maps}?watch=true")))
        assert talk.answer(body=False).status == 200
    silent = start(world, "second", world.folder / "relay-tunnel", instance="second").process
    wait_for(world, first, "second")

    def read(path: str = maps) -> Timed:
        return Timed(client, client.head(path))

    def write(name: str) -> Timed:
        body = json.dumps({"metadata": {"name": name}}).encode()
        length = f"Content-Length: {len(body)}"
        request = client.head(maps, "Content-Type: application/json", length, method="POST")
        return Timed(client, request, body)

    reads, writes = [read() for _ in range(6)], [write(f"at-once-{number}") for number in range(6)]
    # What policy takes for a write by its path, though it is a GET.
    proxied = [read(f"/api/v1/namespaces/{NAMESPACE}/services/none/proxy/") for _ in range(2)]
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        for each in (*reads, *writes, *proxied):
            each.thread.start()
        for each in reads:
            each.thread.join(DEADLINE_S * 3)
        assert [each.answer.status for each in reads if each.answer is not None] == [200] * 6
        took_s = [each.took_s for each in reads]
        assert min(took_s) > 2, took_s
        assert max(took_s) < 8, took_s
        # What comes now goes to the other one at once, a write as well.
        late = [read(), write("late")]
        for each in late:
            each.run()
        assert [each.answer.status for each in late if each.answer is not None] == [200, 201]
        assert max(each.took_s for each in late) < 2
        assert all(each.thread.is_alive() for each in (*writes, *proxied))
    finally:
        os.kill(silent.pid, signal.SIGCONT)
    for each in (*writes, *proxied):
        each.thread.join(DEADLINE_S)
    # Each was made, once: a second attempt would be a 409.
    assert [each.answer.status for each in writes if each.answer is not None] == [201] * 6
    assert {each.answer.status for each in proxied if each.answer is not None} <= {403, 404, 503}

    events = [event for event in world.hub_audit() if str(event["kind"]) == "call"]
    ended = [event for event in events if event["phase"] == "complete"]
    lists = [event for event in ended if event["req"]["verb"] == "list"]
    moved = [event for event in lists if event.get("tunnel", {}).get("moved_from")]
    assert len(moved) == len(reads)
    for event in moved:
        assert event["tunnel"]["moved_from"] == "second"
        assert event["relay"]["instance"] == first
        assert event["resp"]["status"] == 200
    assert len({event["eid"] for event in lists}) == len(lists) == len(reads) + 1
    others = [event for event in ended if event not in lists]
    assert not any(event.get("tunnel", {}).get("moved_from") for event in others)
