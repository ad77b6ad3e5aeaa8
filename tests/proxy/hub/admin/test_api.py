from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import attrs
import pytest
import trio

from audit.record import Phase, encode
from auth.apikey import hash as hash_key
from auth.keys import SigningKey
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.devca import ensure_certificate
from proxy.hub.membership.members import Members
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.store import Store
from proxy.kubernetes.statement import Statement
from tests.fakes.admin import PEPPER, TOKEN, WATCH, Bench, enrol
from tests.fakes.asgi import call
from tests.fakes.hubs import HUB

CA = """-----BEGIN CERTIFICATE-----
MIIBczCCARqgAwIBAgIUKUSTdlLXGEWFwrlcpxT0CwgjFgswCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNTAxMDEwMDAwMDBaGA8yMTI1MDEwMTAwMDAw
MFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABA==
-----END CERTIFICATE-----
"""


async def test_a_hub_is_enrolled_from_nothing(bench: Bench) -> None:
    made = await enrol(bench)
    assert made["agent"]["api_key"].startswith("hws_")
    assert made["agent"]["apply_rbac"] == ["prod"]
    assert made["agent"]["clusters"] == ["prod"]
    key_hash = hash_key(made["agent"]["api_key"], PEPPER)
    agent, key = bench.directory.current.api_keys_by_hash[key_hash]
    assert (agent.name, key.id) == ("sre-1", made["agent"]["api_key_id"])
    shown = await bench.ok("GET", "/v1/agents/sre-1")
    assert shown["keys"][0]["hint"] == made["agent"]["api_key"][:10] + "…"
    assert shown["owner"] == "ada"
    assert "api_key" not in shown
    assert (await bench.ok("GET", "/v1/teams/sre"))["clusters"] == ["prod"]
    assert (await bench.ok("GET", "/v1/clusters/prod"))["agents"] == ["sre-1"]
    assert (await bench.ok("GET", "/v1/hub"))["signing_key"] == bench.ring.current.active.kid


async def test_a_new_cluster_comes_with_all_that_its_relay_needs(bench: Bench) -> None:
    made = (await enrol(bench))["cluster"]
    relay = made["relay"]
    key = SigningKey.from_pem(relay["private_key_pem"].encode())
    cluster = bench.directory.current.clusters_by_name["prod"]
    assert bench.directory.current.find_relay_key(key.kid) == (cluster.id, key.public)
    assert relay["cluster_id"] == cluster.id
    assert bench.ring.current.active.kid in relay["hub_keys"]
    assert made["impersonate"] == {"agents": [], "groups": ["main/sre"]}
    assert "private_key_pem" not in await bench.ok("GET", "/v1/clusters/prod")


async def test_the_rbac_names_exactly_whom_the_relay_must_impersonate(bench: Bench) -> None:
    await enrol(bench)
    for name, teams in (("web-1", ["web"]), ("both", ["sre", "web"]), ("gone", ["sre"]), ("shut", ["sre"])):
        if name == "web-1":
            await bench.ok("POST", "/v1/teams", {"name": "web"})
        await bench.ok("POST", "/v1/agents", {"name": name, "owner": "ada", "teams": teams})
    await bench.ok("DELETE", "/v1/agents/gone")
    await bench.ok("POST", "/v1/agents/shut/lock")
    # A locked agent may be unlocked without another apply. An agent's other groups are sent as well.
    assert await bench.ok("GET", "/v1/clusters/prod/rbac") == {
        "cluster": "prod",
        "impersonate": {"agents": ["both", "shut", "sre-1"], "groups": ["main/sre", "main/web"]},
    }


