"""The decision page over a real hub."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

from proxy.console.app import console_app
from tests.console.fakes import FakeSignIn
from tests.console.markup import faults_of, text_of
from tests.console.world import open_world
from tests.fakes.asgi import Reply, call

POLICY = """\
apiVersion: hawse.dev/v1
kind: Policy
metadata: {name: calm, contact: "#platform"}
spec:
  bind: {teams: ["*"]}
  rules:
    - id: no-delete
      effect: deny
      verbs: [delete]
      reason: objects are deleted by their controllers
      instead: scale the deployment to zero
    - id: edits
      effect: ask
      verbs: [patch]
      reason: someone looks at it first
      ask: {approvers: [ann@example.com]}
    - {id: all-edits, effect: ask, verbs: [write], ask: {approvers: [owner], wait: 0s}}
"""


async def test_a_decision_names_its_rule_its_reason_and_what_to_do_instead(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        await bench.ok("POST", "/v1/policies", {"files": [{"text": POLICY}]})
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        now = bench.directory.current
        agent, cluster = next(
            (agent, cluster)
            for agent in now.agents_by_name.values()
            for cluster in now.clusters_by_name.values()
            if agent.active and now.may_reach(agent, cluster)
        )
        asked = {"agent": agent.name, "cluster": cluster.name, "namespace": "shop"}

        async def ask(**question: str) -> Reply:
            reply = await call(app, "GET", f"/decision?{urlencode({**asked, **question})}")
            assert faults_of(reply.body) == []
            return reply

        denied = await ask(verb="delete", resource="pods", name="web")
        shown = text_of(denied.body)
        assert "Denied by calm/no-delete" in shown
        assert "objects are deleted by their controllers" in shown
        assert "instead scale the deployment to zero" in shown
        assert "ask #platform" in shown
        assert f'href="/policies/calm?version={now.bundle.version}#rule-no-delete"' in denied.body.decode()
        command = f"hawse admin policy explain -n shop {agent.name} {cluster.name} delete pods web"
        assert command in shown
        assert "Allowed by granted/granted" in text_of(
            (await ask(verb="get", resource="pods", name="w")).body
        )
        patched = text_of((await ask(verb="patch", resource="pods", name="web")).body)
        assert "Asked by calm/edits" in patched
        assert "may approve ann@example.com waits up to 45 s for the approval valid 15 min" in patched
        assert "asks too calm/all-edits does not decide; owner may approve there" in patched
        assert "why someone looks at it first" in patched
        mistyped = await ask(verb="get", resource="pod", name="web")
        assert mistyped.status >= 400
        assert "did you mean pods?" in text_of(mistyped.body)
        unknown = await ask(agent="nobody", verb="list", resource="pods")
        assert unknown.status == 404
        assert "nobody" in text_of(unknown.body)
        await bench.ok("POST", f"/v1/agents/{agent.name}/lock")
        locked = text_of((await ask(verb="list", resource="pods")).body)
        assert "Denied, before any policy" in locked
        assert "would allow it, by granted/granted" in locked


async def test_half_a_question_is_asked_for(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        app = console_app(bench.app, FakeSignIn(), "hub.example", bench.clock)
        half = text_of((await call(app, "GET", "/decision?agent=triage")).body)
        assert "An agent, a cluster, a verb and a resource make a question." in half
        assert "No question yet" in text_of((await call(app, "GET", "/decision")).body)


async def test_the_api_takes_a_target_or_words(tmp_path: Path) -> None:
    async with open_world(tmp_path) as bench:
        names = "agent=triage&cluster=dev"
        target = "target=/api/v1/namespaces/shop/pods/web"
        words = "verb=get&resource=pods&name=web&namespace=shop"
        by_target = await bench.ok("GET", f"/v1/decision?{names}&{target}")
        assert await bench.ok("GET", f"/v1/decision?{names}&{words}") == by_target
        for query in (names, f"{names}&verb=get", f"{names}&{target}&{words}"):
            reply = await bench.ask("GET", f"/v1/decision?{query}")
            assert (reply.status, reply.json["error"]["message"]) == (
                422, "name a target, or a verb and a resource",
            )  # fmt: skip
