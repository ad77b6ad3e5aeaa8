"""The ClusterRole that lets the relay act for agents: both forms of it, and the command that looks at it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.waiting import wait_until
from tests.system.world import POD, WAYS, World, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

PLACE = ("--namespace", "hawse", "--service-account", "relay")


@pytest.fixture(scope="module")
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose rights these tests change."""
    with running_world(tmp_path_factory.mktemp("rights")) as running:
        yield running


def check(world: World) -> tuple[int, list[str]]:
    args = ("cluster", "check", "tunnel", "--kubeconfig", str(world.admin_kubeconfig), "--json")
    done = world.try_admin(*args)
    assert done.code in {0, 3}, done.err
    return done.code, [
        finding["message"] for finding in json.loads(done.out)["findings"] if finding["level"] != "info"
    ]


def test_the_constrained_form_is_enough(own_world: World) -> None:
    world = own_world
    rbac = world.admin("cluster", "rbac", "tunnel", "--constrained", *PLACE)
    assert b'"impersonate"' not in rbac
    world.administrator("replace", "-f", "-", stdin=rbac)
    try:
        assert check(world) == (0, [])
        for way in WAYS:
            assert world.kubectl(way, "get", "pods").code == 0
            assert world.kubectl(way, "exec", POD, "--", "echo", "hi").out == b"hi\n"
            made = world.kubectl(way, "create", "configmap", f"constrained-{way}", "--from-literal=a=b")
            assert made.code == 0, made.err
        # Who takes a verb out of it takes it from every agent.
        role = json.loads(
            world.administrator("get", "clusterrole", "hawse-relay-impersonation", "--output", "json")
        )
        for rule in role["rules"]:
            rule["verbs"] = [verb for verb in rule["verbs"] if not verb.endswith(":create")]
        world.administrator("replace", "-f", "-", stdin=json.dumps(role).encode())
        refused = world.kubectl("tunnel", "create", "configmap", "other", "--from-literal=a=b")
        assert refused.code == 1
        assert b"cannot impersonate" in refused.err
        assert world.kubectl("tunnel", "get", "pods").code == 0
    finally:
        world.administrator("replace", "-f", "-", stdin=world.admin("cluster", "rbac", "tunnel", *PLACE))
    assert world.kubectl("tunnel", "get", "pods").code == 0


def test_the_check_tells_who_is_missing_and_whose_name_is_taken(own_world: World, tmp_path: Path) -> None:
    world = own_world
    assert check(world) == (0, [])
    world.admin("agent", "add", "late", "--team", "platform", "--owner", "tests")
    assert check(world) == (3, ["the relay may not impersonate user agent:late"])
    # As a team keeps it in a repository: a file for each cluster.
    kept = ("cluster", "rbac", "--all", "--output-dir", str(tmp_path))
    world.admin(*kept, *PLACE)
    world.administrator("apply", "-f", str(tmp_path / "tunnel.yaml"))
    assert check(world) == (0, [])
    assert world.admin(*kept, "--check") == b""
    world.admin("agent", "remove", "late", "--yes")
    assert world.try_admin(*kept, "--check").code == 3
    world.administrator("create", "clusterrolebinding", "x", "--clusterrole=view", "--user=agent:stranger")
    code, found = check(world)
    assert code == 3
    assert any("agent:stranger has rights and is not enrolled" in message for message in found)
    assert any("names that are not enrolled for this cluster: agent:late" in message for message in found)


def test_the_bindings_of_a_removed_team_serve_no_other_of_its_name(own_world: World) -> None:
    world = own_world
    first = json.loads(world.admin("team", "add", "night", "--json"))
    group = f"--group={first['group']}"
    world.administrator("create", "clusterrolebinding", "night", "--clusterrole=cluster-admin", group)
    removed = world.try_admin("team", "remove", "night")
    assert b"its name is not reused" in removed.err
    again = world.try_admin("team", "add", "night")
    assert again.code == 1
    assert f"the group {first['group']}: choose a new name, or remove those bindings" in again.err.decode()
    assert b"night" not in world.admin("team", "list")
    world.administrator("delete", "clusterrolebinding", "night")
    second = json.loads(world.admin("team", "add", "night", "--reuse-name", "--json"))
    assert second["id"] != first["id"]

    def reused() -> list[str]:
        events = [json.dumps(event) for event in world.audit_rows("--kind", "admin.action")]
        return [event for event in events if "reuse_name=true" in event]

    wait_until(lambda: bool(reused()))
    assert [second["id"] in event for event in reused()] == [True]


@pytest.mark.parametrize("missing", ["users", "groups", "userextras/hawse.dev/session"])
def test_a_right_that_the_relay_lacks_is_reported_as_the_operators_to_give(
    own_world: World, missing: str
) -> None:
    # C09: the agent can't fix it, so the message says who can, and how.
    world = own_world
    for way in WAYS:
        # With its discovery at hand: of an error in that kubectl says no more than "unknown".
        assert world.kubectl(way, "get", "pods").code == 0
    role = json.loads(
        world.administrator("get", "clusterrole", "hawse-relay-impersonation", "--output", "json")
    )
    for rule in role["rules"]:
        rule["resources"] = [resource for resource in rule["resources"] if resource != missing] or ["none"]
    world.administrator("replace", "-f", "-", stdin=json.dumps(role).encode())
    try:
        for way in WAYS:
            refused = world.kubectl(way, "get", "pods")
            assert refused.code == 1
            assert b"cannot impersonate resource" in refused.err
            assert f"hawse admin cluster check {way} --kubeconfig FILE".encode() in refused.err
        assert any("may not impersonate" in message for message in check(world)[1])
    finally:
        world.administrator("replace", "-f", "-", stdin=world.admin("cluster", "rbac", "tunnel", *PLACE))
    assert world.kubectl("tunnel", "get", "pods").code == 0


def test_a_check_refuses_another_clusters_kubeconfig_and_misses_a_relay(own_world: World) -> None:
    world = own_world
    other = world.folder / "other-cluster"
    sandbox = world.daemons.start("other-sandbox", [sys.executable, "-m", "sandbox", "--dir", str(other)])
    sandbox.wait_for("ready ")
    args = ("cluster", "check", "tunnel", "--kubeconfig")
    done = world.try_admin(*args, str(other / "admin.kubeconfig"))
    assert done.code == 1
    assert b"the kubeconfig leads to another cluster than tunnel" in done.err
    assert b"hawse admin cluster repin tunnel" in done.err
    assert b"all is well" not in done.out
    world.relays["tunnel"].stop()
    code, messages = check(world)
    assert code == 3
    assert messages[0] == "no relay of tunnel is connected"
    world.start_relay("tunnel")
    world.wait_for_tunnel()
