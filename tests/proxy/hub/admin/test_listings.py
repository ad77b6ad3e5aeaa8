"""The listings of agents, clusters and teams: filters, pages, and what a policy binds."""

from __future__ import annotations

from typing import Any

import pytest

from auth.policy.match import binds
from proxy.hub.authorize.binding import Binding, bound_where
from proxy.hub.home.sections.limits import AgentLimitsConfig, LimitsConfig
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.store import Store
from tests.fakes.admin import Bench

POLICY = """apiVersion: hawse.dev/v1
kind: Policy
metadata: {name: edge-readers, contact: "#sre"}
spec:
  bind: {teams: [sre, ops], agents: ["web-1*"]}
  clusters:
    names: ["edge-*"]
    matchExpressions: [{key: env, operator: NotIn, values: [test, dev]}, {key: region, operator: Exists}]
  rules:
  # Reading is harmless.
  - {id: read, effect: allow, verbs: [read], resources: ["*"]}
  - id: shut
    effect: deny
    verbs: [write]
    resources: ["*"]
    reason: look only
"""
ISSUER = {
    "issuer": "https://ci.example",
    "claims": {"sub": "deploy"},
    "jwks_url": "https://ci.example/keys",
    "mutable_claims": True,
}


async def fleet(bench: Bench) -> None:
    for team in ("sre", "web", "ops"):
        await bench.ok("POST", "/v1/teams", {"name": team})
    clusters: dict[str, tuple[list[str], dict[str, str]]] = {
        "edge-1": (["sre", "web"], {"env": "prod", "region": "eu"}),
        "edge-2": (["web"], {"env": "dev", "region": "eu"}),
        "main": (["ops"], {"env": "prod", "region": "us"}),
    }
    for name, (teams, labels) in clusters.items():
        await bench.ok("POST", "/v1/clusters", {"name": name, "teams": teams, "labels": labels})
    for name, owner, teams in (
        ("sre-1", "Ada Lovelace", ["sre"]),
        ("sre-2", "Bo", ["sre", "web"]),
        ("web-1", "Bo", ["web"]),
        ("web-2", "Cy", ["web"]),
        ("ops-1", "Cy", ["ops"]),
    ):
        body = {"name": name, "owner": owner, "teams": teams, "credential": "none"}
        await bench.ok("POST", "/v1/agents", body)
    await bench.ok("POST", "/v1/agents/sre-2/lock")
    await bench.ok("POST", "/v1/policies", {"files": [{"text": POLICY}]})


def names(answer: Any, key: str) -> list[str]:
    return [row["name"] for row in answer[key]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["ops-1", "sre-1", "sre-2", "web-1", "web-2"]),
        ("?q=%20LOVE", ["sre-1"]),
        ("?q=web-", ["web-1", "web-2"]),
        ("?team=web&q=bo", ["sre-2", "web-1"]),
        ("?cluster=edge-1", ["sre-1", "sre-2", "web-1", "web-2"]),
        ("?cluster=main", ["ops-1"]),
        ("?state=locked", ["sre-2"]),
        ("?state=retired", ["gone"]),
        ("?retired=true&q=o", ["gone", "ops-1", "sre-1", "sre-2", "web-1"]),
        # It binds the agents of ops too, but they reach no cluster that it selects.
        ("?policy=edge-readers", ["sre-1", "sre-2", "web-1"]),
        ("?q=nothing", []),
    ],
)
async def test_agents_are_filtered(bench: Bench, query: str, expected: list[str]) -> None:
    await fleet(bench)
    await bench.ok("POST", "/v1/agents", {"name": "gone", "owner": "Bo", "teams": ["sre"]})
    await bench.ok("DELETE", "/v1/agents/gone")
    answer = await bench.ok("GET", f"/v1/agents{query}")
    assert names(answer, "agents") == expected
    assert answer["total"] == len(expected)


async def test_a_page_of_agents_counts_all_that_match(bench: Bench) -> None:
    await fleet(bench)
    page = await bench.ok("GET", "/v1/agents?offset=1&limit=2")
    assert (names(page, "agents"), page["total"]) == (["sre-1", "sre-2"], 5)
    assert page["states"] == {"active": 4, "locked": 1, "retired": 0}
    # The counts are of all states, whichever is shown.
    locked = await bench.ok("GET", "/v1/agents?state=locked&limit=2&offset=9")
    assert (locked["agents"], locked["total"], locked["states"]) == ([], 1, page["states"])
    assert page["agents"][1]["clusters"] == ["edge-1", "edge-2"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "offset=-1", "offset=x", "state=odd", "agnet=x", f"q={'x' * 257}"]
)
async def test_a_malformed_listing_is_refused(bench: Bench, query: str) -> None:
    reply = await bench.ask("GET", f"/v1/agents?{query}")
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")


@pytest.mark.parametrize(
    "path", ["agents?team=x", "agents?policy=x", "clusters?team=x", "federation?agent=x", "relays?cluster=x"]
)
async def test_a_listing_by_an_unknown_name_is_refused(bench: Bench, path: str) -> None:
    # A typo would otherwise look like a fleet without anything.
    assert (await bench.ask("GET", f"/v1/{path}")).status == 404