async def test_a_change_of_impersonation_names_the_clusters_to_apply_it_in(bench: Bench) -> None:
    await enrol(bench)
    assert (await bench.ok("POST", "/v1/teams", {"name": "web", "clusters": ["prod"]}))["apply_rbac"] == [
        "prod"
    ]
    await bench.ok("POST", "/v1/clusters", {"name": "dev"})
    assert (await bench.ok("PUT", "/v1/clusters/dev/teams/sre"))["apply_rbac"] == ["dev"]
    changed = await bench.ok("PATCH", "/v1/agents/sre-1/teams", {"add": ["web"]})
    assert changed["apply_rbac"] == ["dev", "prod"]
    assert (await bench.ok("DELETE", "/v1/clusters/dev/teams/sre"))["apply_rbac"] == ["dev"]
    assert (await bench.ok("DELETE", "/v1/agents/sre-1"))["apply_rbac"] == ["prod"]
    gone = await bench.ok("DELETE", "/v1/teams/web")
    assert (gone["apply_rbac"], gone["group"]) == (["prod"], "main/web")


async def test_agents_are_locked_unlocked_and_listed(bench: Bench) -> None:
    await enrol(bench)
    assert (await bench.ok("POST", "/v1/agents/sre-1/lock"))["state"] == "locked"
    assert (await bench.ok("POST", "/v1/agents/sre-1/unlock"))["state"] == "active"
    second = await bench.ok("POST", "/v1/agents/sre-1/keys")
    assert hash_key(second["api_key"], PEPPER) in bench.directory.current.api_keys_by_hash
    await bench.ok("DELETE", f"/v1/agents/sre-1/keys/{second['id']}")
    assert hash_key(second["api_key"], PEPPER) not in bench.directory.current.api_keys_by_hash
    await bench.ok("DELETE", "/v1/agents/sre-1")
    assert (await bench.ok("GET", "/v1/agents"))["agents"] == []
    assert [a["state"] for a in (await bench.ok("GET", "/v1/agents?retired=true"))["agents"]] == ["retired"]


async def test_a_direct_cluster_has_a_url_and_no_key(bench: Bench) -> None:
    body = {"name": "edge", "mode": "direct", "relay_url": "https://relay.example"}
    made = await bench.ok("POST", "/v1/clusters", body)
    assert (made["mode"], made["relay_url"], made["relay_keys"]) == ("direct", "https://relay.example", [])
    assert made["relay"]["private_key_pem"] is None
    reply = await bench.ask("POST", "/v1/clusters/edge/keys", {})
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")


async def test_a_relay_key_is_replaced(bench: Bench) -> None:
    old = (await enrol(bench))["cluster"]["relay_keys"]
    kept = await bench.ok("POST", "/v1/clusters/prod/keys", {"keep_old": True})
    assert set(old) < set(kept["relay_keys"])
    new = await bench.ok("POST", "/v1/clusters/prod/keys", {})
    assert SigningKey.from_pem(new["relay"]["private_key_pem"].encode()).kid == new["relay_keys"][0]
    assert len(new["relay_keys"]) == 1


async def test_relays_that_are_here_and_relays_that_left(bench: Bench) -> None:
    await enrol(bench)
    cluster_id = bench.directory.current.clusters_by_name["prod"].id

    def contacts(store: Store) -> None:
        for instance in ("pod-a", "pod-b"):
            store.relay_connected(RelayContact(cluster_id, instance, "b", "0.1.0", "192.0.2.7"))
        store.relay_disconnected(cluster_id, "pod-a", "b")

    await bench.directory.change(contacts)
    bench.operations.live.append(
        RelayInfo("prod", "pod-b", "0.1.0", "192.0.2.7", 1_800_000_000.0, 1_800_000_009.0, 12.5, 3)
    )
    relays = (await bench.ok("GET", "/v1/relays"))["relays"]
    assert [(r["instance"], r["connected"], r["rtt_ms"], r["streams"]) for r in relays] == [
        ("pod-b", True, 12.5, 3),
        ("pod-a", False, None, 0),
    ]
    assert relays[0]["last_seen_at"] == "2027-01-15T08:00:09Z"
    assert (await bench.ok("GET", "/v1/clusters"))["clusters"][0]["relays"] == 1
    metrics = (await bench.ask("GET", "/metrics")).body.decode()
    assert 'hawse_relays{cluster="prod"} 1.0' in metrics
    assert 'hawse_streams{cluster="prod"} 3.0' in metrics
    assert 'hawse_agents{state="active"} 1.0' in metrics
    [age] = [line for line in metrics.splitlines() if line.startswith("hawse_directory_age_seconds ")]
    assert 0 <= float(age.split()[1]) < 10
    # A relay that says nothing of its API server, as older ones, is not counted for one that is down.
    assert 'hawse_relays_api_server_down{cluster="prod"} 0.0' in metrics
    (relay,) = bench.operations.live
    bench.operations.live[:] = [attrs.evolve(relay, statement=Statement("1a2b", api_server=False))]
    metrics = (await bench.ask("GET", "/metrics")).body.decode()
    assert 'hawse_relays_api_server_down{cluster="prod"} 1.0' in metrics
    (row,) = [each for each in (await bench.ok("GET", "/v1/relays"))["relays"] if each["connected"]]
    assert (row["api_server"], row["pinned"]) == ("down", True)


