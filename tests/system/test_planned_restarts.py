"""A planned restart kills nothing: of the hub, by a new process in its place; of the relays, one by one."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sandbox.demo.processes import Daemon
from tests.faults.figures import note
from tests.system.callers import Caller, calling, shells
from tests.system.waiting import wait_until
from tests.system.world import NAMESPACE, POD, World, run, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(240)]

FEW = 3
MANY = 50
# The old hub ends once its last exec has ended and its last connection is closed.
ENDS_WITHIN_S = 20.0
# A relay looks each second whether the port of its probes is free.
FREE_WITHIN_S = 3.0
# Restarts one after the other, and how soon all of them have happened.
IN_A_ROW = 3
IN_A_ROW_WITHIN_S = 30.0


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """A world of this test's own, of which a process may be missing at its end."""
    with running_world(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def lasting_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose hubs come and go, and in which hub and relays run after each test."""
    with running_world(tmp_path_factory.mktemp("lasting")) as running:
        yield running


def test_a_hub_is_replaced_under_live_execs_and_calls(lasting_world: World) -> None:
    replace_the_hub(lasting_world, FEW)


@pytest.mark.long
def test_a_hub_is_replaced_under_many_live_execs(own_world: World) -> None:
    replace_the_hub(own_world, MANY)


@pytest.mark.long
def test_a_hub_is_replaced_again_and_again_under_live_execs_and_calls(lasting_world: World) -> None:
    """Faster than a session lives that counts as a good one: the relays come at once each time."""
    world = lasting_world
    began = time.monotonic()
    old: list[Daemon] = []
    with shells(world, FEW, "tunnel") as first, calling(world, "tunnel", "direct") as callers:
        opened = list(first)
        with ExitStack() as stack:
            for _ in range(IN_A_ROW):
                old.append(world.replace_hub())
                wait_for_calls(callers, 10)
                opened += stack.enter_context(shells(world, 1, "tunnel"))
            assert time.monotonic() - began < IN_A_ROW_WITHIN_S
            # Those of each hub, the one that runs now included.
            for number, shell in enumerate(opened):
                assert shell.say(b"after %d" % number) == b"got after %d\n" % number
                assert shell.leave() == (0, b"bye\n", b"")
        wait_for_calls(callers, 20)
    assert [failure for caller in callers for failure in caller.failures] == []
    for hub in old:
        assert hub.process.wait(ENDS_WITHIN_S) == 0
    assert all(event["phase"] != "unknown" for event in world.hub_audit())


def test_relays_are_restarted_one_by_one_under_live_execs_and_calls(own_world: World) -> None:
    restart_the_relays(own_world, FEW)


@pytest.mark.long
def test_relays_are_restarted_one_by_one_under_many_live_execs(own_world: World) -> None:
    restart_the_relays(own_world, MANY)


@pytest.mark.parametrize("way", ["tunnel", "direct"])
def test_a_relay_outside_a_cluster_is_handed_over_while_the_old_one_finishes(
    lasting_world: World, way: str
) -> None:
    """Both have one configuration, with one `health.listen`: the new one answers there after the old one."""
    world = lasting_world
    old, port = world.relays[way], world.health_ports[way]
    with shells(world, 1, way) as (shell,):
        old.process.send_signal(signal.SIGTERM)
        old.wait_for("stopping")
        world.start_relay(way, health_port=port, log=f"relay-{way}-new")
        new = world.relays[way]
        new.wait_for(f"cannot listen on 127.0.0.1:{port} (health.listen): Address already in use")
        new.wait_for("is up, session" if way == "tunnel" else "listening for the hub")
        assert world.kubectl(way, "get", "pod", POD).code == 0
        # The old one still answers, and is not ready any more.
        assert probe(port, "/healthz") == 200
        assert probe(port, "/readyz") == 503
        assert shell.say(b"after") == b"got after\n"
        assert shell.leave() == (0, b"bye\n", b"")
    assert old.process.wait(ENDS_WITHIN_S) == 0
    began = time.monotonic()
    wait_until(lambda: probe(port, "/readyz") == 200)
    assert time.monotonic() - began < FREE_WITHIN_S
    assert new.process.poll() is None


def test_a_health_port_that_cannot_be_had_at_all_is_a_fault_at_the_start(lasting_world: World) -> None:
    world = lasting_world
    relay = world.folder / "relay-tunnel" / "relay.toml"
    environment = {
        "HAWSE_RELAY_KUBECONFIG": str(world.relay_kubeconfig),
        "HAWSE_RELAY_HEALTH_LISTEN": "192.0.2.1:8080",
    }
    failed = run(["hawse", "relay", "--config", str(relay)], environment)
    assert failed.code == 1
    assert b"cannot listen on 192.0.2.1:8080 (health.listen)" in failed.err


def probe(port: int, path: str) -> int:
    """The status of a relay's answer to a probe; 0 when nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def test_a_hub_that_cannot_start_leaves_the_running_one_in_its_place(lasting_world: World) -> None:
    world = lasting_world
    config = (world.folder / "hub.toml").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        broken = world.folder / "broken.toml"
        port = taken.getsockname()[1]
        broken.write_text(
            config.replace(
                f'[admin]\nlisten = "127.0.0.1:{world.admin_port}"', f'[admin]\nlisten = "127.0.0.1:{port}"'
            )
        )
        failed = run(["hawse", "hub", "--replace", "--config", str(broken)], {})
    assert failed.code == 1
    assert b"cannot listen on 127.0.0.1:%d" % port in failed.err
    assert world.hub is not None
    world.hub.wait_for("this one continues")
    assert world.kubectl("tunnel", "get", "pod", POD).code == 0
    # A start without --replace names the way out, and the next try succeeds.
    refused = run(["hawse", "hub", "--config", str(world.folder / "hub.toml")], {})
    assert refused.code == 1
    assert b"--replace" in refused.err
    assert str(world.hub.process.pid).encode() in refused.err
    old = world.replace_hub()
    assert old.process.wait(ENDS_WITHIN_S) == 0
    assert world.kubectl("tunnel", "get", "pod", POD).code == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_hub_that_ends_while_another_prepares_leaves_its_place_to_it(
    lasting_world: World, how: signal.Signals
) -> None:
    world = lasting_world
    old = world.hub
    assert old is not None
    config, pid_file = world.folder / "hub.toml", world.folder / f"hub-{how.name}.pid"
    without_pid_file = config.read_text()
    config.write_text(f'pid_file = "{pid_file}"\n{without_pid_file}')
    pepper = world.folder / "hub" / "pepper"
    content = pepper.read_bytes()
    pepper.unlink()
    # The new hub reads it before and after the handover of the sockets, and waits there the second time.
    os.mkfifo(pepper, 0o600)
    new = world.daemons.start(f"hub-after-{how.name}", ["hawse", "hub", "--replace", "--config", str(config)])
    pepper.write_bytes(content)
    old.wait_for("prepares to take over")
    old.process.send_signal(how)
    assert old.process.wait(ENDS_WITHIN_S) == (0 if how == signal.SIGTERM else -how)
    assert not pid_file.exists()
    pepper.write_bytes(content)
    world.hub = new
    new.wait_for("this one has taken over")
    new.wait_for("hub is ready")
    assert pid_file.read_text() == f"{new.process.pid}\n"
    world.wait_for_tunnel()
    assert world.kubectl("tunnel", "get", "pod", POD).code == 0
    pepper.unlink()
    pepper.write_bytes(content)
    pepper.chmod(0o600)
    # It hands over in turn.
    before = new
    world.replace_hub()
    assert before.process.wait(ENDS_WITHIN_S) == 0
    assert world.hub is not None
    assert pid_file.read_text() == f"{world.hub.process.pid}\n"
    config.write_text(without_pid_file)


def test_the_calls_of_a_hub_that_is_killed_while_it_finishes_are_closed_by_the_living_one(
    lasting_world: World,
) -> None:
    world = lasting_world
    earlier = len(execs(world))
    with shells(world, 1, "tunnel") as (shell,):
        old = world.replace_hub()
        assert shell.say(b"still") == b"got still\n"
        [intent] = execs(world)[earlier:]
        assert intent["phase"] == "intent"
        old.process.kill()
        assert shell.leave()[0] != 0
        deadline = time.monotonic() + ENDS_WITHIN_S
        while (phases := [event["phase"] for event in execs(world)[earlier:]]) == ["intent"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert phases == ["intent", "unknown"]
    assert world.hub is not None
    world.hub.check()


@pytest.mark.long
def test_a_hub_that_replaces_none_starts_as_usual_and_another_replaces_it_twice(lasting_world: World) -> None:
    world = lasting_world
    assert world.hub is not None
    world.hub.process.send_signal(signal.SIGTERM)
    assert world.hub.process.wait(ENDS_WITHIN_S) == 0
    world.replace_hub()
    for _ in range(2):
        old = world.replace_hub()
        assert old.process.wait(ENDS_WITHIN_S) == 0
    # Only the running hub has left a sign of life.
    assert len(list((world.folder / "hub" / "boots").iterdir())) == 1
    world.wait_for_tunnel()
    with shells(world, 1, "tunnel") as (shell,):
        # One that finishes what it has begun is ended at once by a signal, and its exec does not look well.
        old = world.replace_hub()
        old.process.send_signal(signal.SIGTERM)
        assert old.process.wait(ENDS_WITHIN_S) == 0
        assert shell.leave()[0] != 0
    world.wait_for_tunnel()
    assert world.kubectl("tunnel", "get", "pod", POD).code == 0


def execs(world: World) -> list[dict[str, Any]]:
    found = []
    for event in world.audit_rows():
        request = event.get("req")
        if isinstance(request, dict) and request.get("subresource") == "exec":
            found.append(event)
    return found


def replace_the_hub(world: World, count: int) -> None:
    watching = world.popen("tunnel", "get", "pods", "--watch", "--output=name")
    with shells(world, count, "tunnel") as open_shells, calling(world, "tunnel", "direct") as callers:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"pod/workbench\n"
        wait_for_calls(callers, 20)
        old = world.replace_hub()
        assert old.process.poll() is None
        wait_for_calls(callers, 20)
        # The new one answers now, and what was begun with the old one goes on.
        assert world.kubectl("tunnel", "get", "pod", POD).code == 0
        for number, shell in enumerate(open_shells):
            assert shell.say(b"after %d" % number) == b"got after %d\n" % number
            assert shell.leave() == (0, b"bye\n", b"")
    assert [failure for caller in callers for failure in caller.failures] == []
    world.administrator("label", "pod", POD, f"--namespace={NAMESPACE}", "seen=by-watch")
    assert watching.stdout.readline() == b"pod/workbench\n"
    watching.kill()
    watching.communicate()
    assert old.process.wait(ENDS_WITHIN_S) == 0
    assert all(event["phase"] != "unknown" for event in world.hub_audit())
    note_of("planned restart of the hub", count, callers)


def note_of(what: str, execs: int, callers: list[Caller]) -> None:
    """What was asserted: each exec went on to its end, and each call that was made meanwhile was answered."""
    note(what, f"{execs} live execs", lost=0, calls=sum(caller.calls for caller in callers), failed=0)


def restart_the_relays(world: World, count: int) -> None:
    world.start_relay("tunnel", "second")
    wait_for_relay(world, "second")
    with shells(world, count, "tunnel") as open_shells, calling(world, "tunnel") as callers:
        wait_for_calls(callers, 20)
        for leaving, coming in (("tunnel", "third"), ("tunnel-second", "fourth")):
            # As Kubernetes does with the printed manifests: it stops one, and starts the next.
            world.relays[leaving].process.send_signal(signal.SIGTERM)
            world.relays[leaving].wait_for("stopping")
            world.start_relay("tunnel", coming)
            wait_for_calls(callers, 20)
            wait_for_relay(world, coming)
            if leaving == "tunnel":
                # All shells still work: those of the stopping relay, and those of the other.
                for number, shell in enumerate(open_shells):
                    assert shell.say(b"between %d" % number) == b"got between %d\n" % number
                assert world.relays[leaving].process.poll() is None
        for number, shell in enumerate(open_shells):
            assert shell.say(b"after %d" % number) == b"got after %d\n" % number
            assert shell.leave() == (0, b"bye\n", b"")
        for gone in ("tunnel", "tunnel-second"):
            assert world.relays[gone].process.wait(ENDS_WITHIN_S) == 0
        wait_for_calls(callers, 20)
    assert [failure for caller in callers for failure in caller.failures] == []
    note_of("rolling restart of two relays", count, callers)


def wait_for_relay(world: World, instance: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        relays = world.relay_rows()
        if any(relay["connected"] and relay["instance"] == instance for relay in relays):
            return
        assert time.monotonic() < deadline, relays
        time.sleep(0.05)


def wait_for_calls(callers: list[Caller], more: int) -> None:
    before = [caller.calls for caller in callers]
    deadline = time.monotonic() + 30
    while any(caller.calls < first + more for caller, first in zip(callers, before, strict=True)):
        assert time.monotonic() < deadline, [caller.failures for caller in callers]
        time.sleep(0.01)
