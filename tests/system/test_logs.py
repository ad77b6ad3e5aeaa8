"""A whole system whose logs are JSON: every line is one object. `--check` runs beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.demo.processes import Daemon
from tests.system.world import NAMESPACE, POD, USER, WAYS, Result, World, run, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

FIELDS = {"ts", "level", "logger", "msg"}
MORE = {"eid", "cluster", "agent", "boot", "traceback"}


def parsed(lines: bytes) -> list[dict[str, str]]:
    """Every line of a log, each of which has to be an object of our form."""
    objects = [json.loads(line) for line in lines.splitlines()]
    for each in objects:
        assert set(each) >= FIELDS
        assert set(each) <= FIELDS | MORE
        assert all(isinstance(value, str) for value in each.values())
    return objects


def said(log: list[dict[str, str]], text: str) -> dict[str, str]:
    """The first line whose text has this in it."""
    return next(line for line in log if text in line["msg"])


def kill_beneath_an_exec(world: World, daemon: Daemon) -> None:
    """Kill what an exec runs through."""
    with world.popen("tunnel", "exec", "-i", POD, "--", "cat") as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(b"x\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == b"x\n"
        daemon.process.kill()
        daemon.process.wait()
        shell.communicate()


def cut_the_tunnel(world: World) -> None:
    """Kill the relay, and start another one."""
    kill_beneath_an_exec(world, world.relays["tunnel"])
    world.start_relay("tunnel", log="relay-tunnel-2")
    world.wait_for_tunnel()


def test_every_line_of_a_whole_run_is_one_json_object(tmp_path: Path) -> None:
    # Not resumed, a tunnel that is cut ends its calls at once.
    settings = {"HAWSE_RELAY_TUNNEL_RESUME": "false", "HAWSE_RELAY_LOG_FORMAT": "json"}
    flags = ("--log-format", "json", "--verbose")
    with running_world(tmp_path, flags=flags, relay_environment=settings) as world:
        assert world.sandbox is not None
        assert world.hub is not None
        for way in WAYS:
            assert world.kubectl(way, "get", "pods").code == 0
            # The cluster refuses the first, the hub the second.
            assert world.kubectl(way, "get", "nodes").code != 0
            assert world.kubectl(way, "--token=x", "get", "pods").code != 0
        cut_the_tunnel(world)
        check_beside(world)
        connected = connect(world)
        second = run(["hawse", "hub", *world.flags], world.operator)
        kill_beneath_an_exec(world, world.sandbox)
        world.hub.stop()
        for relay in world.relays.values():
            relay.stop()
        logs = {log.stem: parsed(log.read_bytes()) for log in tmp_path.glob("*.log") if log.stem != "sandbox"}
    assert set(logs) == {"hub", "relay-tunnel", "relay-tunnel-2", "relay-direct"}
    assert said(logs["hub"], "of cluster tunnel is here")["cluster"] == "tunnel"
    assert said(logs["hub"], "of cluster tunnel has disconnected")["cluster"] == "tunnel"
    assert said(logs["hub"], "the hub has stopped")["level"] == "INFO"
    assert said(logs["relay-tunnel-2"], "the relay has stopped")["logger"] == "hawse.relay"
    assert said(logs["relay-tunnel-2"], f"of {USER}: ")["agent"] == "probe"
    assert second.code == 1
    assert "another process" in parsed(second.err)[-1]["msg"]
    assert connected.code == 0
    parsed(connected.err)


def connect(world: World) -> Result:
    """`hawse connect` with a command that says nothing on stderr."""
    flags = ["--log-format", "json", "--verbose", "tunnel"]
    command = ["kubectl", f"--namespace={NAMESPACE}", "get", "pods"]
    return run(["hawse", "connect", *flags, "--", *command], world.agent)


def check_beside(world: World) -> None:
    """Both checks find all well while hub and relay run, and make no file."""
    before = sorted(world.folder.rglob("*"))
    environment = {**world.operator, "HAWSE_RELAY_KUBECONFIG": str(world.relay_kubeconfig)}
    relay = ["hawse", "relay", "--check", "--config", str(world.folder / "relay-tunnel" / "relay.toml")]
    for command in (["hawse", "hub", "--check", "--json"], [*relay, "--json"]):
        done = run(command, environment)
        found = json.loads(done.out)
        assert (done.code, found["ok"], found["faults"]) == (0, True, [])
    assert sorted(world.folder.rglob("*")) == before
