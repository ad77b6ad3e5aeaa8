"""Attacks on approvals: ways around a rule that asks, and calls that no person has approved."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.system.approvals.effects import config_map, deployment
from tests.system.approvals.scene import LATER, PERSON, ROOT, Row, Scene
from tests.system.raw import RawClient, parse
from tests.system.world import NAMESPACE, USER, Result

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

# An agent may have so many requests open.
OPEN_MAX = 20
POLICY = """
kind: Policy
metadata: {name: attacked}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: secrets, effect: ask, verbs: [read], resources: [secrets], namespaces: [work],
       reason: secrets are looked at, ask: {approvers: ["ann@example.com"], wait: 0s}}
    - {id: fenced, effect: ask, verbs: [write], resources: ["*"], resourceNames: ["fenced-*"],
       reason: changes are looked at, ask: {approvers: ["ann@example.com"], wait: 0s}}
"""
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/fenced-web"
POD = f"/api/v1/namespaces/{NAMESPACE}/pods/fenced-pod"


@pytest.fixture(scope="module")
def attacked(scene: Scene) -> Iterator[Scene]:
    file = scene.world.folder / "attacked.yaml"
    file.write_text(POLICY)
    scene.world.admin("policy", "apply", str(file))
    # It denies a list of all secrets, since some of them are the relay's.
    scene.world.admin("policy", "disable", "guard", "relay-namespace")
    yield scene
    scene.world.admin("policy", "enable", "guard", "relay-namespace")
    scene.world.admin("policy", "remove", "attacked")


def is_asked(done: Result) -> bool:
    """Whether a call was refused because it needs an approval."""
    return done.code == 1 and b"pending" in done.err


def reads_of_secrets(scene: Scene) -> int:
    """How often the agent's reads of secrets have come to the cluster."""
    return sum(
        "/secrets" in str(event["requestURI"]) and USER in str(event.get("impersonatedUser"))
        for event in scene.world.cluster_audit()
    )


@pytest.mark.parametrize(
    "args",
    [
        ("get", "secrets", "--all-namespaces"),
        ("get", "--raw", "/api/v1/secrets?limit=1"),
        ("get", "--raw", f"/api/v1/secrets?fieldSelector=metadata.namespace%3D{NAMESPACE}"),
        ("get", "secrets", f"--namespace={NAMESPACE}"),
        ("get", "secret", "any", f"--namespace={NAMESPACE}"),
    ],
    ids=["all", "all-raw", "all-by-field", "namespace", "one"],
)
def test_a_list_of_all_namespaces_is_asked_as_those_of_the_rule_are(
    attacked: Scene, args: tuple[str, ...]
) -> None:
    before = reads_of_secrets(attacked)
    done = attacked.kubectl(*args)
    assert is_asked(done), done.err
    assert reads_of_secrets(attacked) == before


def test_subresources_are_asked_as_their_resources_are(attacked: Scene) -> None:
    attacked.create(deployment("fenced-web"))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fenced-pod", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "main", "image": "busybox", "command": ["sleep", "3600"]}]},
    }
    attacked.create(pod)
    patches = {
        f"{DEPLOYMENT}/scale": {"spec": {"replicas": 0}},
        f"{DEPLOYMENT}/status": {"status": {"observedGeneration": 7}},
        f"{POD}/status": {"status": {"message": "all is well"}},
    }
    client = RawClient(attacked.world, "tunnel")
    for path, patch in patches.items():
        body = json.dumps(patch).encode()
        kind = "Content-Type: application/merge-patch+json"
        head = client.head(path, kind, f"Content-Length: {len(body)}", method="PATCH")
        answer = parse(client.send(head + body))
        assert (answer.status, b"pending" in answer.body) == (403, True), (path, answer)
    assert attacked.writes("fenced-") == []


def test_an_approval_serves_one_call_on_one_cluster(attacked: Scene) -> None:
    name = attacked.named(LATER)
    delete = ("delete", "configmap", name)
    attacked.make(name)
    assert is_asked(attacked.kubectl(*delete))
    row = attacked.waiting(name)
    attacked.approve(row)
    # The same objects by another name of the cluster, which counts as another cluster.
    elsewhere = attacked.world.kubectl("direct", *delete)
    assert is_asked(elsewhere), elsewhere.err
    assert attacked.is_there(name)
    assert attacked.kubectl(*delete).code == 0
    assert attacked.ended(row) == "used"
    # Once more, as soon as there is an object to delete.
    attacked.make(name)
    again = attacked.kubectl(*delete)
    assert (again.code, attacked.is_there(name)) == (1, True), again.err
    assert attacked.writes(f"configmaps/{name}") == [200]


