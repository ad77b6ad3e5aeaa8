"""Two MCP servers of npm's registry, unmodified, by a kubeconfig of Hawse and behind `hawse connect`."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from tests.clients.mcp.client import Answer, MCPClient, running
from tests.clients.mcp.servers import BOTH, Call, Server
from tests.system.approvals.scene import HELD, LATER, Scene
from tests.system.waiting import wait_until
from tests.system.world import AGENT, NAMESPACE

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

WAYS = ("kubeconfig", "connect")
REASON = "the pod hängt: <b>restart</b>"
POLICY = """
kind: Policy
metadata: {name: keep, contact: "#platform"}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: rest, effect: allow, verbs: ["*"], resources: ["*", "*/*"]}
    - {id: kept, effect: deny, verbs: [delete], resourceNames: ["kept-*"], reason: the platform keeps these,
       instead: label it for removal}
"""


@attrs.frozen
class Used:
    """A server that an agent uses."""

    scene: Scene
    server: Server
    client: MCPClient
    way: str

    def call(self, call: Call) -> Answer:
        return self.client.end(self.server.begin(self.client, call))

    def event_of(self, name: str) -> dict[str, object]:
        """Return the last event of the agent about an object of this name."""
        found: list[dict[str, object]] = []

        def recorded() -> bool:
            rows = self.scene.world.audit_rows("--agent", AGENT, "--namespace", NAMESPACE)
            found[:] = [row for row in rows if row["req"].get("name") == name]
            return bool(found)

        wait_until(recorded)
        return found[-1]


@pytest.fixture(scope="module")
def keeping(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene, with a rule that denies."""
    file = tmp_path_factory.mktemp("policy") / "keep.yaml"
    file.write_text(POLICY)
    scene.world.admin("policy", "apply", str(file))
    yield scene
    scene.world.admin("policy", "remove", "keep")


def _named(param: tuple[Server, str]) -> str:
    server, way = param
    return f"{server.name}-{way}"


@pytest.fixture(scope="module", params=[(server, way) for server in BOTH for way in WAYS], ids=_named)
def used(
    request: pytest.FixtureRequest, keeping: Scene, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Used]:
    server, way = request.param
    argv, environment = [*server.argv], dict(keeping.plain_environment)
    if way == "connect":
        argv = ["hawse", "connect", "tunnel", "--", *argv]
        environment["HAWSE_REASON"] = REASON
        del environment["KUBECONFIG"]
    with running(argv, environment, tmp_path_factory.mktemp(server.name) / "log") as client:
        yield Used(keeping, server, client, way)


def test_it_lists_reads_logs_and_runs_commands(used: Used) -> None:
    for call, part in (
        (used.server.pods, "workbench"),
        (used.server.logs, "workbench is up"),
        (used.server.exec(["echo", "from the pod"]), "from the pod"),
    ):
        answer = used.call(call)
        assert not answer.failed, answer.text
        assert part in answer.text


def test_it_applies_and_deletes(used: Used) -> None:
    name = used.scene.named("free")
    answer = used.call(used.server.apply(name))
    assert not answer.failed, answer.text
    assert used.scene.value("configmap", name, "{.data.colour}") == "blue"
    answer = used.call(used.server.delete(name))
    assert not answer.failed, answer.text
    assert not used.scene.is_there(name)


def test_a_model_reads_why_a_call_is_denied_and_what_to_do_instead(used: Used) -> None:
    name = used.scene.named("kept")
    used.scene.make(name)
    answer = used.call(used.server.delete(name))
    assert answer.failed
    assert (
        f"delete of configmaps {name} in namespace {NAMESPACE} on cluster tunnel is denied by keep/kept: "
        "the platform keeps these; instead: label it for removal; ask #platform"
    ) in answer.text
    assert used.scene.is_there(name)


def test_the_reason_is_recorded_as_a_claim(used: Used) -> None:
    name = used.scene.named("free")
    answer = used.call(used.server.apply(name))
    assert not answer.failed, answer.text
    client = used.event_of(name)["client"]
    assert isinstance(client, dict)
    assert client.get("claimed_reason") == (REASON if used.way == "connect" else None)


def test_a_call_that_needs_an_approval_waits_for_it(used: Used) -> None:
    name = used.scene.named(HELD)
    used.scene.make(name)
    number = used.server.begin(used.client, used.server.delete(name))
    row = used.scene.waiting(name)
    assert used.scene.is_there(name)
    assert row["claimed_reason"] == (REASON if used.way == "connect" else "")
    shown = used.scene.world.admin("request", "show", str(row["id"])).decode()
    assert ("claimed reason: the pod hängt: <b>restart</b>" in shown) == (used.way == "connect")
    used.scene.approve(row)
    answer = used.client.end(number)
    assert not answer.failed, answer.text
    assert not used.scene.is_there(name)
    assert used.scene.ended(row) == "used"


def test_a_model_reads_that_an_approval_is_missing_and_repeats_the_call_after_it(used: Used) -> None:
    name = used.scene.named(LATER)
    used.scene.make(name)
    refused = used.call(used.server.delete(name))
    assert refused.failed
    row = used.scene.waiting(name)
    for part in (str(row["id"]), "changes are looked at", "repeat"):
        assert part in refused.text
    used.scene.approve(row)
    repeated = used.call(used.server.delete(name))
    assert not repeated.failed, repeated.text
    assert not used.scene.is_there(name)


def test_a_locked_agent_loses_a_call_that_runs_and_each_next_one(used: Used) -> None:
    world = used.scene.world
    number = used.server.begin(used.client, used.server.exec(["sleep", "100"]))
    wait_until(
        lambda: bool([row for row in world.session_rows(agent=AGENT) if "exec" in str(row["resource"])])
    )
    [row] = [row for row in world.session_rows(agent=AGENT) if "exec" in str(row["resource"])]
    assert row["claimed_reason"] == (REASON if used.way == "connect" else "")
    world.admin("agent", "lock", AGENT)
    try:
        used.client.end(number)
        wait_until(lambda: not world.session_rows(agent=AGENT))
        refused = used.call(used.server.pods)
        assert refused.failed
        assert f"agent:{AGENT} is locked" in refused.text
    finally:
        world.admin("agent", "unlock", AGENT)
    answer = used.call(used.server.pods)
    assert not answer.failed, answer.text
