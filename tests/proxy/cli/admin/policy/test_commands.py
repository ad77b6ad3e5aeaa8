"""`hawse admin policy`, over the wire, as an operator sees it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from audit.ids import new_eid
from audit.reader import AuditReader
from audit.record import Actor, ActorType, Cluster, Event, Kind, Phase, Request, Stream, utc
from audit.store import AuditStore
from proxy.cli.admin.api.client import AdminClient
from proxy.cli.audit.commands import audit
from proxy.cli.output import Object
from proxy.hub.admin.simulation.job import Job, Outcome, Progress
from tests.auth.policies import policy
from tests.proxy.cli.admin.conftest import Hub

LOOK = policy("- {id: look, effect: allow, verbs: [read], resources: ['*', '!secrets']}", name="look")
TESTS = """\
kind: PolicyTest
metadata: {name: look}
agents: {sre-1: {teams: [sre]}}
clusters: {prod: {labels: {env: prod}}}
cases:
  - {agent: sre-1, cluster: prod, request: GET /api/v1/pods, expect: allow, rule: look/look}
  - {agent: sre-1, cluster: prod, request: DELETE /api/v1/namespaces/a/pods/b, expect: deny}
"""


async def enrol(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")
    await hub.ok("cluster", "add", "prod", "--team", "sre", "--label", "env=prod")
    await hub.ok("agent", "add", "sre-1", "--owner", "Ada Lovelace", "--team", "sre")


@pytest.fixture
def look(tmp_path: Path) -> str:
    path = tmp_path / "look.yaml"
    path.write_text(LOOK)
    return str(path)


async def test_a_new_hub_lists_and_shows_what_it_ships(hub: Hub) -> None:
    listed = await hub.ok("policy", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["POLICY", "granted", "guard"]
    assert "21 (8 off)" in listed.stdout
    assert "bundle 1-" in listed.stderr
    shown = await hub.ok("policy", "show", "guard")
    assert shown.stdout.startswith("# Denials for everybody")
    every = await hub.ok("policy", "show")
    assert every.stdout.count("kind: Policy") == 2
    assert "\n---\n" in every.stdout
    guard = await hub.ok("policy", "guard")
    assert "serviceaccount-tokens        on     a token of a service account" in guard.stdout
    assert json.loads((await hub.ok("policy", "list", "--json")).stdout)["version"] == 1


async def test_what_is_shown_can_be_applied_again(hub: Hub) -> None:
    matches = """when: 'request.name.matches("^a\\\\.b$")'"""
    text = LOOK.replace("id: look", f"id: look, {matches}") + "#\ta \\ and more\n"
    assert (await hub.run("policy", "apply", "-", stdin=text)).exit_code == 0
    assert (await hub.ok("policy", "show", "look")).stdout == text
    shown = await hub.ok("policy", "show")
    again = await hub.run("policy", "apply", "-", stdin=shown.stdout)
    assert again.exit_code == 0
    assert again.stderr.startswith("no policy has changed\nbundle 2-")
    told = json.loads((await hub.run("policy", "apply", "-", "--json", stdin=shown.stdout)).stdout)
    assert (told["version"], told["added"], told["edited"], told["removed"]) == (2, [], [], [])


async def test_a_policy_is_applied_removed_and_kept_as_a_version(hub: Hub, look: str) -> None:
    applied = await hub.ok("policy", "apply", look)
    assert "added policy look\nbundle 2-" in applied.stderr
    assert (await hub.ok("policy", "show", "look")).stdout == LOOK
    edited = await hub.run("policy", "apply", "-", stdin=LOOK.replace("!secrets", "!nodes"))
    assert "edited policy look" in edited.stderr
    removed = json.loads((await hub.ok("policy", "remove", "look", "--json")).stdout)
    assert (removed["removed"], removed["version"]) == (["look"], 4)
    versions = (await hub.ok("policy", "versions")).stdout.splitlines()
    assert [line.split()[0] for line in versions] == ["VERSION", "4", "3", "2", "1"]
    assert LOOK in (await hub.ok("policy", "show", "--version", "2")).stdout
    only = await hub.ok("policy", "apply", look, "--only", "--yes")
    assert "removed policy granted" in only.stderr
    assert "removed policy guard" in only.stderr


async def test_a_file_with_faults_is_refused_whole_with_a_line_for_each(
    hub: Hub, tmp_path: Path, look: str
) -> None:
    bad = tmp_path / "bad.yaml"
    faulty = LOOK.replace("name: look", "name: bad").replace("read", "reed").replace("allow", "alow")
    bad.write_text(f"# why\n---\n{faulty}")
    for command in (("apply", look, str(bad)), ("test", look, str(bad)), ("simulate", str(bad))):
        refused = await hub.run("policy", *command)
        assert refused.exit_code == 1
        effect, verb = refused.stderr.splitlines()
        assert f'{bad}:8: spec.rules[0].effect: "alow" is not one of' in effect, command
        # Only the first line may look like the command's own.
        assert verb.startswith(f'  {bad}:8: spec.rules[0].verbs[0]: "reed" is no verb'), command
    assert json.loads((await hub.ok("policy", "list", "--json")).stdout)["version"] == 1


async def test_a_dry_run_prints_the_difference_and_changes_nothing(
    hub: Hub, look: str, tmp_path: Path
) -> None:
    shown = await hub.ok("policy", "apply", "--dry-run", look)
    assert shown.stdout.startswith("policy look: added\n")
    assert "  rule look (allow, line 6): added\n    +id: look\n" in shown.stdout
    assert shown.stderr.startswith("nothing is changed: bundle 1-")
    assert json.loads((await hub.ok("policy", "list", "--json")).stdout)["version"] == 1
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(LOOK.replace("allow", "maybe"))
    refused = await hub.fails("policy", "apply", "--dry-run", str(wrong))
    applied = await hub.fails("policy", "apply", str(wrong))
    assert refused == applied
    assert f"{wrong}:6: spec.rules[0].effect" in refused


async def test_two_versions_are_compared(hub: Hub, look: str) -> None:
    await hub.ok("policy", "apply", look)
    when = """when: 'request.name.matches("^a\\\\.b$")'"""
    edited = LOOK.replace("id: look", f"id: look, {when}")
    assert (await hub.run("policy", "apply", "-", stdin=edited)).exit_code == 0
    since = await hub.ok("policy", "diff", "2")
    assert since.stdout == (await hub.ok("policy", "diff", "2", "3")).stdout
    assert since.stdout.startswith("policy look: edited\n  rule look (allow, line 6): edited\n")
    # As it was written: the backslashes are not doubled.
    assert """    +when: request.name.matches("^a\\\\.b$")\n""" in since.stdout
    assert json.loads((await hub.ok("policy", "diff", "2", "--json")).stdout)["after"]["version"] == 3
    assert (await hub.ok("policy", "diff", "3")).stdout == "no difference\n"
    assert "there is no version 9" in await hub.fails("policy", "diff", "9")


async def test_rules_are_switched_by_their_names(hub: Hub) -> None:
    await enrol(hub)
    question = ("policy", "explain", "sre-1", "prod", "list", "secrets", "-n", "app")
    assert "allowed by granted/granted" in (await hub.ok(*question)).stdout
    await hub.ok("policy", "enable", "guard", "secrets", "rbac")
    denied = await hub.run(*question)
    assert denied.exit_code == 3
    assert "denied by guard/secrets" in denied.stdout
    assert "secrets hold other identities" in denied.stdout
    await hub.ok("policy", "disable", "guard", "secrets")
    assert "allowed" in (await hub.ok(*question)).stdout
    unknown = await hub.run("policy", "enable", "guard", "secret")
    assert 'policy "guard" has no rule "secret", only serviceaccount-tokens' in unknown.stderr


async def test_a_request_is_explained(hub: Hub, look: str) -> None:
    await enrol(hub)
    await hub.ok("policy", "apply", look, "--only", "--yes")
    allowed = await hub.ok("policy", "explain", "sre-1", "prod", "get", "pods", "web", "-n", "app", "--json")
    body = json.loads(allowed.stdout)
    assert (body["allowed"], body["policy"], body["rule"]) == (True, "look", "look")
    assert body["request"]["namespace"] == "app"
    denied = await hub.run(
        "policy", "explain", "sre-1", "prod", "delete", "deployments.apps", "web", "-n", "app"
    )
    assert denied.exit_code == 3
    assert "instead: you may get, list, watch deployments.apps there; ask Ada Lovelace" in denied.stdout
    assert (await hub.run("policy", "explain", "sre-1", "prod", "get", "/metrics")).exit_code == 3
    assert "get needs the name" in await hub.fails("policy", "explain", "sre-1", "prod", "get", "pods")
    none = "there is no agent 'x': `hawse admin agent list` lists the existing ones"
    assert none in await hub.fails("policy", "explain", "x", "prod", "list", "pods")
    await hub.ok("agent", "lock", "sre-1")
    locked = await hub.run("policy", "explain", "sre-1", "prod", "list", "pods")
    assert locked.exit_code == 3
    assert "denied before any policy: agent:sre-1 is locked" in locked.stdout


ASKS = policy(
    """\
    - {id: risky, effect: ask, verbs: [delete], namespaces: [app], reason: it is production,
       ask: {approvers: [ann@example.com, owner], wait: 50s}}
    - {id: writes, effect: ask, verbs: [write], ask: {approvers: ['!owner']}}
    """,
    name="asks",
)


async def test_a_request_that_needs_an_approval_is_explained(hub: Hub) -> None:
    await enrol(hub)
    applied = await hub.run("policy", "apply", "-", stdin=ASKS)
    assert "warning: asks/risky waits 50 s: many load balancers end a silent request" in applied.stderr
    assert "warning: asks/risky and asks/writes may ask about the same call" in applied.stderr
    assert "2 (2 ask)" in (await hub.ok("policy", "list")).stdout
    question = ("policy", "explain", "sre-1", "prod", "delete", "pods", "web", "-n", "app")
    asked = await hub.run(*question)
    assert asked.exit_code == 3
    assert asked.stdout.splitlines()[:5] == [
        "asked by asks/risky",
        "may approve: ann@example.com, owner",
        "a call waits up to 50 s for the approval, which is valid for 900 s",
        "asks/writes asks too, and does not decide: !owner may approve there",
        "delete of pods web in namespace app on cluster prod needs an approval (asks/risky): it is "
        "production; ask Ada Lovelace",
    ]
    body = json.loads((await hub.run(*question, "--json")).stdout)
    assert (body["allowed"], body["decision"], body["rule"]) == (False, "ask", "risky")
    assert (await hub.run("policy", "apply", "-", stdin=ASKS.replace("50s", "0s"))).exit_code == 0
    at_once = (await hub.run(*question)).stdout
    assert "a call does not wait for the approval, which is valid for 900 s" in at_once
    assert [(other["policy"], other["rule"]) for other in body["other_asks"]] == [("asks", "writes")]
    assert body["unapprovable"] == ""
    shell = await hub.run(
        "policy", "explain", "sre-1", "prod", "create", "pods/portforward", "web", "-n", "app"
    )
    assert "asked by asks/writes\n" in shell.stdout
    assert "such a call is refused without asking: " in shell.stdout
    assert "`interactive: true`" in shell.stdout
    assert (
        "allowed by granted/granted"
        in (await hub.ok("policy", "explain", "sre-1", "prod", "get", "pods", "web", "-n", "app")).stdout
    )


async def test_recorded_calls_that_would_be_asked_about_are_counted(hub: Hub) -> None:
    await enrol(hub)
    record(hub, *["DELETE /api/v1/namespaces/app/pods/b"] * 2, "GET /api/v1/pods")
    record(hub, "PATCH /api/v1/namespaces/app/pods/b?dryRun=All", "PATCH /api/v1/namespaces/app/pods/b")
    done = await hub.run("policy", "simulate", "-", stdin=ASKS)
    assert "5 calls: 0 newly denied, 3 newly asked, 0 newly allowed" in done.stderr
    assert "newly asked  2      sre-1  prod     delete  pods      app        asks/risky" in done.stdout
    # From asked to denied, and back to allowed.
    await hub.run("policy", "apply", "-", stdin=ASKS)
    denies = policy("- {id: no, effect: deny, verbs: [delete]}", name="asks")
    done = await hub.run("policy", "simulate", "-", "--json", stdin=denies)
    found = json.loads(done.stdout)
    assert (found["newly_denied"], found["newly_asked"], found["newly_allowed"]) == (2, 0, 1)
    assert [change["change"] for change in found["changes"]] == ["newly denied", "newly allowed"]


async def test_cases_are_run_without_a_hub_and_before_what_they_are_about_is_applied(
    hub: Hub, tmp_path: Path, look: str
) -> None:
    tests = tmp_path / "tests.yaml"
    tests.write_text(TESTS)
    passed = await hub.ok("policy", "test", look, str(tests))
    assert "no fault in 1 policy with 1 rule; 2 of 2 cases passed" in passed.stderr
    without = await hub.ok("policy", "test", look)
    assert without.stderr.endswith("; no test case (kind: PolicyTest) found\n")
    tests.write_text(TESTS.replace("expect: deny", "expect: allow"))
    failed = await hub.run("policy", "test", look, str(tests), "--json")
    assert failed.exit_code == 3
    assert [case["passed"] for case in json.loads(failed.stdout)["cases"]] == [True, False]
    where = f"{tests}:7: agent:sre-1 on prod: DELETE /api/v1/namespaces/a/pods/b"
    assert f"{where}: expected allowed, found denied by no-rule-allows" in failed.stderr
    assert (await hub.run("policy", "apply", look, str(tests))).exit_code == 3
    assert json.loads((await hub.ok("policy", "list", "--json")).stdout)["version"] == 1
    tests.write_text(TESTS)
    await hub.ok("policy", "apply", look, str(tests))
    tests.write_text(TESTS.replace("expect: deny", "expect: no"))
    for command in ("test", "apply"):
        assert f"{tests}:7: " in await hub.fails("policy", command, look, str(tests))


async def test_an_empty_file_is_no_test_that_passes(hub: Hub, look: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    for text in ("", "---\n# nothing\n"):
        empty.write_text(text)
        for command in ("test", "apply", "simulate"):
            refused = await hub.run("policy", command, look, str(empty))
            assert (refused.exit_code, f"{empty} is empty" in refused.stderr) == (1, True)
    assert json.loads((await hub.ok("policy", "list", "--json")).stdout)["version"] == 1


async def test_a_file_that_is_no_text_is_named_without_a_codecs_words(hub: Hub, tmp_path: Path) -> None:
    archive = tmp_path / "policies.tgz"
    archive.write_bytes(b"\xff\xfe")
    assert await hub.fails("policy", "apply", str(archive)) == (
        f"hawse: cannot read {archive}: it is not UTF-8 text\n"
    )


def record(
    hub: Hub,
    *calls: str,
    agent: str = "sre-1",
    cluster: str = "prod",
    age_s: float = 60,
    proto: str = "",
    begun: Phase = Phase.INTENT,
) -> None:
    events = []
    for call in calls:
        method, _, target = call.partition(" ")
        actor = Actor(ActorType.AGENT, agent)
        when = utc(time.time() - age_s)
        for phase in (begun, Phase.COMPLETE):
            events.append(
                Event(
                    eid=new_eid(), kind=Kind.CALL, phase=phase, ts=when, actor=actor,
                    cluster=Cluster("id", cluster), req=Request(method, target),
                    stream=Stream(proto) if proto else None,
                )
            )  # fmt: skip
    store = AuditStore(hub.data.audit_file)
    store.append(events)
    store.close()


async def test_recorded_calls_are_simulated(hub: Hub, look: str) -> None:
    await enrol(hub)
    await hub.ok("policy", "enable", "guard", "secrets")
    record(hub, *["DELETE /api/v1/namespaces/a/pods/b"] * 3, "GET /api/v1/pods", "GET /metrics", "GET /api")
    record(hub, "GET /api/v1/namespaces/a/secrets", "GET /bad//path")
    record(hub, "GET /api/v1/pods", agent="gone")
    # Over a WebSocket, a watch is the only read.
    record(hub, "GET /api/v1/pods?watch=true", "GET /api/v1/namespaces/a/pods/b", proto="websocket")
    # A long-lived read.
    record(hub, "GET /api/v1/namespaces/a/pods/b?watch=true", proto="http", begun=Phase.START)
    record(hub, "PUT /api/v1/namespaces/a/pods/b", age_s=3 * 86400)
    everything = LOOK.replace("'!secrets'", "secrets").replace("name: look", "name: granted")
    done = await hub.run("policy", "simulate", "-", "--only", "--json", stdin=everything)
    assert done.exit_code == 0, done.stderr
    body = json.loads(done.stdout)
    assert (body["calls"], body["newly_denied"], body["newly_allowed"]) == (10, 5, 1)
    assert (body["unknown"], body["unreadable"]) == (1, 1)
    assert body["changes"][0] == {
        "change": "newly denied",
        "count": 3,
        "agent": "sre-1",
        "cluster": "prod",
        "verb": "delete",
        "resource": "pods",
        "namespace": "a",
        "rule_before": "granted/granted",
        "rule_after": "no-rule-allows",
    }
    assert [(change["verb"], change["resource"]) for change in body["changes"]] == [
        ("delete", "pods"),
        ("get", "/metrics"),
        ("get", "pods"),
        ("list", "secrets"),
    ]
    without = ("--without", "granted", "--without", "guard")
    told = await hub.run("policy", "simulate", look, *without, "--since", "7d", "--agent", "sre-1")
    assert "11 calls: 6 newly denied, 0 newly allowed" in told.stderr
    refused = await hub.fails("policy", "simulate", look, "--without", "grantde")
    assert refused == "hawse: there is no policy 'grantde'; the policies are: granted, guard\n"
    assert json.loads((await hub.ok("policy", "list", "--json")).stdout)["version"] == 2


async def test_ctrl_c_cancels_a_simulation_at_the_hub(
    hub: Hub, look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = AdminClient.get

    def get(client: AdminClient, *path: str, **query: str) -> Object:
        if path[0] == "policy-simulations":
            raise KeyboardInterrupt
        return real(client, *path, **query)

    monkeypatch.setattr(AdminClient, "get", get)

    async def never(job: Job, tell: Callable[[Progress], None]) -> Outcome:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(hub.simulations, "_work", never)
    interrupted = await hub.run("policy", "simulate", look)
    assert interrupted.exit_code != 0
    [left] = hub.simulations.all()
    assert left.state == "cancelled"


async def test_a_simulation_for_a_name_that_never_was_is_refused(hub: Hub, look: str) -> None:
    await enrol(hub)
    await hub.ok("agent", "add", "sre-2", "--owner", "Ada", "--team", "sre")
    await hub.ok("agent", "remove", "sre-2", "--yes")
    record(hub, "GET /api/v1/pods", agent="of-old")
    record(hub, "GET /api/v1/pods", cluster="razed")
    assert await hub.fails("policy", "simulate", look, "--agent", "sre1") == (
        "hawse: there is no agent 'sre1' (did you mean sre-1 or sre-2?), and the trail has no call of one: "
        "for the names run `hawse admin agent list --retired`\n"
    )
    assert await hub.fails("policy", "simulate", look, "--cluster", "prd") == (
        "hawse: there is no cluster 'prd' (did you mean prod?), and the trail has no call of one: "
        "for the names run `hawse admin cluster list`\n"
    )
    # A removed agent may have calls, and a known one may have none.
    for name in (("--agent", "of-old"), ("--cluster", "razed")):
        told = await hub.ok("policy", "simulate", look, *name)
        assert "no recorded call to decide" in told.stderr
        assert "not decided: 1 call of removed agents or clusters, or without a grant now" in told.stderr
    assert (
        "no recorded call to decide" in (await hub.ok("policy", "simulate", look, "--agent", "sre-2")).stderr
    )


async def test_a_simulation_says_from_when_on_the_trail_tells(hub: Hub, look: str) -> None:
    # Events that the hub may not have finished writing are kept.
    record(hub, "GET /api/v1/pods", begun=Phase.COMPLETE)
    await enrol(hub)
    prune = ["prune", "--keep", "0h", "--yes", "--data-dir", str(hub.data.path)]
    assert (await trio.to_thread.run_sync(lambda: CliRunner().invoke(audit, prune))).exit_code == 0
    told = await hub.ok("policy", "simulate", look, "--since", "7d")
    assert "no recorded call to decide, so this says nothing about these policies" in told.stderr
    assert re.search(
        r"the trail begins at (\S+Z), so calls between (\S+Z) and then are not covered", told.stderr
    )
    document = json.loads((await hub.ok("policy", "simulate", look, "--json", "--since", "7d")).stdout)
    assert document["since"] < document["trail_begins"]
    # No note if the trail reaches back far enough.
    assert "begins" not in (await hub.ok("policy", "simulate", look, "--since", "0s")).stderr


@pytest.mark.parametrize("command", ["apply", "simulate"])
async def test_what_a_policy_names_and_there_is_not_is_warned_of(hub: Hub, command: str) -> None:
    await enrol(hub)
    record(hub)
    misspelt = policy(
        "- {id: look, effect: allow, verbs: [read], resources: [pods]}",
        bind='{teams: [sre, ser, "later-*"], agents: [sre-2]}',
        more="clusters: {names: ['*', '!prd']}",
    )
    told = await hub.run("policy", command, "-", stdin=misspelt)
    assert (told.exit_code, told.stderr.splitlines()[-3:]) == (
        0,
        [
            f"warning: policy p names {kind} {name}, which does not exist: "
            f"add it (`hawse admin {kind} add`), or correct the name and apply again"
            for kind, name in (("team", "ser"), ("agent", "sre-2"), ("cluster", "prd"))
        ],
    )
    again = await hub.run("policy", command, "-", "--json", stdin=misspelt)
    assert json.loads(again.stdout)["missing"][0] == {"policy": "p", "kind": "team", "name": "ser"}
    assert again.stderr.splitlines()[-3:] == told.stderr.splitlines()[-3:]
    mended = misspelt.replace("ser,", "").replace(", agents: [sre-2]", "").replace("!prd", "!prod")
    assert "warning" not in (await hub.run("policy", command, "-", stdin=mended)).stderr


async def test_an_upgrade_is_explained(hub: Hub, look: str) -> None:
    await enrol(hub)
    await hub.ok("policy", "apply", look, "--only", "--yes")
    question = ("policy", "explain", "sre-1", "prod", "get", "pods", "web", "-n", "app")
    await hub.ok(*question)
    denied = await hub.run(*question, "--upgrade")
    assert denied.exit_code == 3
    assert "get and create (it is an upgrade) of pods web in namespace app on cluster prod" in denied.stdout


async def test_every_change_is_in_the_trail_with_the_bundle_that_came_of_it(hub: Hub, look: str) -> None:
    await hub.ok("policy", "apply", look)
    await hub.ok("policy", "disable", "guard", "webhooks")
    await hub.run("policy", "remove", "nothing", "--yes")
    listed = json.loads((await hub.ok("policy", "list", "--json")).stdout)

    def told() -> list[str]:
        reader = AuditReader(hub.data.audit_file)
        try:
            events = [json.loads(row.body) for row in reader.query()]
        finally:
            reader.close()
        about = [event for event in events if event.get("req", {}).get("resource", "").startswith("policies")]
        return [event["note"] for event in about if event["phase"] == "complete" and "note" in event]

    # The end of an action is written shortly after its answer.
    with trio.fail_after(5):
        while len(notes := told()) < 3:  # noqa: ASYNC110 - a file gives no event
            await trio.sleep(0.01)
    assert notes[0].startswith("bundle=2-")
    assert notes[0].endswith("; added look")
    assert notes[1] == f"bundle={listed['bundle']}; edited guard; switched off: webhooks"
    assert notes[2] == "there is no policy 'nothing', only granted, guard, look"