def test_an_approval_serves_no_other_call(attacked: Scene) -> None:
    name, other = attacked.named(LATER), attacked.named(LATER)
    for each in (name, other):
        attacked.create(config_map(each))
    blue, green = '{"data":{"colour":"blue"}}', '{"data":{"colour":"green"}}'
    approved = ("patch", "configmap", name, "--type=merge", "-p", blue)
    assert is_asked(attacked.kubectl(*approved))
    row = attacked.waiting(name)
    attacked.approve(row)
    others = [
        ("patch", "configmap", other, "--type=merge", "-p", blue),
        ("patch", "configmap", name, "--type=merge", "-p", green),
        # The same bytes, which mean something else; the same change in other bytes.
        ("patch", "configmap", name, "--type=strategic", "-p", blue),
        ("patch", "configmap", name, "--type=merge", "-p", '{"data": {"colour":"blue"}}'),
        ("patch", "configmap", name, "--type=merge", "-p", blue, "--field-manager=another"),
        ("delete", "configmap", name),
    ]
    for args in others:
        done = attacked.kubectl(*args)
        assert is_asked(done), (args, done.err)
    assert attacked.writes(f"configmaps/{name}") == attacked.writes(f"configmaps/{other}") == []
    # The approval is still there for its own call.
    assert attacked.kubectl(*approved).code == 0
    assert attacked.value("configmap", name, "{.data.colour}") == "blue"


def test_a_flood_of_requests_is_bounded_and_reaches_no_cluster(attacked: Scene) -> None:
    world = attacked.world
    made = json.loads(
        world.admin("agent", "add", "flooder", "--team", "platform", "--owner", "tests", "--json")
    )
    try:
        # Its previews reach the cluster.
        rbac = ("cluster", "rbac", "tunnel", "--namespace", "hawse", "--service-account", "relay")
        world.administrator("apply", "--filename=-", stdin=world.admin(*rbac))
        client = RawClient(world, "tunnel", api_key=made["api_key"])

        def delete(number: int) -> tuple[int, bytes]:
            head = client.head(f"{CONFIG_MAPS}/fenced-{number}", method="DELETE")
            answer = parse(client.send(head))
            return answer.status, answer.body

        numbers = range(OPEN_MAX + 5)
        attacked.create(*(config_map(f"fenced-{number}") for number in numbers))
        answers = [delete(number) for number in numbers]
        assert {status for status, _ in answers} <= {403, 429}, answers
        pending = [body for _, body in answers if b"pending" in body]
        assert len(pending) == OPEN_MAX
        rows = attacked.requests("fenced-", state="pending", agent="flooder")
        assert len(rows) == OPEN_MAX
        asked = [
            (event["verb"], str(event["requestURI"]).partition("fenced-")[2])
            for event in world.cluster_audit()
            if "flooder" in str(event.get("impersonatedUser"))
        ]
        # No call above the limit has a preview.
        assert {number for _, number in asked} == {str(number) for number in range(OPEN_MAX)}
        assert {verb for verb, _ in asked} == {"get"}
    finally:
        world.admin("agent", "remove", "flooder", "--yes")


def test_an_approvers_token_on_the_agents_machine_approves_which_the_docs_say(attacked: Scene) -> None:
    world, name = attacked.world, attacked.named(LATER)
    attacked.make(name)
    assert is_asked(attacked.kubectl("delete", "configmap", name))
    row: Row = attacked.waiting(name)
    assert attacked.approver.token
    environment = {
        **world.agent,
        "HAWSE_ADMIN_URL": f"https://127.0.0.1:{world.admin_port}",
        "HAWSE_ADMIN_TOKEN": attacked.approver.token,
        "HAWSE_ADMIN_CA": str(world.ca),
    }
    approve = ("admin", "request", "approve", str(row["id"]), "--shown", str(row["shown"]))
    world.hawse(*approve, environment=environment)
    # It is not prevented: the trail has the person, and the token that was used.
    [decided] = [
        event
        for event in world.audit_rows("--limit", "200")
        if event["kind"] == "request.decided" and event["approval"]["request"] == row["id"]
    ]
    assert decided["approval"]["by"] == PERSON
    told = (ROOT / "docs" / "approvals.md").read_text()
    assert "An approver's token on the agent's machine is self-approval" in told