async def test_a_relay_is_expected_once_one_has_connected_by_a_tunnel(bench: Bench) -> None:
    await enrol(bench)
    await bench.ok("POST", "/v1/clusters", {"name": "older"})
    await bench.ok(
        "POST", "/v1/clusters", {"name": "edge", "mode": "direct", "relay_url": "https://relay.example"}
    )

    async def expected() -> dict[str, str]:
        metrics = (await bench.ask("GET", "/metrics")).body.decode()
        return dict(re.findall(r'^hawse_relays_expected{cluster="(\w+)"} (\S+)$', metrics, re.MULTILINE))

    assert await expected() == {"prod": "0.0", "older": "0.0", "edge": "0.0"}
    ids = bench.directory.current.clusters_by_name
    for name in ("prod", "edge"):
        await bench.directory.change(lambda store, name=name: store.pin_cluster(ids[name].id, "1a2b"))
    assert await expected() == {"prod": "1.0", "older": "0.0", "edge": "0.0"}
    # Its relay may not read what would pin the cluster.
    relay = RelayInfo("older", "pod-a", "0.1.0", "192.0.2.7", 1_800_000_000.0, 1_800_000_009.0, 12.5, 3)
    bench.operations.live.append(relay)
    assert await expected() == {"prod": "1.0", "older": "1.0", "edge": "0.0"}
    bench.operations.live.clear()
    assert await expected() == {"prod": "1.0", "older": "1.0", "edge": "0.0"}
    # A new one of the same name, before the next scrape.
    await bench.ok("DELETE", "/v1/clusters/older")
    await bench.ok("POST", "/v1/clusters", {"name": "older"})
    assert await expected() == {"prod": "1.0", "older": "0.0", "edge": "0.0"}
    await bench.ok("DELETE", "/v1/clusters/older")
    assert await expected() == {"prod": "1.0", "edge": "0.0"}


async def test_relays_are_listed_for_each_tunnel_at_each_hub(bench: Bench) -> None:
    await enrol(bench)
    here = RelayInfo(
        "prod", "pod-a", "0.1.0", "192.0.2.7", 1_800_000_000.0, 1_800_000_009.0, 12.5, 3, hub="aaaaaaaa"
    )
    bench.operations.live.append(here)
    bench.operations.others += [
        attrs.evolve(here, rtt_ms=None, streams=None, hub="bbbbbbbb"),
        attrs.evolve(here, instance="pod-b", rtt_ms=None, streams=None, hub="bbbbbbbb", leaving=True),
    ]
    relays = (await bench.ok("GET", "/v1/relays"))["relays"]
    assert [(r["instance"], r["hub"], r["streams"], r["leaving"], r["pinned"]) for r in relays] == [
        ("pod-a", "aaaaaaaa", 3, False, False),
        ("pod-a", "bbbbbbbb", None, False, None),
        ("pod-b", "bbbbbbbb", None, True, None),
    ]
    # By instance: a relay with two tunnels counts once.
    assert (await bench.ok("GET", "/v1/clusters"))["clusters"][0]["relays"] == 2


