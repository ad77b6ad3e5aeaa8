"""The disk of the trail and the store is really full: who is to be kept out is kept out all the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from proxy.cli.errors import CommandError
from proxy.hub.home.files.reserve import ReserveError, open_reserve
from proxy.hub.store.local_user import local_user
from sandbox.demo.processes import DemoError
from tests.fakes.issuer import FakeIssuer, running_issuer
from tests.system.disk import SIZE_MIB, SmallDisk, TokenClient, needs_root, open_small_disk
from tests.system.raw import RawClient, Talk
from tests.system.victims import ENDS_WITHIN_S
from tests.system.world import AGENT, TEAM, Result, World, run

pytestmark = [needs_root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with open_small_disk(tmp_path_factory.mktemp("small")) as disk:
        yield disk


@pytest.fixture(scope="module")
def issuer() -> Iterator[FakeIssuer]:
    with running_issuer() as running:
        yield running


@attrs.frozen
class Victim:
    """An agent of a test's own, in a team of its own."""

    disk: SmallDisk
    name: str
    way: str
    api_key: str
    key_id: str

    @property
    def client(self) -> RawClient:
        return RawClient(self.disk.world, self.way, self.api_key)


def enrol(disk: SmallDisk, name: str, way: str = "tunnel") -> Victim:
    administration = disk.world.administration
    for team in (f"{name}-team", f"{name}-others"):
        administration.post("teams", body={"name": team, "clusters": [way]})
    made = administration.post(
        "agents", body={"name": name, "owner": "tests", "teams": [f"{name}-team", f"{name}-others"]}
    )
    return Victim(disk, name, way, str(made["api_key"]), str(made["api_key_id"]))


def admin(world: World, *args: str) -> Result:
    return world.try_admin(*args)


def assert_ends(talk: Talk) -> None:
    """The exec ends in time; raises TimeoutError when it goes on."""
    talk.rest(ENDS_WITHIN_S)


def recorded(disk: SmallDisk, verb: str, resource: str, mark: str) -> list[dict[str, Any]]:
    """The rows of an action; waits until the reserve needs them no more."""
    reserve = open_reserve(disk.data / "reserve")
    try:
        disk.until(lambda: not reserve.entries(), "trail and store have what was in the reserve")
    finally:
        reserve.close()
    events = disk.world.hub_audit("--kind", "admin.action")
    return [
        event
        for event in events
        if (event["req"]["verb"], event["req"]["resource"]) == (verb, resource) and mark in json.dumps(event)
    ]


@attrs.frozen
class Verb:
    """A revocation by an operator's command, and what then stands in the store."""

    verb: str
    resource: str
    command: Callable[[Victim], list[str]]
    query: str
    """What is in the store only while the revocation is not, with the agent's name for its parameter."""
    way: str = "tunnel"
    prepare: Callable[[Victim, FakeIssuer], RawClient] = lambda victim, issuer: victim.client


def federate(victim: Victim, issuer: FakeIssuer) -> RawClient:
    """Let the victim in by a token of the issuer."""
    world, audience = victim.disk.world, f"https://127.0.0.1:{victim.disk.world.hub_port}"
    body = {"issuer": issuer.url, "agent": victim.name, "claims": {"workload_id": victim.name}}
    world.administration.post(
        "federation", body={**body, "jwks": issuer.jwks().decode(), "mutable_claims": True}
    )
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "audience": victim.way,
        "subject_token": issuer.token(aud=[audience], workload_id=victim.name),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    }
    status, answer = victim.client.post("/oauth/token", form)
    assert status == 200, answer
    return TokenClient(world, victim.way, access_token=str(answer["access_token"]))


def rule_of(victim: Victim) -> str:
    rules = victim.disk.world.administration.get("federation")["rules"]
    [rule] = [rule for rule in rules if rule["agent"] == victim.name]  # type: ignore[union-attr, index, call-overload]
    return str(rule["id"])  # type: ignore[index, call-overload]


def deny_switched_off(victim: Victim, issuer: FakeIssuer) -> RawClient:
    """A policy that denies the victim all, with its rules switched off."""
    text = (
        f"kind: Policy\nmetadata: {{name: {victim.name}}}\nspec:\n  bind: {{agents: [{victim.name}]}}\n"
        '  rules:\n    - {id: out, effect: deny, enabled: false, verbs: ["*"], reason: incident}\n'
        '    - {id: in, effect: allow, enabled: false, verbs: ["*"], resources: ["*"]}\n'
    )
    victim.disk.world.administration.post("policies", body={"files": [{"text": text}]})
    return victim.client


