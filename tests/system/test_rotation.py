"""The hub's signing key is rotated while agents work, without any failed call."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.system.world import POD, WAYS, World, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

ROTATIONS = 3


@pytest.fixture(scope="module")
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of these tests alone: they restart hub and relays."""
    with running_world(tmp_path_factory.mktemp("rotated")) as running:
        yield running


def signing(world: World) -> str:
    listed = json.loads(world.admin("keys", "list", "--json"))
    return next(key["kid"] for key in listed if key["state"] == "signing")  # type: ignore[no-any-return]


def test_no_agent_and_no_relay_notices_a_rotation(own_world: World) -> None:
    world = own_world
    # By both ways a session that is open throughout: its next line comes after the last rotation.
    lines = 'while read line; do echo "got $line"; done'
    sessions = {way: world.popen(way, "exec", "-i", POD, "--", "sh", "-c", lines) for way in WAYS}
    try:
        for way, session in sessions.items():
            assert session.stdin is not None
            assert session.stdout is not None
            session.stdin.write(b"before\n")
            session.stdin.flush()
            assert session.stdout.readline() == b"got before\n", way

        used = {signing(world)}
        for _ in range(ROTATIONS):
            world.admin("keys", "rotate", "--yes")
            used.add(signing(world))
            for way in WAYS:
                # A read, a write with a body, and an upgrade: the first after the rotation by each way.
                made = world.kubectl(way, "create", "configmap", f"{way}-{len(used)}", "--from-literal=a=b")
                assert made.code == 0, made.err
                listed = world.kubectl(way, "get", "configmaps", "-o", "name")
                assert f"configmap/{way}-{len(used)}" in listed.out.decode(), listed.err
                done = world.kubectl(way, "exec", POD, "--", "echo", "hi")
                assert (done.code, done.out) == (0, b"hi\n"), done.err
        assert len(used) == ROTATIONS + 1

        for way, session in sessions.items():
            out, err = session.communicate(b"after\n", timeout=20)
            assert (session.returncode, out) == (0, b"got after\n"), (way, err)
    finally:
        for session in sessions.values():
            session.kill()
            session.wait()

    # No relay dialled again, and no call failed.
    events = world.hub_audit()
    kinds = [event["kind"] for event in events]
    assert kinds.count("relay.connected") == 1
    assert "relay.disconnected" not in kinds
    statuses = [
        event["resp"]["status"]
        for event in events
        if event["kind"] == "call" and event["phase"] == "complete"
    ]
    assert statuses
    assert all(status < 400 or status == 404 for status in statuses), statuses
    rotations = [event for event in events if (event.get("req") or {}).get("verb") == "rotate"]
    assert len([event for event in rotations if event["phase"] == "complete"]) == ROTATIONS


def test_relays_and_hub_that_start_again_find_from_the_first_key_to_the_last(own_world: World) -> None:
    world = own_world
    for _ in range(2):
        world.admin("keys", "rotate", "--yes")
    last = signing(world)
    for way in WAYS:
        world.relays[way].process.terminate()
        world.relays[way].process.wait(60)
    assert world.hub is not None
    world.hub.process.terminate()
    world.hub.process.wait(60)
    # The relays' files name the first key alone.
    for way in WAYS:
        [first] = json.loads((world.folder / f"relay-{way}" / "hub-keys.json").read_text())["keys"]
        assert first["kid"] != last
    world.start_hub()
    assert signing(world) == last
    for way in WAYS:
        world.start_relay(way)
    world.wait_for_tunnel()
    for way in WAYS:
        done = world.kubectl(way, "get", "pods")
        assert done.code == 0, done.err