async def test_a_list_of_many_clusters_asks_for_the_relays_twice_and_not_for_each(bench: Bench) -> None:
    names = [f"cluster-{number}" for number in range(5)]
    for name in names:
        await bench.ok("POST", "/v1/clusters", {"name": name})
        for instance in ("pod-a", "pod-b"):
            bench.operations.live.append(
                RelayInfo(name, instance, "0.1.0", "192.0.2.7", 1_800_000_000.0, 1_800_000_009.0, None, 1)
            )
    bench.operations.asked = 0
    listed = (await bench.ok("GET", "/v1/clusters"))["clusters"]
    assert [(cluster["name"], cluster["relays"]) for cluster in listed] == [(name, 2) for name in names]
    assert bench.operations.asked == 2
    metrics = (await bench.ask("GET", "/metrics")).body.decode()
    assert all(f'hawse_streams{{cluster="{name}"}} 2.0' in metrics for name in names)


async def test_tokens_come_and_go(bench: Bench) -> None:
    made = await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "admin"})
    assert (await bench.ask("GET", "/v1/teams", token=made["token"])).status == 200
    listed = (await bench.ok("GET", "/v1/tokens"))["tokens"]
    assert [(token["name"], token["role"]) for token in listed] == [("ci", "admin"), ("local", "admin")]
    assert made["token"] not in json.dumps(listed)
    await bench.ok("DELETE", "/v1/tokens/local")
    assert (await bench.ask("GET", "/v1/teams")).status == 401
    reply = await bench.ask("DELETE", "/v1/tokens/ci", token=made["token"])
    assert (reply.status, reply.json["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize("slow", ["body", "disk"])
async def test_a_token_that_is_revoked_under_a_request_does_nothing_more(bench: Bench, slow: str) -> None:
    token = (await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "admin"}))["token"]

    async def revoke() -> None:
        await bench.directory.change(lambda store: store.remove_admin_token("ci", at=0.0))

    if slow == "disk":
        bench.recorder.meanwhile = revoke
    reply = await call(
        bench.app,
        "POST",
        "/v1/teams",
        headers={"authorization": f"Bearer {token}"},
        chunks=[b'{"name":', b'"sre"}'],
        before_the_last=revoke if slow == "body" else None,
    )
    assert (reply.status, "www-authenticate" in reply.headers) == (401, True)
    assert bench.directory.current.teams_by_name == {}
    *_, intent, end = bench.recorder.events
    assert (intent.phase, end.eid, end.actor.name) == (Phase.INTENT, intent.eid, "ci")
    assert "revoked" in end.note


async def test_the_event_of_each_change_names_its_own_change_when_several_run_at_once(bench: Bench) -> None:
    async def apply(name: str) -> None:
        spec = '{bind: {teams: ["*"]}, rules: [{id: r, effect: allow, verbs: [read], resources: [pods]}]}'
        text = f"kind: Policy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        await bench.ok("POST", "/v1/policies", {"files": [{"text": text}]})

    async def rotate() -> None:
        await bench.ok("POST", "/v1/keys")

    first = bench.ring.current.active.kid
    async with trio.open_nursery() as nursery:
        for name in ("one", "other"):
            nursery.start_soon(apply, name)
            nursery.start_soon(rotate)
    notes = sorted(event.note for event in bench.recorder.events if event.phase is Phase.COMPLETE)
    assert {note.partition("; ")[2] for note in notes[:2]} == {"added one", "added other"}
    rotated = [dict(part.split("=") for part in note.split()) for note in notes[2:]]
    after = {each["before"]: each["kid"] for each in rotated}
    assert after[after[first]] == bench.ring.current.active.kid


async def test_healthz_answers_without_a_token(bench: Bench) -> None:
    for headers in ({}, {"authorization": ""}, {"authorization": "Bearer x"}):
        assert (await bench.ask("GET", "/healthz", token=None, **headers)).status == 200
    assert bench.recorder.events == []


async def test_an_agents_key_is_no_admin_token(bench: Bench) -> None:
    key = (await enrol(bench))["agent"]["api_key"]
    assert (await bench.ask("GET", "/v1/teams", token=key)).status == 401