VERBS = {
    "agent lock": Verb(
        "lock", "agents", lambda v: ["agent", "lock", v.name],
        "SELECT 1 FROM agents WHERE name = ? AND state = 'active'",
    ),
    "agent remove": Verb(
        "delete", "agents", lambda v: ["agent", "remove", v.name, "--yes"],
        "SELECT 1 FROM agents WHERE name = ? AND state = 'active'",
    ),
    "key revoke": Verb(
        "delete", "agents/keys", lambda v: ["agent", "key", "revoke", v.name, v.key_id],
        "SELECT 1 FROM api_keys JOIN agents ON agents.id = agent_id WHERE name = ? AND revoked_at IS NULL",
    ),
    "out of a team": Verb(
        "update", "agents/teams", lambda v: ["agent", "teams", v.name, "--remove", f"{v.name}-team"],
        "SELECT 1 FROM agent_teams JOIN agents ON agents.id = agent_id JOIN teams ON teams.id = team_id "
        "WHERE agents.name = ? AND teams.name LIKE '%-team'",
    ),
    "grant remove": Verb(
        "revoke", "clusters/teams", lambda v: ["cluster", "revoke", v.way, f"{v.name}-team"],
        "SELECT 1 FROM cluster_grants JOIN teams ON teams.id = team_id WHERE name = ? || '-team'",
    ),
    "federation remove": Verb(
        "delete", "federation", lambda v: ["federation", "remove", rule_of(v)],
        "SELECT 1 FROM federation_rules JOIN agents ON agents.id = agent_id WHERE name = ?",
        prepare=federate,
    ),
    "session kill": Verb(
        "kill", "sessions", lambda v: ["session", "kill", "--agent", v.name, "--reason", v.name, "--yes"],
        "SELECT 1 FROM agents WHERE name = ? AND 0",
    ),
    "policy enable": Verb(
        "switch", "policies/rules", lambda v: ["policy", "enable", v.name, "out"],
        "SELECT 1 FROM policy_bundles WHERE version = (SELECT max(version) FROM policy_bundles) "
        "AND documents LIKE '%name: ' || ? || '}%{id: out, effect: deny, enabled: false%'",
        prepare=deny_switched_off,
    ),
    # The last one, since the others need what it takes.
    "cluster remove": Verb(
        "delete", "clusters", lambda v: ["cluster", "remove", v.way, "--yes"],
        "SELECT 1 FROM clusters WHERE name = 'direct' AND ? != ''",
        way="direct",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_revocation_ends_an_open_exec_while_the_disk_is_full(
    small: SmallDisk, issuer: FakeIssuer, name: str
) -> None:
    verb = VERBS[name]
    victim = enrol(small, name.replace(" ", "-"), verb.way)
    if name == "grant remove":
        small.world.administration.delete("clusters", verb.way, "teams", f"{victim.name}-others")
    client = verb.prepare(victim, issuer)
    command = verb.command(victim)
    with small.open_exec(client) as talk:
        with small.full():
            done = admin(small.world, *command)
            assert_ends(talk)
            assert done.code == 0, done.err
            assert b"in force, and kept in the hub's reserve until the trail" in done.err
        marks = {
            "cluster remove": "/direct",
            "federation remove": command[-1],
            "grant remove": "grant-remove-team",
        }
        mark = marks.get(name, victim.name)
        [row] = recorded(small, verb.verb, verb.resource, mark)
    assert row["phase"] == "complete"
    assert row["resp"]["status"] == 200
    assert row["actor"]["name"] == f"local:{local_user(os.environ)}"
    assert small.store(verb.query, victim.name) == []


def test_a_removed_admin_token_is_refused_while_the_disk_is_full(small: SmallDisk) -> None:
    world = small.world
    made = world.administration.post("tokens", body={"name": "stolen", "role": "admin"})
    thief = attrs.evolve(world.administration, token=str(made["token"]))
    thief.get("agents")
    with small.full():
        assert admin(world, "token", "remove", "stolen").code == 0
        with pytest.raises(CommandError, match="refused this admin token"):
            thief.get("agents")
    [row] = recorded(small, "delete", "tokens", "stolen")
    assert row["phase"] == "complete"
    assert small.store("SELECT 1 FROM admin_tokens WHERE name = 'stolen'") == []


def kill(disk: SmallDisk) -> None:
    """End the hub as a power cut does."""
    assert disk.world.hub is not None
    disk.world.hub.process.kill()
    disk.world.hub.process.wait()


def test_what_was_revoked_on_a_full_disk_is_so_after_a_restart_on_it_and_recorded_once(
    small: SmallDisk,
) -> None:
    world, victim, fellow = small.world, enrol(small, "restart"), enrol(small, "fellow")
    token = victim.client.token()
    with small.full():
        for each in (victim, fellow):
            assert admin(world, "agent", "lock", each.name).code == 0
        kill(small)
        # Whether a hub starts there depends on what the other one's end has freed.
        with suppress(DemoError):
            world.start_hub()
            assert world.administration.get("agents", victim.name)["state"] == "locked"
            kill(small)
    world.start_hub()
    assert world.administration.get("agents", victim.name)["state"] == "locked"
    client = TokenClient(world, "tunnel", access_token=token)
    world.wait_for_tunnel()
    assert client.get("/version").status in {401, 403}
    for each in (victim, fellow):
        [row] = recorded(small, "lock", "agents", f"/agents/{each.name}/")
        assert row["phase"] == "complete"
        assert "carried out at the hub's start" in str(row["note"])
    # It is not carried out again.
    world.admin("agent", "unlock", victim.name)
    kill(small)
    world.start_hub()
    assert world.administration.get("agents", victim.name)["state"] == "active"
    world.wait_for_tunnel()


def test_where_the_reserve_is_full_too_a_lock_is_in_force_unrecorded_and_the_command_fails(
    small: SmallDisk,
) -> None:
    world, victim = small.world, enrol(small, "last-resort")
    reserve = open_reserve(small.data / "reserve")
    try:
        with small.open_exec(victim.client) as talk, small.full():
            with suppress(ReserveError):
                while True:
                    reserve.add(b"another hub's revocation")
            done = admin(world, "agent", "lock", victim.name)
            assert_ends(talk)
            assert done.code == 1
            # The store may have taken it: as the trail is closed, its -wal goes, and leaves some space.
            told = done.err.decode()
            assert re.match(r"hawse: in force( until the hub restarts)?, not recorded: ", told), told
            assert f"{small.data}/reserve is full".encode() in done.err
            assert world.administration.get("agents", victim.name)["state"] == "locked"
    finally:
        reserve.clear(lambda payload: True)
        reserve.close()
    assert world.hub is not None
    line = world.hub.wait_for(f"lock agents {victim.name} by local:{local_user(os.environ)}: in force")
    assert "ERROR" in line
    assert ", not recorded: " in line


# What grants, and what only may take back.
REFUSED: dict[str, list[str]] = {
    "agent unlock": ["agent", "unlock", "locked"],
    "agent add": ["agent", "add", "newcomer", "--team", TEAM, "--owner", "tests"],
    "key add": ["agent", "key", "add", AGENT],
    "out of one team and into another": ["agent", "teams", AGENT, "--add", "extra", "--remove", TEAM],
    "grant": ["cluster", "grant", "tunnel", "extra"],
    "policy enable of a rule that allows": ["policy", "enable", "mixed", "in"],
    "policy enable of both": ["policy", "enable", "mixed", "out", "in"],
    "policy disable": ["policy", "disable", "mixed", "out"],
    "policy remove": ["policy", "remove", "mixed", "--yes"],
    "token add": ["token", "add", "second", "--role", "viewer"],
    "keys rotate": ["keys", "rotate"],
}


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[SmallDisk]:
    """A hub that ends upgrades three seconds after the trail went down."""
    (tmp_path / "hasty").mkdir()
    with open_small_disk(tmp_path / "hasty", "[audit]\ndown_grace_s = 3\n") as disk:
        yield disk


def test_while_the_trail_is_down_nothing_is_granted_and_open_upgrades_end_after_their_grace(
    hasty: SmallDisk, tmp_path: Path
) -> None:
    world, client = hasty.world, RawClient(hasty.world, "tunnel")
    enrol(hasty, "locked")
    world.admin("agent", "lock", "locked")
    world.admin("team", "add", "extra")
    policy = tmp_path / "mixed.yaml"
    policy.write_text(
        "kind: Policy\nmetadata: {name: mixed}\nspec:\n  bind: {agents: [locked]}\n  rules:\n"
        '    - {id: out, effect: deny, verbs: ["*"], reason: incident}\n'
        '    - {id: in, effect: allow, enabled: false, verbs: ["*"], resources: ["*"]}\n'
    )
    world.admin("policy", "apply", str(policy))
    key = {"grant_type": "client_credentials", "client_secret": world.api_key}
    assert client.post("/oauth/token", {**key, "audience": "tunnel"})[0] == 200
    assert hasty.metrics()["hawse_audit_up"] == 1.0
    with hasty.open_exec(client) as talk, hasty.full():
        for name, command in REFUSED.items():
            done = admin(world, *command)
            assert (done.code, b"nothing was changed: the audit trail" in done.err) == (1, True), name
        policy.write_text(policy.read_text().replace("incident", "another"))
        done = admin(world, "policy", "apply", str(policy))
        assert (done.code, b"nothing was changed: the audit trail" in done.err) == (1, True)
        status, answer = client.post("/oauth/token", {**key, "audience": "tunnel"})
        assert (status, answer["error"]) == (503, "temporarily_unavailable")
        assert "the audit trail cannot be written" in str(answer["error_description"])
        # By a wrong key a stranger learns nothing of that.
        assert client.post("/oauth/token", {**key, "client_secret": "wrong", "audience": "tunnel"})[0] == 401
        assert hasty.metrics()["hawse_audit_up"] == 0.0
        talk.rest(10)
    down, ended_at = (logged_at(hasty, said) for said in ("writes are refused until", "ended 1 upgrade"))
    assert 3.0 <= (ended_at - down).total_seconds() <= 3.0 + ENDS_WITHIN_S
    hasty.until(lambda: hasty.metrics()["hawse_audit_up"] == 1.0, "the trail is back")
    assert client.post("/oauth/token", {**key, "audience": "tunnel"})[0] == 200
    [ended] = world.hub_audit("--kind", "session.killed")
    assert ended["stream"]["close_reason"] == "deadline"
    assert "audit.down_grace_s" in ended["resp"]["reason"]


def test_a_disk_that_is_four_fifths_full_is_an_event_a_line_and_a_metric(hasty: SmallDisk) -> None:
    world = hasty.world
    assert world.hub is not None
    metrics = hasty.metrics()
    assert metrics["hawse_audit_disk_bytes"] > metrics["hawse_audit_disk_free_bytes"] > 0

    def fill(times: int) -> None:
        hasty.fill(left_bytes=int(SIZE_MIB * 2**20 * 0.18))
        try:
            hasty.until(lambda: len(world.audit_rows("--kind", "audit.disk")) >= times, "the event is there")
            assert hasty.metrics()["hawse_audit_disk_free_bytes"] < SIZE_MIB * 2**20 * 0.2
        finally:
            hasty.free()

    fill(1)
    assert "% full" in world.hub.wait_for("make it larger, or prune the trail")
    world.hub.wait_for("% full again")
    fill(2)
    assert len(world.hub_audit("--kind", "audit.disk")) == 2


def logged_at(disk: SmallDisk, said: str) -> datetime:
    assert disk.world.hub is not None
    return datetime.fromisoformat(disk.world.hub.wait_for(said).split(" ")[0])


def test_a_check_says_how_full_the_disk_is_and_a_start_is_possible(small: SmallDisk) -> None:
    with small.full():
        done = run(["hawse", "hub", "--check"], small.world.operator)
    assert done.code == 0
    assert done.err.startswith(f"warning: the disk of {small.data} is ".encode())


def test_a_check_and_a_first_start_want_room_for_the_reserve(tmp_path: Path) -> None:
    data = tmp_path / "hub"
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "hawse-test", str(data)]
    subprocess.run(mount, check=True)
    try:
        settings = {"HAWSE_HUB_DATA_DIR": str(data)}
        told = f"cannot allocate {data / 'reserve'}: 512 KiB are free: free 1024 KiB of the disk\n"
        check = run(["hawse", "hub", "--check"], settings)
        assert (check.code, check.err.decode()) == (
            2,
            f"hawse: the check of the hub found 1 fault:\n  {told}",
        )
        start = run(["hawse", "hub"], settings)
        assert (start.code, start.err.decode()) == (1, f"hawse: the hub cannot run: {told}")
        assert list(data.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)
