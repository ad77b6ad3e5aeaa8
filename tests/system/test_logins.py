"""What an agent sees of its login, and what is left when it has logged out: real hub, relays and kubectl."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.system.homes import Home, add_agent
from tests.system.world import DEADLINE_S, WAYS, World, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def logged_in(world: World, name: str, tmp_path: Path) -> Home:
    """An agent with a key of its own and a kubeconfig, which has used both clusters."""
    home, made = add_agent(world, name, tmp_path / "home", "--credential", "code")
    assert home.login("--code", str(made["code"])).code == 0
    assert home.hawse("kubeconfig").code == 0
    for way in WAYS:
        assert home.kubectl(way, "get", "pods").code == 0
    return home


def test_status_and_clusters_follow_what_the_hub_knows(world: World, tmp_path: Path) -> None:
    home = logged_in(world, "viewer", tmp_path)
    [said] = json.loads(home.hawse("status", "--json").out)
    assert (said["agent"], said["state"], said["hub_calls_itself"]) == (home.name, "accepted", said["hub"])
    assert abs(said["clock_ahead_s"]) <= 1
    clusters = {each["name"]: (each["state"], each["may"]) for each in said["clusters"]}
    assert clusters == dict.fromkeys(WAYS, ("online", "all"))
    assert said["kubeconfigs"][0]["contexts"] == sorted(WAYS)
    assert json.loads(world.admin("agent", "show", home.name, "--json"))["keys"][0]["id"] == said["key_id"]

    world.relays["tunnel"].stop()
    deadline = time.monotonic() + DEADLINE_S
    while b"tunnel   offline" not in (listed := home.hawse("clusters")).out:
        assert time.monotonic() < deadline, listed.out
    world.start_relay("tunnel")
    world.wait_for_tunnel()

    world.admin("agent", "lock", home.name)
    locked = home.hawse("status")
    assert (locked.code, b"  state       refused, see below\n" in locked.out) == (3, True)
    step = f"agent:{home.name} is locked: ask the operator of this hub to unlock it".encode()
    assert (step in locked.err, locked.err.count(b"\n")) == (True, 1)
    home.forget_tokens()
    assert home.kubectl("tunnel", "get", "pods").err.count(step) == 1
    world.admin("agent", "unlock", home.name)
    assert home.hawse("status").code == 0


def test_after_a_logout_kubectl_says_what_to_do_and_the_printed_command_ends_the_key(
    world: World, tmp_path: Path
) -> None:
    home = logged_in(world, "leaver", tmp_path)
    hub = f"https://127.0.0.1:{world.hub_port}"
    kubeconfig, copy = home.folder / "kubeconfig", home.folder / "copy"
    shutil.copy(kubeconfig, copy)
    logins = home.folder / "config" / "hawse" / "logins.json"
    kept = logins.read_bytes()
    key_line = json.loads(kept)["hubs"][hub]["private_key_pem"].splitlines()[1]
    out = home.hawse("logout")
    assert out.code == 0, out.err
    *_, command = out.out.decode().splitlines()
    assert f"removed from {kubeconfig}: contexts direct, tunnel" in out.out.decode()
    for file in home.folder.rglob("*"):
        if file.is_file():
            assert key_line.encode() not in file.read_bytes(), file
    assert not [file for file in (home.folder / "cache" / "hawse").rglob("*") if file.is_file()]

    # The entries are gone: kubectl names the context that is missing, and tries no other server.
    gone = run(["kubectl", "get", "pods"], home.environment)
    assert (gone.code, gone.err.count(b"\n")) == (1, 1)
    assert b"context was not found for specified context: direct" in gone.err
    # In a copied kubeconfig the plugin runs, and its one line names the next step.
    left = home.kubectl("tunnel", "get", "pods", environment={"KUBECONFIG": str(copy)})
    assert left.code == 1
    assert (
        left.err.splitlines()[0].decode() == f"hawse: not logged in to {hub}: run `hawse login --hub {hub}`"
    )
    status = home.hawse("status")
    assert (status.code, status.err) == (1, b"hawse: not logged in: run `hawse login --hub URL`\n")

    # Until its operator has run the command, the key is good for a thief.
    logins.write_bytes(kept)
    assert home.hawse("status").code == 0
    assert run(command.split(), world.operator).code == 0
    refused = home.hawse("status")
    assert refused.code == 3
    assert b"the credential is not accepted: this hub does not know it, or it was revoked; ask" in refused.err