async def test_the_event_of_a_change_names_its_cluster_and_why_it_was_refused(bench: Bench) -> None:
    await bench.ok("POST", "/v1/clusters", {"name": "prod"})
    assert bench.recorder.events[-1].cluster_name == "prod"
    bench.recorder.events.clear()
    await bench.ask("POST", "/v1/clusters", {"name": "prod"})
    intent, end = bench.recorder.events
    assert (intent.phase, end.phase, intent.eid) == (Phase.INTENT, Phase.COMPLETE, end.eid)
    assert end.resp is not None
    assert (end.resp.status, end.note) == (
        409,
        "cluster prod exists already: "
        "`hawse admin cluster key prod` prints its relay's manifests with a new key",
    )


async def test_what_is_made_stands_in_the_trail_by_its_name(bench: Bench) -> None:
    await enrol(bench)
    await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "admin"})
    made = {
        (event.req.resource, event.note.split()[0])
        for event in bench.recorder.events
        if event.phase is Phase.COMPLETE and event.req is not None and event.req.verb == "create"
    }
    assert {("teams", "name=sre"), ("agents", "name=sre-1"), ("tokens", "name=ci")} <= made


async def test_no_secret_reaches_the_trail(bench: Bench) -> None:
    made = await enrol(bench)
    token = (await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "admin"}))["token"]
    key = (await bench.ok("POST", "/v1/agents/sre-1/keys"))["api_key"]
    await bench.ask("GET", f"/v1/teams?access_token={token}")
    written = b"\n".join(encode(event) for event in bench.recorder.events).decode()
    body = made["cluster"]["relay"]["private_key_pem"].splitlines()[1]
    for secret in (token, key, TOKEN, made["agent"]["api_key"], body, PEPPER.decode()):
        assert secret not in written


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{}", "missing required field `name`"),
        (b'{"name": 5}', "$.name"),
        (b'{"name": "a", "clusters": ' + b"[" * 100_000, "$.clusters"),
    ],
)
async def test_the_refusal_of_a_body_names_the_place_of_the_fault(
    bench: Bench, body: bytes, what: str
) -> None:
    reply = await call(
        bench.app, "POST", "/v1/teams", headers={"authorization": f"Bearer {TOKEN}"}, chunks=[body]
    )
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")
    assert what in reply.json["error"]["message"]


@pytest.mark.parametrize("name", ["system:masters", "a,b", "a\r\nx: y", "ſystem", "$(id)", "", "a" * 64])
async def test_hostile_names_are_refused(bench: Bench, name: str) -> None:
    await bench.ok("POST", "/v1/teams", {"name": "sre"})
    for path, body in (
        ("/v1/teams", {"name": name}),
        ("/v1/agents", {"name": name, "owner": "ada", "teams": ["sre"]}),
        ("/v1/clusters", {"name": name}),
        ("/v1/tokens", {"name": name, "role": "viewer"}),
        ("/v1/clusters", {"name": "prod", "manifest": {"namespace": name}}),
        ("/v1/clusters", {"name": "prod", "manifest": {"image": f"{name}\n"}}),
    ):
        reply = await bench.ask("POST", path, body)
        assert reply.status == 422, (path, body, reply.body)
    # What was refused left nothing behind.
    now = bench.directory.current
    assert (list(now.teams_by_name), dict(now.agents_by_name), dict(now.clusters_by_name)) == (
        ["sre"],
        {},
        {},
    )


