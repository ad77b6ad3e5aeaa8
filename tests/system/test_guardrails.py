"""The cluster owner's guardrails, with real processes: for agents, and against a hub in other hands.

The relays run with what their image holds and nothing else: a guardrail's condition needs the package of
which the image leaves out the most.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.installed import relay_image
from tests.system.forgers import ask_relay, relay_forger, relay_head
from tests.system.victims import ENDS_WITHIN_S, MAY_END_WELL, OPEN, ended_within, enrol_victim
from tests.system.world import NAMESPACE, POD, WAYS, World, run, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

RULES = """
kind: Policy
metadata: {name: owner, contact: "#prod-owners"}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: no-secrets, effect: deny, verbs: ["*"], resources: [secrets], reason: they are ours}
    - {id: no-marked, effect: deny, verbs: [delete], when: request.name.startsWith("ours-")}
"""
DEADLINE_S = 10.0
# Until the relay has seen a changed file.
LOOK_S = 1.0


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "rails").mkdir()
    (folder / "rails" / "rails.yaml").write_text(RULES)
    (folder / "image").mkdir()
    image = relay_image(folder / "image")
    environment = {"HAWSE_RELAY_GUARDRAILS": str(folder / "rails"), "PATH": image.variables["PATH"]}
    with running_world(folder, relay_environment=environment) as running:
        yield running


def put_back(world: World) -> None:
    """Have the relays take the rules again with which the next test begins."""
    (world.folder / "rails" / "rails.yaml").write_text(RULES)
    deadline = time.monotonic() + DEADLINE_S
    while any(world.kubectl(way, "get", "pods,configmaps").code for way in WAYS):
        assert time.monotonic() < deadline


def secrets_touched(world: World) -> list[object]:
    """What the API server itself says of requests for secrets by anyone but its administrator."""
    return [
        event
        for event in world.cluster_audit()
        if "/secrets" in str(event.get("requestURI", "")) and "agent:" in json.dumps(event)
    ]


@pytest.mark.parametrize("way", WAYS)
def test_an_agent_is_told_by_which_rule_and_whom_to_ask(guarded: World, way: str) -> None:
    world = guarded
    assert world.kubectl(way, "get", "pods").code == 0
    for args in (
        ["get", "secrets"],
        ["get", "secrets", "--namespace=kube-system"],
        ["create", "secret", "generic", "x", "--from-literal=a=b"],
        ["delete", "secret", "x"],
    ):
        done = world.kubectl(way, *args)
        assert done.code == 1, done.out
        assert b"denied by owner/no-secrets: they are ours" in done.err, done.err
        assert b"ask #prod-owners" in done.err, done.err
    assert secrets_touched(world) == []
    # What else the agent may do goes on: a session, too.
    assert world.kubectl(way, "exec", POD, "--", "echo", "hi").out == b"hi\n"

    events = [
        event
        for event in world.hub_audit()
        if (event.get("decision") or {}).get("policy") == "relay-guardrails"
    ]
    assert {event["decision"]["rule"] for event in events} == {"owner/no-secrets"}
    for event in events:
        assert event["decision"]["effect"] == "deny"
        assert event["resp"]["status"] == 403
        assert event["resp"]["processed"] == "no"
        assert event["phase"] == "complete"


@pytest.mark.parametrize("way", WAYS)
def test_a_condition_is_evaluated_by_what_the_image_holds(guarded: World, way: str) -> None:
    running = Path(f"/proc/{guarded.relays[way].process.pid}/cmdline").read_bytes().split(b"\0")
    assert running[1] == bytes(guarded.folder / "image" / "opt" / "bin" / "hawse")
    denied = guarded.kubectl(way, "delete", "pod", "ours-1")
    assert b"denied by owner/no-marked" in denied.err, denied.err
    assert b"NotFound" in guarded.kubectl(way, "delete", "pod", "theirs-1").err


@pytest.mark.parametrize("user", ["agent:probe", "agent:root", "agent:no-such-agent"])
def test_who_holds_the_hubs_key_does_not_get_past_them(guarded: World, user: str) -> None:
    # With the hub's own signing key, at the relay's public address: no hub is asked any more.
    forger = relay_forger(guarded)
    for groups in (["acme/platform"], ["acme/owners", "evil/platform"]):
        minted = forger.token(sub=user, groups=groups)
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            target = f"/api/v1/namespaces/{NAMESPACE}/secrets/x"
            status, headers, _ = ask_relay(guarded, relay_head(minted, target, method=method))
            assert status == 403, (method, status)
            assert headers["hawse-relay-decision"] == "guardrails owner/no-secrets"
    assert secrets_touched(guarded) == []


def test_a_change_counts_soon_and_a_bad_one_changes_nothing(guarded: World) -> None:
    world = guarded
    rails = world.folder / "rails" / "rails.yaml"
    try:
        rails.write_text(RULES.replace("secrets", "configmaps"))
        deadline = time.monotonic() + DEADLINE_S
        while b"no-configmaps" not in world.kubectl("tunnel", "get", "configmaps").err:
            assert time.monotonic() < deadline
        rails.write_text("kind: Policy\nrulez: []\n")
        world.relays["tunnel"].wait_for("the former ones stay in force")
        assert b"no-configmaps" in world.kubectl("tunnel", "get", "configmaps").err
    finally:
        put_back(world)


@pytest.mark.parametrize("way", WAYS)
def test_a_tightened_guardrail_ends_all_that_is_open_and_denied(guarded: World, way: str) -> None:
    world = guarded
    victim = enrol_victim(world, f"guarded-{way}")
    rails = world.folder / "rails" / "rails.yaml"
    try:
        with victim.everything_open(way) as running:
            unseen = world.popen(way, "get", "configmaps", "--watch")
            rails.write_text(RULES.replace("[secrets]", '[pods, "pods/*"]'))
            codes = ended_within(running, LOOK_S + ENDS_WITHIN_S)
            assert {kind for kind, code in codes.items() if code == 0} <= MAY_END_WELL, codes
            # What still passes goes on.
            assert unseen.poll() is None, unseen.communicate()
            unseen.kill()
            unseen.communicate()
    finally:
        put_back(world)
    ended: list[Any] = [
        event
        for event in world.hub_audit("--agent", victim.name)
        if (event.get("stream") or {}).get("close_reason") == "upstream failed"
    ]
    assert len({event["eid"] for event in ended}) == len(OPEN)
    if way == "tunnel":
        assert {"is denied by owner/no-secrets" in event["resp"]["reason"] for event in ended} == {True}


def test_a_relay_does_not_start_with_guardrails_that_it_cannot_hold_to(
    guarded: World, tmp_path: Path
) -> None:
    rails = tmp_path / "rails.yaml"
    rails.write_text(RULES.replace("effect: deny", "effekt: deny"))
    config = str(guarded.folder / "relay-tunnel" / "relay.toml")
    environment = {
        "HAWSE_RELAY_GUARDRAILS": str(rails),
        "HAWSE_RELAY_KUBECONFIG": str(guarded.relay_kubeconfig),
    }
    done = run(["hawse", "relay", "--config", config], environment)
    assert done.code != 0
    assert f"guardrails: {rails}:7" in done.err.decode(), done.err
    assert b"did you mean effect?" in done.err
