"""Every command of `hawse admin`, over the wire, as an operator sees it."""

from __future__ import annotations

import json
import os
import ssl
import stat
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import yaml

from auth.keys import KeySet, SigningKey
from proxy.cli.admin.api.client import AdminClient
from proxy.cli.admin.cluster.relay_files import remaining_steps
from proxy.hub.relays.operations import RelayInfo, SessionInfo
from proxy.hub.store.clusters import RelayContact
from proxy.kubernetes.statement import Statement
from proxy.process.config import Address
from proxy.relay import config as relay_config
from tests.fakes.terminal import on_terminal
from tests.proxy.cli.admin.conftest import Hub
from tests.proxy.cli.admin.terminal import at_a_terminal


async def enrol(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")
    await hub.ok("cluster", "add", "prod", "--team", "sre", "--label", "env=prod")
    await hub.ok("agent", "add", "sre-1", "--owner", "Ada Lovelace", "--team", "sre")


async def test_enrolling_from_nothing_tells_each_next_step(hub: Hub) -> None:
    added = await hub.ok("team", "add", "sre")
    assert added.stdout == ""
    assert "the Kubernetes group main/sre" in added.stderr
    assert "hawse admin cluster grant CLUSTER sre" in added.stderr
    await hub.ok("cluster", "add", "prod", "--team", "sre")
    added = await hub.ok("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre")
    # Only the key goes to standard output, so that it can be piped into a secret store.
    (key,) = added.stdout.splitlines()
    assert key.startswith("hws_")
    assert (
        "hawse admin hub ca > hub-ca.pem\non the agent's machine, run this and paste the key:\n"
        "  hawse login --hub https://hub.example --ca hub-ca.pem\n"
    ) in added.stderr
    assert "hawse admin cluster rbac prod | kubectl apply -f -" in added.stderr
    assert key not in added.stderr
    ca = await hub.ok("hub", "ca")
    assert ca.stdout == hub.ca.read_text()


async def test_a_cluster_is_printed_as_manifests_that_kubectl_can_read(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")
    printed = await hub.ok(
        "cluster", "add", "prod", "--team", "sre", "--namespace", "tools", "--image", "reg/x:1"
    )
    objects = list(yaml.safe_load_all(printed.stdout))
    kinds = [item["kind"] for item in objects]
    assert {
        "Namespace",
        "ServiceAccount",
        "Secret",
        "Deployment",
        "ClusterRole",
        "ClusterRoleBinding",
    } <= set(kinds)
    assert objects[0]["metadata"]["name"] == "tools"
    binding = next(item for item in objects if item["kind"] == "ClusterRoleBinding")
    assert binding["subjects"][0]["namespace"] == "tools"
    assert "keeps no copy" in printed.stderr


async def test_a_relay_outside_a_cluster_gets_files_that_it_accepts(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "relay"
    (tmp_path / "kube 🚢 config").write_text("x")
    done = await hub.ok(
        *("cluster", "add", "prod", "--output-dir", str(folder)),
        *("--kubeconfig", str(tmp_path / "kube 🚢 config")),
    )
    assert done.stdout == ""
    assert "hawse relay --config" in done.stderr
    assert "public CAs" not in done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "relay.toml",
        "relay.key",
        "hub-keys.json",
        "hub-ca.pem",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    relay = relay_config.load(folder / "relay.toml", {})
    cluster = hub.directory.current.clusters_by_name["prod"]
    assert isinstance(relay.way, relay_config.TunnelDial)
    assert relay.way.key.public == cluster.relay_keys[0]
    assert relay.way.hub_ca_pem == hub.ca.read_text()
    assert (relay.cluster_id, relay.hub_url) == (cluster.id, "https://hub.example")
    assert relay.kubeconfig == tmp_path / "kube 🚢 config"
    assert [key.kid for key in relay.hub_keys] == [hub.data.keys.load_or_make().active.kid]


def test_who_enrols_at_a_hub_of_a_private_ca_is_told_where_it_goes() -> None:
    [sentence] = remaining_steps({"mode": "tunnel", "hub_ca_pem": None}, Path("relay"))
    assert "set hub.ca in relay.toml" in sentence
    assert remaining_steps({"mode": "tunnel", "hub_ca_pem": "PEM"}, Path("relay")) == []


async def test_a_path_that_no_relay_toml_can_hold_is_refused_before_anything_is_made(
    hub: Hub, tmp_path: Path
) -> None:
    path = os.fsdecode(bytes(tmp_path / "relay") + b"\xff")
    refusal = await hub.fails(
        "cluster", "add", "edge", "--output-dir", str(tmp_path / "relay"), "--kubeconfig", path
    )
    assert "is not UTF-8, which relay.toml requires" in refusal
    assert "edge" not in hub.directory.current.clusters_by_name


async def test_a_direct_relay_gets_files_without_a_key(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "relay"
    ca = ["--relay-ca", str(hub.ca)]
    url = ["--mode", "direct", "--relay-url", "https://127.0.0.1:9443"]
    refusal = await hub.fails("cluster", "add", "edge", *url, *ca, "--output-dir", str(folder))
    assert "--allow-private-address" in refusal
    done = await hub.ok(
        "cluster", "add", "edge", *url, *ca, "--allow-private-address", "--output-dir", str(folder)
    )
    assert f"put the certificate and key for its own address into {folder}: tls.crt, tls.key" in done.stderr
    assert {path.name for path in folder.iterdir()} == {"relay.toml", "hub-keys.json"}
    for name in ("tls.crt", "tls.key"):
        (folder / name).write_text("x")
    relay = relay_config.load(folder / "relay.toml", {})
    assert isinstance(relay.way, relay_config.DirectListener)
    assert relay.way.listen == Address("::", 9443)
    cluster = hub.directory.current.clusters_by_name["edge"]
    assert (cluster.relay_url, cluster.relay_ca_pem) == (
        "https://127.0.0.1:9443",
        hub.ca.read_text(),
    )


async def test_nothing_is_enrolled_when_its_files_could_not_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "relay.key").write_text("precious")
    assert "exists already" in await hub.fails("cluster", "add", "prod", "--output-dir", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "cannot write" in await hub.fails(
        "cluster", "add", "prod", "--output-dir", str(tmp_path / "file" / "x")
    )
    assert "--output-dir" in await hub.fails("cluster", "add", "prod", "--kubeconfig", "x", code=2)
    assert hub.directory.current.clusters_by_name == {}


async def test_a_relays_key_is_replaced(hub: Hub, tmp_path: Path) -> None:
    await hub.ok("cluster", "add", "prod")
    await hub.ok("cluster", "key", "prod", "--keep-old", "--output-dir", str(tmp_path / "relay"))
    key = SigningKey.from_pem((tmp_path / "relay" / "relay.key").read_bytes())
    assert key.public in hub.directory.current.clusters_by_name["prod"].relay_keys
    printed = await hub.ok("cluster", "key", "prod")
    assert key.to_pem().decode() not in printed.stdout
    assert len(hub.directory.current.clusters_by_name["prod"].relay_keys) == 1


async def test_rbac_is_printed_for_what_is_enrolled_now(hub: Hub) -> None:
    await enrol(hub)
    printed = await hub.ok("cluster", "rbac", "prod", "--namespace", "n", "--service-account", "s")
    role, binding = yaml.safe_load_all(printed.stdout)
    assert role["rules"][0]["resourceNames"] == ["agent:sre-1"]
    assert binding["subjects"][0] == {"kind": "ServiceAccount", "name": "s", "namespace": "n"}
    role, _ = yaml.safe_load_all((await hub.ok("cluster", "rbac", "prod", "--wildcard")).stdout)
    assert "resourceNames" not in role["rules"][0]


async def test_a_constrained_role_stays_one_with_new_manifests(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")

    def verbs(printed: str) -> set[str]:
        kinds = {each["kind"]: each for each in yaml.safe_load_all(printed)}
        return {verb for rule in kinds["ClusterRole"]["rules"] for verb in rule["verbs"]}

    add = ("cluster", "add", "prod", "--team", "sre")
    for command in ((*add, "--constrained"), ("cluster", "key", "prod", "--yes", "--constrained")):
        assert "impersonate:user-info" in verbs((await hub.ok(*command)).stdout)
    assert "impersonate" in verbs((await hub.ok("cluster", "key", "prod", "--yes")).stdout)


async def test_every_list_is_a_table_for_people_and_an_array_for_programs(hub: Hub) -> None:
    for kind, hint in (
        ("team", "team add"),
        ("agent", "agent add"),
        ("cluster", "cluster add"),
        ("relay", "cluster add"),
    ):
        empty = await hub.ok(kind, "list")
        assert empty.stdout == ""
        assert f"hawse admin {hint}" in empty.stderr
        assert await hub.json(kind, "list") == []
    await enrol(hub)
    for args, header, row in (
        (("team", "list"), ["TEAM", "GROUP", "AGENTS", "CLUSTERS"], ["sre", "main/sre", "1", "prod"]),
        (
            ("agent", "list"),
            ["AGENT", "STATE", "TEAMS", "CLUSTERS", "OWNER", "LAST", "USED"],
            ["sre-1", "active", "sre", "prod", "Ada", "Lovelace", "never"],
        ),
        (
            ("cluster", "list"),
            ["CLUSTER", "MODE", "TEAMS", "RELAYS", "LABELS", "CREATED"],
            ["prod", "tunnel", "sre", "0", "env=prod", "0s", "ago"],
        ),
    ):
        lines = (await hub.ok(*args)).stdout.splitlines()
        assert lines[0].split() == header
        assert lines[1].split()[: len(row) - 2] == row[: len(row) - 2]
        assert len(await hub.json(*args)) == 1
    assert (await hub.ok("token", "list")).stdout.splitlines()[1].startswith("local")


async def test_everything_can_be_shown(hub: Hub) -> None:
    await enrol(hub)
    assert "main/sre" in (await hub.ok("team", "show", "sre")).stdout
    shown = (await hub.ok("agent", "show", "sre-1")).stdout
    assert "agent:sre-1" in shown
    assert "hws_" in shown
    assert "env=prod" in (await hub.ok("cluster", "show", "prod")).stdout
    assert "local" in (await hub.ok("token", "show", "local")).stdout
    assert "https://hub.example" in (await hub.ok("hub", "show")).stdout
    for args in (
        ("team", "show", "sre"),
        ("agent", "show", "sre-1"),
        ("cluster", "show", "prod"),
        ("token", "show", "local"),
    ):
        assert (await hub.json(*args))["name"] == args[2]
    assert (await hub.json("hub", "show"))["public_url"] == "https://hub.example"


async def test_the_tunnels_of_a_relay_are_listed_by_hub(hub: Hub) -> None:
    now = time.time()
    here = RelayInfo("prod", "pod-a", "1", "192.0.2.7", now, now, 12.5, 3, hub="aaaaaaaa")
    hub.live.relays_here.append(here)
    hub.live.others.append(attrs.evolve(here, rtt_ms=None, streams=None, hub="bbbbbbbb", leaving=True))
    lines = (await hub.ok("relay", "list")).stdout.splitlines()
    assert "HUB" in lines[0].split()
    assert [line.split()[2:4] for line in lines[1:]] == [["aaaaaaaa", "connected"], ["bbbbbbbb", "leaving"]]
    shown = (await hub.ok("relay", "show", "pod-a")).stdout
    assert "aaaaaaaa, bbbbbbbb" in shown
    assert "12.5 ms" in shown


async def test_relays_are_listed_with_last_seen_rtt_and_version(hub: Hub) -> None:
    await enrol(hub)
    cluster_id = hub.directory.current.clusters_by_name["prod"].id
    contact = RelayContact(cluster_id, "pod-a", "b", "\x1b]0;owned\x07 0.1", "192.0.2.7")
    await hub.directory.change(lambda store: store.relay_connected(contact))
    hub.live.relays_here.append(
        RelayInfo("prod", "pod-b", "hawse/0.1.0", "192.0.2.8", time.time(), time.time(), 12.34, 3, "kid-7")
    )
    table = (await hub.ok("relay", "list")).stdout
    assert "\x1b" not in table
    _, here, away = table.splitlines()
    assert here.split()[:3] == ["prod", "pod-b", "connected"]
    assert "12.3 ms" in here
    assert "hawse/0.1.0" in here
    # So that an old key is dropped only when no relay uses it.
    assert "kid-7" in here
    assert away.split()[:3] == ["prod", "pod-a", "away"]
    listed = await hub.json("relay", "list")
    assert [relay["connected"] for relay in listed] == [True, False]
    await hub.ok("cluster", "add", "empty")
    assert await hub.json("relay", "list", "--cluster", "empty") == []
    assert (await hub.json("relay", "show", "pod-b"))["rtt_ms"] == 12.34
    assert "round trip" in (await hub.ok("relay", "show", "pod-b")).stdout
    assert "no relay 'x'" in await hub.fails("relay", "show", "x")
    hub.live.relays_here.append(RelayInfo("dev", "pod-b", "1", "a", 0, 0, None, 0))
    assert "--cluster" in await hub.fails("relay", "show", "pod-b")
    assert (await hub.json("relay", "show", "pod-b", "--cluster", "dev"))["rtt_ms"] is None


async def test_two_who_change_an_agents_teams_at_once_lose_neither_change(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enrol(hub)
    for name in ("web", "ops"):
        await hub.ok("team", "add", name)
    call = AdminClient._call
    others = [{"add": ["web"], "remove": ["sre"]}]

    def call_behind_another(client: AdminClient, method: str, *rest: Any) -> Any:
        if method != "GET" and others:
            call(client, "PATCH", ("agents", "sre-1", "teams"), others.pop(), {})
        return call(client, method, *rest)

    monkeypatch.setattr(AdminClient, "_call", call_behind_another)
    await hub.ok("agent", "teams", "sre-1", "--add", "ops")
    assert hub.directory.current.agents_by_name["sre-1"].teams == ("ops", "web")


async def test_an_agents_life(hub: Hub) -> None:
    await enrol(hub)
    await hub.ok("team", "add", "web", "--cluster", "prod")
    changed = await hub.ok("agent", "teams", "sre-1", "--add", "web", "--remove", "sre")
    assert "hawse admin cluster rbac prod" in changed.stderr
    assert hub.directory.current.agents_by_name["sre-1"].teams == ("web",)
    assert "--add" in await hub.fails("agent", "teams", "sre-1", code=2)
    await hub.ok("agent", "lock", "sre-1")
    assert "locked already" in await hub.fails("agent", "lock", "sre-1")
    for step, *again in (
        ("`hawse admin agent code sre-1` or", "agent", "add", "sre-1", "--owner", "Ada", "--team", "web"),
        ("`hawse admin agent key list sre-1`", "agent", "key", "revoke", "sre-1", "x"),
        ("`hawse admin federation list`", "federation", "remove", "x"),
        ("choose another name", "token", "add", "local", "--role", "admin"),
        ("add another team in the same command", "agent", "teams", "sre-1", "--remove", "web"),
    ):
        assert step in await hub.fails(*again)
    await hub.ok("agent", "unlock", "sre-1")
    key = (await hub.ok("agent", "key", "add", "sre-1")).stdout.strip()
    keys = await hub.json("agent", "key", "list", "sre-1")
    assert keys[1]["hint"] == key[:10] + "…"
    await hub.ok("agent", "key", "revoke", "sre-1", keys[0]["id"])
    assert "revoked" in (await hub.ok("agent", "key", "list", "sre-1")).stdout
    assert (await hub.json("agent", "key", "add", "sre-1"))["api_key"].startswith("hws_")
    await hub.ok("agent", "remove", "sre-1")
    assert await hub.json("agent", "list") == []
    assert [agent["state"] for agent in await hub.json("agent", "list", "--retired")] == ["retired"]
    refusal = await hub.fails("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre")
    assert "never given to another" in refusal


async def test_agents_are_listed_by_what_they_belong_to(hub: Hub) -> None:
    await enrol(hub)
    await hub.ok("team", "add", "web")
    await hub.ok("agent", "add", "web-1", "--owner", "Bo", "--team", "web")
    for option in (("--team", "sre"), ("--cluster", "prod"), ("--policy", "guard")):
        assert [agent["name"] for agent in await hub.json("agent", "list", *option)] == ["sre-1"], option
    none = await hub.ok("agent", "list", "--team", "web", "--cluster", "prod")
    assert none.stderr == "no agent matches\n"
    assert "there is no policy 'gaurd'" in await hub.fails("agent", "list", "--policy", "gaurd")
    printed = (await hub.ok("agent", "show", "sre-1")).stdout
    assert "policies    granted, guard\n" in printed
    assert "limits      streams_per_agent=256, requests_per_second=500," in printed


async def test_grants_and_removals(hub: Hub) -> None:
    await enrol(hub)
    await hub.ok("team", "add", "web")
    granted = await hub.ok("cluster", "grant", "prod", "web")
    assert "hawse admin cluster rbac prod" in granted.stderr
    await hub.ok("cluster", "revoke", "prod", "web")
    assert "still has agent sre-1" in await hub.fails("team", "remove", "sre")
    gone = await hub.ok("team", "remove", "web")
    assert "main/web" in gone.stderr
    await hub.ok("cluster", "remove", "prod", "--yes")
    assert await hub.json("cluster", "list") == []


async def test_tokens(hub: Hub) -> None:
    token = (await hub.ok("token", "add", "ci", "--role", "viewer")).stdout.strip()
    await hub.ok("team", "list", env={"HAWSE_ADMIN_TOKEN": token})
    assert "no token 'x'" in await hub.fails("token", "show", "x")
    await hub.ok("token", "remove", "ci")
    refusal = await hub.fails("team", "list", env={"HAWSE_ADMIN_TOKEN": token})
    assert "refused this admin token" in refusal
    assert "last one" in await hub.fails("token", "remove", "local")
    assert (await hub.json("token", "add", "two", "--role", "admin"))["token"].startswith("hws_")
    removed = await hub.ok("token", "remove", "local")
    assert "makes a new one when it starts: hawse hub --replace" in removed.stderr


@pytest.mark.parametrize(
    "name",
    ["system:masters", "a,b", "a b", "a\nb", "../x", "a/b", "a?b", "a#b", "ſystem", "\x1b]0;x\x07", "%2e%2e"],
)
async def test_hostile_names_are_one_line_of_refusal(hub: Hub, name: str) -> None:
    await hub.ok("team", "add", "sre")
    for args in (
        ("team", "add", name),
        ("agent", "add", name, "--owner", "a", "--team", "sre"),
        ("agent", "add", "x", "--owner", "a", "--team", name),
        ("cluster", "add", name),
        ("cluster", "rbac", name),
        ("cluster", "grant", name, name),
        ("agent", "show", name),
        ("team", "remove", name),
        ("agent", "key", "revoke", name, name),
    ):
        line = await hub.fails(*args)
        assert line.rstrip("\n").isprintable()


def of_an_odd_version(pem: str) -> str:
    """A certificate that OpenSSL accepts anyway."""
    der = ssl.PEM_cert_to_DER_cert(pem)
    return ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", 1))


async def test_bad_labels_and_owners(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")
    assert "NAME=VALUE" in await hub.fails("cluster", "add", "prod", "--label", "x", code=2)
    twice = ("--label", "env=prod", "--label", "env=test")
    assert "each NAME once" in await hub.fails("cluster", "add", "prod", *twice, code=2)
    assert "label" in await hub.fails("cluster", "add", "prod", "--label", "a b=c")
    assert "owner" in await hub.fails("agent", "add", "x", "--owner", "a\x1b]b", "--team", "sre")
    assert await hub.fails("cluster", "add", "prod", "--hub-ca", os.devnull) == (
        f"hawse: --hub-ca: {os.devnull} holds no certificate in PEM: "
        "name the file with the CA's certificate\n"
    )
    private = hub.data.path / "private.pem"
    for text in ("# PRIVATE\n" + hub.ca.read_text(), of_an_odd_version(hub.ca.read_text())):
        private.write_text(text)
        refused = await hub.fails("cluster", "add", "prod", "--relay-ca", str(private))
        assert refused == "hawse: relay_ca_pem: a CA must be certificates in PEM, and nothing else\n"
    big = hub.data.path / "big.pem"
    big.write_bytes(b"x" * 100_000)
    assert "more than" in await hub.fails("cluster", "add", "prod", "--hub-ca", str(big))


async def test_a_ca_by_hand_takes_the_hubs_place(hub: Hub, tmp_path: Path) -> None:
    other = tmp_path / "ca.pem"
    other.write_text(hub.ca.read_text() * 2)
    await hub.ok("cluster", "add", "prod", "--hub-ca", str(other), "--output-dir", str(tmp_path / "relay"))
    assert (tmp_path / "relay" / "hub-ca.pem").read_text() == other.read_text()
    assert KeySet.from_jwks((tmp_path / "relay" / "hub-keys.json").read_text())


async def test_secrets_stand_in_no_message_and_no_trail(hub: Hub) -> None:
    await enrol(hub)
    token = hub.data.admin.token()
    assert token is not None
    made = await hub.json("agent", "add", "two", "--owner", "a", "--team", "sre")
    outputs = [
        (await hub.run(*args)).output
        for args in (
            ("agent", "show", "two"),
            ("agent", "list", "--json"),
            ("token", "list", "--json"),
            ("hub", "show"),
        )
    ]
    for secret in (token, made["api_key"]):
        assert secret not in "\n".join(outputs)
    trail = hub.data.audit_file.read_bytes() + hub.data.audit_file.with_name("audit.db-wal").read_bytes()
    assert b"admin.action" in trail
    for secret in (token, made["api_key"], hub.data.pepper().hex()):
        assert secret.encode() not in trail
    assert json.dumps(made)


async def test_a_relays_key_changes_in_two_steps(hub: Hub) -> None:
    await enrol(hub)
    (old,) = hub.directory.current.clusters_by_name["prod"].relay_keys
    assert "no older relay key" in await hub.fails("cluster", "key", "prod", "--drop-old")
    await hub.ok("cluster", "key", "prod", "--keep-old")
    first, second = hub.directory.current.clusters_by_name["prod"].relay_keys
    assert first == old
    assert "separate steps" in await hub.fails("cluster", "key", "prod", "--keep-old", "--drop-old", code=2)
    told = await hub.ok("cluster", "key", "prod", "--drop-old")
    assert told.stdout == ""
    assert f"are now: {second.kid}\n" in told.stderr
    assert hub.directory.current.clusters_by_name["prod"].relay_keys == (second,)


def fake_kubectl(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0, **answers: object) -> Path:
    """A fake kubectl that answers by resource, and records its arguments."""
    for kind, answer in answers.items():
        (folder / kind).write_text(json.dumps(answer) if answer is not None else "")
    program = folder / "kubectl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/asked\n'
        f'case "$*" in *clusterrolebindings*) cat {folder}/bindings;; '
        f"*namespace\\ kube-system*) cat {folder}/namespace;; *) cat {folder}/role;; esac\n"
        f"[ {code} = 0 ] || echo 'error: You must be logged in' >&2\nexit {code}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (folder / "kubeconfig").write_text("x")
    return folder / "kubeconfig"


async def test_a_clusters_rbac_is_compared_with_what_is_enrolled(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enrol(hub)
    role, binding = yaml.safe_load_all((await hub.ok("cluster", "rbac", "prod")).stdout)
    ghost = {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "x\x1b]0;"},
        "roleRef": {"kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "User", "name": "agent:ghost"}],
    }
    kubeconfig = fake_kubectl(tmp_path, monkeypatch, bindings={"items": [binding, ghost]}, role=role)
    args = ("cluster", "check", "prod", "--kubeconfig", str(kubeconfig))
    hub.live.relays_here.append(
        RelayInfo("prod", "pod-b", "hawse/0.1.0", "192.0.2.8", time.time(), time.time(), None, 0)
    )
    found = await hub.run(*args, "--context", "east")
    assert found.exit_code == 3
    assert "WARNING  agent:ghost has rights and is not enrolled" in found.stdout
    assert "\x1b" not in found.stdout
    assert "cluster prod: 1 to fix" in found.stdout
    asked = (tmp_path / "asked").read_text()
    assert f"--kubeconfig {kubeconfig} --context east get clusterrolebindings,rolebindings" in asked
    as_json = json.loads((await hub.run(*args, "--json")).stdout)
    assert (as_json["ok"], as_json["findings"][0]["check"]) == (False, "names")

    fake_kubectl(tmp_path, monkeypatch, bindings={"items": [binding]}, role=role)
    assert "cluster prod: no problems found" in (await hub.ok(*args)).stdout
    fake_kubectl(tmp_path, monkeypatch, bindings={"items": []}, role=None)
    none = (await hub.run(*args, "--context", "east")).stdout
    assert "may not impersonate any agent" in none
    there = f"kubectl --kubeconfig {kubeconfig} --context east"
    assert f"hawse admin cluster rbac prod | {there} apply -f -\n" in none
    fake_kubectl(tmp_path, monkeypatch, bindings=None, role=None, code=1)
    assert "kubectl failed: error: You must be logged in" in await hub.fails(*args)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "not on the PATH" in await hub.fails(*args)


async def test_a_check_says_whether_a_relay_is_here_and_in_which_cluster(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enrol(hub)
    role, binding = yaml.safe_load_all((await hub.ok("cluster", "rbac", "prod")).stdout)
    namespace = {"metadata": {"uid": "0b9f\x1b[31m"}}
    kubeconfig = fake_kubectl(
        tmp_path, monkeypatch, bindings={"items": [binding]}, role=role, namespace=namespace
    )
    args = ("cluster", "check", "prod", "--kubeconfig", str(kubeconfig))
    away = await hub.run(*args)
    assert away.exit_code == 3
    assert "ERROR    no relay of prod is connected" in away.stdout
    assert "INFO     prod is not pinned" in away.stdout
    relay = RelayInfo("prod", "pod-b", "hawse/0.1.0", "192.0.2.8", time.time(), time.time(), None, 0)
    hub.live.relays_here.append(attrs.evolve(relay, statement=Statement("1a2b", api_server=False)))
    down = await hub.run(*args)
    assert down.exit_code == 3
    assert "ERROR    the API server does not answer relay pod-b" in down.stdout
    assert "down" in (await hub.ok("relay", "show", "pod-b")).stdout
    hub.live.relays_here[:] = [attrs.evolve(relay, statement=Statement("1a2b", api_server=True))]
    cluster = hub.directory.current.clusters_by_name["prod"]
    await hub.directory.change(lambda store: store.pin_cluster(cluster.id, "1a2b"))
    refused = await hub.fails(*args)
    assert "the kubeconfig leads to another cluster than prod" in refused
    assert "hawse admin cluster repin prod" in refused
    assert "\x1b" not in refused
    namespace = {"metadata": {"uid": "1a2b"}}
    fake_kubectl(tmp_path, monkeypatch, bindings={"items": [binding]}, role=role, namespace=namespace)
    assert "cluster prod: no problems found" in (await hub.ok(*args)).stdout
    assert "1a2b" in (await hub.ok("cluster", "show", "prod")).stdout
    told = await hub.ok("cluster", "repin", "prod", "--yes")
    assert "cluster prod is no longer pinned to 1a2b" in told.stderr
    assert "not pinned" in (await hub.ok("cluster", "show", "prod")).stdout
    assert "is not pinned" in await hub.fails("cluster", "repin", "prod", "--yes")


async def test_a_table_fits_the_terminal_and_a_pipe_gets_all_of_it(hub: Hub) -> None:
    await enrol(hub)
    pod, key = "hawse-relay-6d4b75cb6d-x7k2p", "EtbE4RoEoy5ugICp3xgILpPj9GO8HTlG_UMBzIAq-OI"
    hub.live.relays_here.append(
        RelayInfo("prod", pod, "hawse/0.1.0", "192.0.2.8", time.time(), time.time(), 12.34, 3, key)
    )
    command = (sys.executable, "-m", "hawse", "admin", "--data-dir", str(hub.data.path))

    def look() -> list[str]:
        with on_terminal((*command, "relay", "list"), os.environ, columns=80) as terminal:
            return terminal.read_all().decode().splitlines()

    headings, relay, *rest = await trio.to_thread.run_sync(look)
    assert headings == "CLUSTER  INSTANCE                      STATE      API SERVER  LAST SEEN  RTT"
    assert relay.split()[:3] == ["prod", pod, "connected"]
    assert max(map(len, (relay, *rest))) <= 80
    assert "KEY" in " ".join(rest)
    (headings, relay) = (await hub.ok("relay", "list")).stdout.splitlines()
    assert headings.endswith("KEY                                          VERSION      ADDRESS")
    assert key in relay


async def test_a_name_that_is_mistyped_is_an_error_with_what_is_near(hub: Hub) -> None:
    await enrol(hub)
    cluster = (
        "there is no cluster 'prd' (did you mean prod?): `hawse admin cluster list` lists the existing ones"
    )
    agent = (
        "there is no agent 'SRE-1' (did you mean sre-1?): `hawse admin agent list` lists the existing ones"
    )
    for error, *command in (
        (cluster, "relay", "list", "--cluster", "prd"),
        (cluster, "relay", "show", "pod-a", "--cluster", "prd"),
        (cluster, "session", "list", "--cluster", "prd"),
        (cluster, "session", "kill", "--cluster", "prd", "--reason", "x"),
        (cluster, "cluster", "grant", "prd", "sre"),
        (agent, "session", "list", "--agent", "SRE-1"),
        (agent, "session", "kill", "--agent", "SRE-1", "--reason", "x"),
        (agent, "agent", "lock", "SRE-1"),
    ):
        assert await hub.fails(*command) == f"hawse: {error}\n"
    assert "no token 'locl' (did you mean local?)" in await hub.fails("token", "show", "locl")
    # A name far from all others gets no suggestion.
    assert "'x': `hawse" in await hub.fails("session", "list", "--agent", "x")
    none = await hub.ok("relay", "list", "--cluster", "prod")
    assert none.stderr == (
        "no relay of prod has connected yet; to find out why: "
        "hawse admin cluster check prod --kubeconfig FILE\n"
    )


async def test_a_relay_that_is_mistyped_is_an_error_with_what_is_near(hub: Hub) -> None:
    await enrol(hub)
    hub.live.relays_here.append(
        RelayInfo("prod", "pod-b", "hawse/0.1.0", "192.0.2.8", time.time(), time.time(), 12.34, 3, "kid-7")
    )
    assert await hub.fails("relay", "show", "pod-c", "--cluster", "prod") == (
        "hawse: no relay 'pod-c' of prod has connected (did you mean pod-b?); "
        "for the names: hawse admin relay list\n"
    )


async def test_sessions_are_listed_and_killed(hub: Hub) -> None:
    await enrol(hub)
    assert "no open calls" in (await hub.ok("session", "list")).stderr
    plain = SessionInfo(
        id="0199a1b2-1",
        agent="sre-1",
        cluster="prod",
        kind="exec/websocket",
        verb="get",
        resource="pods/exec",
        namespace="dev",
        name="web-0",
        client="192.0.2.7",
        relay="relay-1",
        started_at=time.time() - 600,
        status=200,
        bytes_in=12,
        bytes_out=3456,
    )
    hub.live.sessions_here += [
        plain,
        attrs.evolve(plain, id="0199a1b2-2"),
        attrs.evolve(plain, id="0199a1b2-3"),
    ]
    heading, first, *_ = (await hub.ok("session", "list", "--agent", "sre-1")).stdout.splitlines()
    assert heading.split() == ["ID", "AGENT", "CLUSTER", "WHAT", "KIND", "SINCE", "IN", "OUT", "FROM"]
    assert "get pods/exec dev/web-0" in first
    assert "10m ago" in first
    assert [row["bytes_out"] for row in await hub.json("session", "list")] == [3456] * 3
    assert [row["claimed_reason"] for row in await hub.json("session", "list")] == [""] * 3
    hub.live.sessions_here[0] = attrs.evolve(plain, claimed_reason="the pod \x1bhangs")
    heading, first, second, _ = (await hub.ok("session", "list")).stdout.splitlines()
    assert heading.split()[-1] == "CLAIMED"
    assert first.endswith("the pod \\x1bhangs")
    assert not second.endswith("hangs")
    done = await hub.ok("session", "kill", "0199a1b2-1", "--reason", "too long")
    assert "killed 0199a1b2-1: agent:sre-1 on prod, get pods/exec dev/web-0" in done.stderr
    assert "session list" in await hub.fails("session", "kill", "0199a1b2-1", "--reason", "again")
    gone = await hub.json(
        "session", "kill", "--cluster", "prod", "--agent", "sre-1", "--reason", "x", "--yes"
    )
    assert len(gone["killed"]) == 2
    done = await hub.ok("session", "kill", "--agent", "sre-1", "--reason", "x")
    assert done.stderr == "no open call matches\n"
    await hub.fails("session", "kill", "--agent", "sre-1", code=2)


async def test_what_a_replaced_hub_still_finishes_is_not_kept_quiet(hub: Hub) -> None:
    await enrol(hub)
    hub.live.beside = 1
    told = "a replaced hub is still finishing its own calls"
    assert told in (await hub.ok("session", "list")).stderr
    assert told in (await hub.ok("session", "kill", "--agent", "sre-1", "--reason", "x")).stderr
    assert await hub.json("session", "list") == []
    await hub.fails("session", "kill", "--reason", "x", code=2)
    await hub.fails("session", "kill", "0199a1b2-1", "--agent", "sre-1", "--reason", "x", code=2)


async def test_an_agent_is_enrolled_by_a_code(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")
    added = await hub.ok("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre", "--credential", "code")
    (code,) = added.stdout.splitlines()
    assert code.startswith("hwc_")
    assert "hawse login --hub https://hub.example --code --ca hub-ca.pem" in added.stderr
    assert code not in added.stderr
    again = await hub.ok("agent", "code", "sre-1")
    assert again.stdout.strip() != code
    assert (await hub.json("agent", "code", "sre-1"))["code"].startswith("hwc_")
    assert len((await hub.json("agent", "show", "sre-1"))["codes"]) == 3
    assert "open codes  3" in (await hub.ok("agent", "show", "sre-1")).stdout
    gone = await hub.ok("agent", "code", "sre-1", "--withdraw")
    assert gone.stderr == "withdrawn codes of agent sre-1: 3\n"
    assert hub.directory.current.codes_by_hash == {}
    assert (await hub.json("agent", "key", "list", "sre-1")) == []
    await hub.fails("agent", "code", "none")


async def test_an_agent_can_be_added_without_any_credential(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")
    added = await hub.ok("agent", "add", "sre-1", "--owner", "A", "--team", "sre", "--credential", "none")
    assert added.stdout == ""
    assert "login" not in added.stderr
    assert (await hub.ok("agent", "show", "sre-1")).stderr == "no keys\n"


async def test_a_registered_key_is_listed_and_revoked_like_any_other(hub: Hub) -> None:
    await enrol(hub)
    key = SigningKey.generate()
    await hub.directory.change(
        lambda store: store.add_code("sre-1", "c") and store.redeem_code("c", key.public)
    )
    api_key, own = await hub.json("agent", "key", "list", "sre-1")
    assert (api_key["type"], own["type"]) == ("api-key", "key")
    assert own["hint"] == key.kid[:10] + "…"
    await hub.ok("agent", "key", "revoke", "sre-1", own["id"])
    assert hub.directory.current.agent_keys_by_kid == {}
    assert "revoked" in (await hub.ok("agent", "key", "list", "sre-1")).stdout


async def test_workloads_are_federated_by_exact_claims(hub: Hub, tmp_path: Path) -> None:
    await enrol(hub)
    assert "hawse admin federation add" in (await hub.ok("federation", "list")).stderr
    issuer = "https://token.actions.githubusercontent.com"
    add = ("federation", "add", issuer, "--agent", "sre-1")
    added = await hub.ok(*add, "--claim", "repository_id=42", "--claim", "ref=refs/heads/main")
    assert added.stdout == ""
    assert f"tokens of {issuer} for https://hub.example with ref=refs/heads/main" in added.stderr
    [rule] = await hub.json("federation", "list")
    assert rule["claims"] == {"repository_id": "42", "ref": "refs/heads/main"}
    assert (rule["agent"], rule["keys"]) == ("sre-1", "discovered")
    assert "repository_id=42" in (await hub.ok("federation", "list")).stdout

    assert "(--allow-mutable-claims)" in await hub.fails(*add, "--claim", "repository=acme/app")
    await hub.ok(*add, "--claim", "repository=acme/app", "--allow-mutable-claims")
    assert "wildcards are not supported" in await hub.fails(*add, "--claim", "repository_id=*")
    for claim in ("repository_id", "=x", ""):
        await hub.fails(*add, "--claim", claim, code=2)
    await hub.fails(*add, "--claim", "repository_id=1", "--claim", "repository_id=2", code=2)
    await hub.fails("federation", "add", "http://x.example", "--agent", "sre-1", "--claim", "oid=1")
    await hub.fails("federation", "add", issuer, "--agent", "none", "--claim", "oid=1")

    keys = tmp_path / "jwks.json"
    keys.write_text(KeySet([SigningKey.generate().public]).to_jwks())
    uid = "/kubernetes.io/serviceaccount/uid=u-1"
    await hub.ok(
        *("federation", "add", "https://kubernetes.default.svc", "--agent", "sre-1"),
        *("--claim", uid, "--audience", "hawse", "--jwks", str(keys)),
    )
    rules = await hub.json("federation", "list")
    assert [(rule["audience"], rule["keys"]) for rule in rules][-1] == ("hawse", "given")
    keys.write_bytes(b"\xff")
    await hub.fails(
        "federation", "add", "https://x.example", "--agent", "sre-1", "--claim", uid, "--jwks", str(keys)
    )
    for rule in rules:
        await hub.ok("federation", "remove", rule["id"])
    assert hub.directory.current.issuers_by_url == {}
    await hub.fails("federation", "remove", rule["id"])


async def test_each_change_is_told_to_programs_too(hub: Hub) -> None:
    await enrol(hub)
    await hub.ok("team", "add", "spare")
    await hub.ok("token", "add", "prometheus", "--role", "metrics")
    key = (await hub.json("agent", "key", "add", "sre-1"))["id"]
    assert (await hub.json("cluster", "grant", "prod", "spare"))["teams"] == ["spare", "sre"]
    assert (await hub.json("cluster", "revoke", "prod", "sre"))["apply_rbac"] == ["prod"]
    assert (await hub.json("agent", "lock", "sre-1"))["state"] == "locked"
    assert (await hub.json("agent", "unlock", "sre-1"))["state"] == "active"
    assert (await hub.json("agent", "code", "sre-1", "--withdraw"))["withdrawn"] == 0
    assert (await hub.json("agent", "key", "revoke", "sre-1", key))["revoked"] == key
    assert (await hub.json("agent", "remove", "sre-1"))["state"] == "retired"
    assert (await hub.json("team", "remove", "spare"))["removed"] == "spare"
    assert await hub.json("cluster", "remove", "prod") == {"removed": "prod"}
    assert await hub.json("token", "remove", "prometheus") == {"removed": "prometheus"}
    rule = (
        "federation",
        "add",
        "https://ci.example",
        "--agent",
        "bot",
        "--claim",
        "oid=1",
        "--audience",
        "x",
    )
    await hub.ok("team", "add", "robots")
    await hub.ok("agent", "add", "bot", "--owner", "Ada", "--team", "robots", "--credential", "none")
    await hub.ok(*rule)
    [added] = [each["id"] for each in await hub.json("federation", "list")]
    assert (await hub.json("federation", "remove", added)) == {"removed": added}


async def test_no_private_key_is_printed_on_a_terminal_unless_that_is_said(hub: Hub) -> None:
    told = (
        "hawse: a private key would stay in this terminal's scrollback: pipe the output (| {}), write it to "
        "a file with --output FILE, or use --force\n"
    )
    manifests, document = told.format("kubectl apply -f -"), told.format("COMMAND")
    assert await at_a_terminal(hub, "cluster", "add", "prod") == (1, b"", manifests)
    assert await at_a_terminal(hub, "cluster", "add", "prod", "--json") == (1, b"", document)
    # Nothing was created, so the name is free.
    code, shown, _ = await at_a_terminal(hub, "cluster", "add", "prod", "--force")
    assert (code, b"PRIVATE KEY" in shown) == (0, True)
    assert await at_a_terminal(hub, "cluster", "key", "prod", "--keep-old") == (1, b"", manifests)
    assert len((await hub.json("cluster", "show", "prod"))["relay_keys"]) == 1


async def test_manifests_are_written_to_a_file_of_their_owner_alone(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "prod.yaml"
    made = await hub.ok("cluster", "add", "prod", "--output", str(file))
    assert made.stdout == ""
    assert f"kubectl apply -f {file}, then remove it" in made.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kinds = {item["kind"] for item in yaml.safe_load_all(file.read_text())}
    assert {"Secret", "Deployment", "ClusterRole"} <= kinds
    before = file.read_text()
    refused = await hub.fails("cluster", "key", "prod", "--output", str(file))
    assert refused == (
        f"hawse: {file} exists already: choose another --output, or overwrite it with --force\n"
    )
    assert file.read_text() == before
    file.chmod(0o644)
    await hub.ok("cluster", "key", "prod", "--output", str(file), "--force", "--json")
    assert "PRIVATE KEY" in json.loads(file.read_text())["manifests"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_file_that_cannot_be_written_costs_no_key(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "none" / "prod.yaml"
    assert await hub.fails("cluster", "add", "prod", "--output", str(file)) == (
        f"hawse: cannot write {file}: No such file or directory\n"
    )
    folder = str(tmp_path)
    assert "is a folder" in await hub.fails("cluster", "add", "prod", "--output", folder, "--force")
    both = ("--output", str(file), "--output-dir", str(tmp_path / "relay"))
    assert "use one of them" in await hub.fails("cluster", "add", "prod", *both, code=2)
    await hub.fails("cluster", "add", "prod", "--team", "none", "--output", str(tmp_path / "prod.yaml"))
    assert os.listdir(tmp_path) == ["hub"]
    assert (await hub.json("cluster", "list")) == []


async def test_an_image_that_no_registry_has_is_told(hub: Hub) -> None:
    told = "warning: the manifests use the image hawse-relay, which is in no registry: build the target relay"
    assert told in (await hub.ok("cluster", "add", "prod")).stderr
    assert told not in (await hub.ok("cluster", "key", "prod", "--image", "reg.example/x:1")).stderr