@pytest.mark.parametrize(
    "pem", ["x", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", CA, "é"]
)
async def test_a_ca_that_is_none_is_refused(bench: Bench, pem: str) -> None:
    body = {"name": "edge", "mode": "direct", "relay_url": "https://relay.example", "relay_ca_pem": pem}
    reply = await bench.ask("POST", "/v1/clusters", body)
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")
    reply = await bench.ask("POST", "/v1/clusters", {"name": "edge", "manifest": {"hub_ca_pem": pem}})
    assert reply.status == 422
    assert bench.directory.current.clusters_by_name == {}


async def test_a_private_key_pasted_with_a_ca_is_refused(bench: Bench, tmp_path: Path) -> None:
    tls = DataDir.open(tmp_path / "other").tls_dir
    ca = ensure_certificate(tls, (), datetime.datetime.now(datetime.UTC)).ca.read_text()
    for pem, status in ((ca, 201), (ca + (tls / "ca.key").read_text(), 422)):
        reply = await bench.ask(
            "POST", "/v1/clusters", {"name": f"c{status}", "manifest": {"hub_ca_pem": pem}}
        )
        assert reply.status == status


async def test_a_missing_thing_is_refused_in_one_form(bench: Bench) -> None:
    for method, path, status, code in (
        ("GET", "/v1/teams/none", 404, "not_found"),
        ("GET", "/v1/agents/none", 404, "not_found"),
        ("GET", "/v1/clusters/none/rbac", 404, "not_found"),
        ("DELETE", "/v1/agents/none", 404, "not_found"),
        ("GET", "/v2", 404, "not_found"),
        ("GET", "/v1/teams/", 404, "not_found"),
        ("PATCH", "/v1/teams", 405, "method_not_allowed"),
        ("GET", "/v1/agents?retired=maybe", 422, "invalid"),
    ):
        reply = await bench.ask(method, path)
        assert (reply.status, reply.json["error"]["code"]) == (status, code), path


async def test_the_use_of_a_token_is_noted(bench: Bench) -> None:
    await bench.ok("GET", "/v1/teams")
    await bench.directory.write_use()
    (token,) = (await bench.ok("GET", "/v1/tokens"))["tokens"]
    assert token["last_used_at"] == "2027-01-15T08:00:00Z"


async def test_a_rotated_key_signs_and_is_what_new_relays_are_given(bench: Bench) -> None:
    before = bench.ring.current.active.kid
    made = await bench.ok("POST", "/v1/keys")
    after = bench.ring.current.active.kid
    assert after != before
    assert [(key["kid"], key["state"]) for key in made["keys"]] == [(after, "signing"), (before, "retiring")]
    assert made["keys"][1]["retires_at"] == "2027-01-15T08:02:00Z"
    assert made == await bench.ok("GET", "/v1/keys")
    assert (await bench.ok("GET", "/v1/hub"))["signing_key"] == after
    pins = (await enrol(bench))["cluster"]["relay"]["hub_keys"]
    assert pins == made["pins"]
    assert [key["kid"] for key in json.loads(pins)["keys"]] == [after]
    assert f"kid={after} before={before}" in [event.note for event in bench.recorder.events]


async def test_sessions_are_listed_by_agent_and_cluster(bench: Bench) -> None:
    await enrol(bench)
    bench.sessions.live.append(WATCH)
    [listed] = (await bench.ok("GET", "/v1/sessions?agent=sre-1&cluster=prod"))["sessions"]
    assert listed == {**attrs.asdict(WATCH), "started_at": "2027-01-15T08:00:00Z", "owner": "ada"}
    assert (await bench.ok("GET", "/v1/sessions"))["hubs_beside"] == 1
    assert (await bench.ask("GET", "/v1/sessions?agent=none")).status == 404
    assert (await bench.ask("GET", "/v1/sessions?cluster=none")).status == 404


@pytest.mark.parametrize(
    "which",
    [{"id": WATCH.id}, {"agent": "sre-1"}, {"cluster": "prod"}, {"agent": "sre-1", "cluster": "prod"}],
)
async def test_a_kill_says_what_it_ended_and_is_recorded_with_its_reason(
    bench: Bench, which: dict[str, str]
) -> None:
    await enrol(bench)
    bench.sessions.live.append(WATCH)
    bench.recorder.events.clear()
    killed = await bench.ok("POST", "/v1/sessions/kill", {**which, "reason": "incident 7"})
    assert [one["id"] for one in killed["killed"]] == [WATCH.id]
    [asked] = bench.sessions.killed
    assert asked["reason"] == "killed by the operator local: incident 7"
    intent, end = bench.recorder.events
    assert (intent.phase, end.phase) == (Phase.INTENT, Phase.COMPLETE)
    assert end.req is not None
    assert (end.req.verb, end.req.resource) == ("kill", "sessions")
    assert end.note.endswith("killed=1 reason=incident 7")
    assert all(f"{key}={value}" in end.note for key, value in which.items())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"reason": "x"}, 422),
        ({"reason": "x", "id": WATCH.id, "agent": "sre-1"}, 422),
        ({"agent": "sre-1"}, 422),
        ({"agent": "sre-1", "reason": " "}, 422),
        ({"agent": "sre-1", "reason": "two\nlines"}, 422),
        ({"agent": "sre-1", "reason": "x" * 201}, 422),
        ({"agent": "none", "reason": "x"}, 404),
        ({"cluster": "none", "reason": "x"}, 404),
        ({"id": "none", "reason": "x"}, 404),
    ],
)
async def test_a_kill_that_names_nothing_or_everything_is_refused(
    bench: Bench, body: dict[str, str], status: int
) -> None:
    await enrol(bench)
    bench.sessions.live.append(WATCH)
    assert (await bench.ask("POST", "/v1/sessions/kill", body)).status == status
    assert all(asked["id"] == "none" for asked in bench.sessions.killed)