async def test_clusters_and_teams_are_filtered_and_paged(bench: Bench) -> None:
    await fleet(bench)
    assert names(await bench.ok("GET", "/v1/clusters?q=env%3Dprod"), "clusters") == ["edge-1", "main"]
    assert names(await bench.ok("GET", "/v1/clusters?team=web"), "clusters") == ["edge-1", "edge-2"]
    assert names(await bench.ok("GET", "/v1/clusters?agent=sre-1"), "clusters") == ["edge-1"]
    assert names(await bench.ok("GET", "/v1/clusters?policy=edge-readers"), "clusters") == ["edge-1"]
    page = await bench.ok("GET", "/v1/clusters?limit=1&offset=1")
    assert (names(page, "clusters"), page["total"]) == (["edge-2"], 3)
    teams = await bench.ok("GET", "/v1/teams?q=S&limit=1")
    assert (names(teams, "teams"), teams["total"]) == (["ops"], 2)
    assert (await bench.ok("GET", "/v1/teams?q=web"))["teams"] == [await bench.ok("GET", "/v1/teams/web")]


async def test_a_policy_counts_what_it_binds_and_an_agent_names_what_binds_it(bench: Bench) -> None:
    await fleet(bench)
    policy = await bench.ok("GET", "/v1/policies/edge-readers")
    assert policy["binds"] == {"agents": 3, "clusters": 1}
    assert policy["clusters"] == ["edge-*", "env notin (dev, test)", "region"]
    document = policy["document"].splitlines()
    assert [document[rule["line"] - 1].strip()[:6] for rule in policy["rules"]] == ["- {id:", "- id: "]
    agent = await bench.ok("GET", "/v1/agents/sre-2")
    bound = {each["name"]: each["clusters"] for each in agent["policies"]}
    assert bound == {
        "edge-readers": ["edge-1"],
        "granted": ["edge-1", "edge-2"],
        "guard": ["edge-1", "edge-2"],
    }
    assert agent["limits"] == LimitsConfig().by_key("sre-2")


def test_an_agents_limits_are_the_general_ones_but_for_its_own() -> None:
    config = LimitsConfig(requests_per_second=9, agents={"sre-2": AgentLimitsConfig(streams_per_agent=2000)})
    general, own = config.by_key("sre-1"), config.by_key("sre-2")
    assert (general["streams_per_agent"], general["requests_per_second"]) == (256, 9)
    assert own == {**general, "streams_per_agent": 2000}
    assert "relays_per_cluster" not in own


async def test_what_binds_is_what_a_decision_asks(bench: Bench) -> None:
    await fleet(bench)
    now = bench.directory.current
    for agent in now.agents_by_id.values():
        expected = {
            policy.name: [each.name for each in now.clusters_of(agent) if binds(policy, agent, each)]
            for policy in now.bundle.policies
        }
        where = {policy.name: clusters for policy, clusters in bound_where(agent, now)}
        assert where == {name: clusters for name, clusters in expected.items() if clusters}
        for policy in now.bundle.policies:
            assert Binding.of(policy, now).binds(agent) == bool(expected[policy.name])


async def test_a_policy_is_shown_as_it_was_at_a_version(bench: Bench) -> None:
    await fleet(bench)
    before = await bench.ok("GET", "/v1/policies/edge-readers")
    await bench.ok("POST", "/v1/policies", {"files": [{"text": POLICY.replace("look only", "ask first")}]})
    old = await bench.ok("GET", f"/v1/policies/edge-readers?version={before['version']}")
    assert old == {key: value for key, value in before.items() if key != "binds"}
    now = await bench.ok("GET", "/v1/policies/edge-readers")
    assert await bench.ok("GET", f"/v1/policies/edge-readers?version={now['version']}") == now
    assert (now["version"], now["rules"][1]["reason"]) == (before["version"] + 1, "ask first")
    await bench.ok("DELETE", "/v1/policies/edge-readers")
    kept = await bench.ok("GET", f"/v1/policies/edge-readers?version={now['version']}")
    assert kept["rules"] == now["rules"]
    for missing in ("edge-readers", "edge-readers?version=999", "nothing?version=1"):
        assert (await bench.ask("GET", f"/v1/policies/{missing}")).status == 404


async def test_rules_and_relays_are_listed_by_what_they_belong_to(bench: Bench) -> None:
    await fleet(bench)
    await bench.ok("POST", "/v1/federation", {**ISSUER, "agent": "sre-1"})
    await bench.ok("POST", "/v1/federation", {**ISSUER, "agent": "web-1", "claims": {"sub": "test"}})
    rules = (await bench.ok("GET", "/v1/federation?agent=web-1"))["rules"]
    assert [(rule["agent"], rule["claims"]) for rule in rules] == [("web-1", {"sub": "test"})]
    ids = {name: cluster.id for name, cluster in bench.directory.current.clusters_by_name.items()}

    def contacts(store: Store) -> None:
        for cluster in ("edge-1", "main"):
            store.relay_connected(RelayContact(ids[cluster], f"pod-{cluster}", "b", "0.1.0", "192.0.2.7"))

    await bench.directory.change(contacts)
    relays = (await bench.ok("GET", "/v1/relays?cluster=main"))["relays"]
    assert [relay["instance"] for relay in relays] == ["pod-main"]
    bench.operations.live.append(
        RelayInfo("main", "pod-2", "0.1.0", "192.0.2.8", 0.0, bench.clock.now + 9, 1.0, 0)
    )
    for query in ("", "?limit=3"):
        listed = (await bench.ok("GET", f"/v1/clusters{query}"))["clusters"]
        assert [(each["name"], each["relays"], each["last_seen_at"]) for each in listed] == [
            ("edge-1", 0, "2027-01-15T08:00:00Z"),
            ("edge-2", 0, None),
            ("main", 1, "2027-01-15T08:00:09Z"),
        ]
