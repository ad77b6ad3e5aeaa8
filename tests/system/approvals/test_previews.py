"""What an approver sees of a call, from a cluster with webhooks and aggregated APIs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.approvals.effects import approved, asked, changes, config_map
from tests.system.approvals.scene import LATER, Scene
from tests.system.world import NAMESPACE

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def webhooks(kind: str, name: str, program: str, effects: str) -> dict[str, object]:
    """Webhooks for config maps with the label `hooked` of this name."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{kind}WebhookConfiguration",
        "metadata": {"name": f"{name}-{program}"},
        "webhooks": [
            {
                "name": f"{program}.{name}.example",
                "clientConfig": {"url": f"https://webhook.invalid/{program}"},
                "rules": [
                    {
                        "operations": ["UPDATE"],
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["configmaps"],
                    }
                ],
                "objectSelector": {"matchLabels": {"hooked": name}},
                "sideEffects": effects,
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


@pytest.fixture
def hooked(scene: Scene) -> Iterator[str]:
    """A config map that webhooks select; the webhooks are removed afterwards."""
    name = scene.named(LATER)
    scene.create(config_map(name, labels={"hooked": name}))
    yield name
    for kind in ("validating", "mutating"):
        scene.world.administrator("delete", f"{kind}webhookconfigurations", "--all")


def calls_of(scene: Scene, webhook: str) -> str:
    """How often a webhook with the program `record` was called."""
    where = ("webhook-calls", "--namespace=kube-system", "--ignore-not-found")
    counted = scene.world.administrator("get", "configmap", *where, "-o", "jsonpath={.data}").decode()
    return counted if webhook in counted else ""


def test_a_webhook_with_side_effects_is_not_called_before_the_approval(scene: Scene, hooked: str) -> None:
    scene.create(webhooks("Validating", hooked, "record", "Some"))
    patch = ("patch", "configmap", hooked, "--type=merge", "-p", '{"data":{"colour":"blue"}}')
    shown = asked(scene, hooked, *patch)
    assert changes(shown) == {}
    assert "blue" in str(shown["body"])
    assert any("does not support dry run" in str(note) for note in shown["notes"])
    assert calls_of(scene, hooked) == ""
    approved(scene, shown, *patch)
    assert f'"record.{hooked}.example":"1"' in calls_of(scene, hooked)


def test_what_a_webhook_changes_is_shown_and_what_differs_each_time_is_left_out(
    scene: Scene, hooked: str
) -> None:
    scene.create(
        webhooks("Mutating", hooked, "label", "None"), webhooks("Mutating", hooked, "random", "None")
    )
    patch = ("patch", "configmap", hooked, "--type=merge", "-p", '{"data":{"colour":"blue"}}')
    shown = asked(scene, hooked, *patch)
    found = changes(shown)
    assert found["data.colour"] == ('"red"', '"blue"')
    [label] = [path for path in found if "sandbox.example/webhook" in path]
    assert found[label] == (None, '"seen"')
    left_out = shown["left_out"]
    assert isinstance(left_out, list)
    assert any("annotations" in path for path in left_out)
    # The effect is without it, so the grant fits at its use.
    approved(scene, shown, *patch)


def test_an_api_that_ignores_dry_runs_is_not_written_before_the_approval(scene: Scene) -> None:
    name = scene.named(LATER)
    metadata = {"name": name, "namespace": NAMESPACE}
    thing = {"apiVersion": "aggregated.example.com/v1", "kind": "Thing", "metadata": metadata}
    scene.create({**thing, "spec": {"depth": 1}})
    patch = ("patch", "thing", name, "--type=merge", "-p", '{"spec":{"depth":2}}')
    shown = asked(scene, name, *patch)
    assert (scene.value("thing", name, "{.spec.depth}"), changes(shown)) == ("1", {})
    assert any("may not honour dryRun" in str(note) for note in shown["notes"])
    assert '"depth"' in str(shown["body"])
    writes = [event for event in scene.world.cluster_audit() if event["verb"] == "patch"]
    assert not [event for event in writes if name in str(event["requestURI"])]
    approved(scene, shown, *patch)
    assert scene.value("thing", name, "{.spec.depth}") == "2"


def test_an_api_that_the_rule_trusts_is_tried_out(scene: Scene) -> None:
    name = scene.named("w")
    metadata = {"name": name, "namespace": NAMESPACE}
    scene.create({"apiVersion": "stable.example.com/v1", "kind": "Widget", "metadata": metadata})
    patch = ("patch", "widget", name, "--type=merge", "-p", '{"spec":{"size":"big"}}')
    assert changes(asked(scene, name, *patch)) == {"spec.size": ('"small"', '"big"')}
    assert scene.value("widget", name, "{.spec.size}") == "small"