async def test_each_step_of_an_enrolment_is_an_event_without_the_code(bench: Bench) -> None:
    await bench.ok("POST", "/v1/teams", {"name": "sre"})
    body = {"name": "sre-1", "owner": "ada", "teams": ["sre"], "credential": "code"}
    made = await bench.ok("POST", "/v1/agents", body)
    more = await bench.ok("POST", "/v1/agents/sre-1/codes")
    assert more["expires_at"] == "2027-01-15T08:15:00Z"
    assert len((await bench.ok("GET", "/v1/agents/sre-1"))["codes"]) == 2
    assert (await bench.ok("DELETE", "/v1/agents/sre-1/codes"))["withdrawn"] == 2
    notes = [event.note for event in bench.recorder.events if event.phase is Phase.COMPLETE]
    assert f"code={made['code_id']}" in notes[1]
    assert notes[2] == f"code={more['code_id']}"
    assert notes[-1] == "count=2"
    written = b"\n".join(encode(event) for event in bench.recorder.events).decode()
    for code in (made["code"], more["code"]):
        assert code not in written
    reply = await bench.ask("POST", "/v1/agents", {**body, "name": "sre-2", "credential": "password"})
    assert reply.status == 422


async def test_no_more_relays_are_printed_than_the_hub_takes(bench: Bench) -> None:
    body = {"name": "prod", "manifest": {"replicas": 3}}
    refused = await bench.ask("POST", "/v1/clusters", body)
    assert refused.status == 422
    assert b"3 replicas exceed the 2 relays" in refused.body
    # Nobody counts them where the hub dials an address.
    direct = {"mode": "direct", "relay_url": "https://relay.example"}
    await bench.ok("POST", "/v1/clusters", {**body, **direct})


async def test_a_command_names_the_hubs_that_do_not_decide_by_it_yet(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enrol(bench)
    monkeypatch.setattr("proxy.hub.membership.spread.SPREAD_WAIT_S", 0.01)
    bench.spread.members = members = Members(HUB)
    behind = attrs.evolve(HUB, hub="0000000b", boot="b", applied=1)
    members.note([HUB, behind])
    told = "not yet in force at every hub; missing: 0000000b (boot b), whose lease ends in 74 s at the latest"
    assert (await bench.ok("POST", "/v1/agents/sre-1/lock"))["notice"] == told
    # An operator who repeats it must not take it for done.
    again = await bench.ask("POST", "/v1/agents/sre-1/lock")
    assert (again.status, again.json["error"]["message"]) == (409, f"agent sre-1 is locked already; {told}")
    assert "in force" not in str((await bench.ask("POST", "/v1/agents/none/unlock")).json)
    members.note([HUB, attrs.evolve(behind, applied=100)])
    again = await bench.ask("POST", "/v1/agents/sre-1/lock")
    assert again.json["error"]["message"] == "agent sre-1 is locked already"
