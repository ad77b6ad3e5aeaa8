"""What a hub tells a webhook of a request."""

from __future__ import annotations

import json

import pytest

from tests.fakes.receiver import FakeReceiver
from tests.system.approvals.scene import DEADLINE_S, LATER, PERSON, Scene
from tests.system.waiting import wait_until
from tests.system.world import AGENT, NAMESPACE

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def test_a_webhook_gets_each_step_of_a_request(scene: Scene, receiver: FakeReceiver) -> None:
    name = scene.named(LATER)
    scene.make(name)
    delete = ("delete", "configmap", name, "--wait=false")
    assert scene.kubectl(*delete).code == 1
    row = scene.waiting(name)
    scene.approve(row)
    assert scene.kubectl(*delete).code == 0
    headings = ["*Approval requested*", f"*Approved by `{PERSON}`*", "*The approved call was made*"]
    wait_until(lambda: len(texts(receiver, str(row["id"]))) >= len(headings), DEADLINE_S)
    found = texts(receiver, str(row["id"]))
    assert [text.partition("\n")[0] for text in found] == headings
    assert all(f"Agent `{AGENT}` in cluster `tunnel`: `{row['what']}`" in text for text in found)
    assert f"{NAMESPACE}/{name}" in str(row["what"])
    logs = [path.read_text() for path in scene.world.folder.glob("*.log")]
    # The URL's secret.
    assert "hunter2" not in "".join(logs)


def texts(receiver: FakeReceiver, request_id: str) -> list[str]:
    """The texts of the messages about a request. The hub has no console to link to."""
    found = [str(json.loads(each.body)["text"]) for each in receiver.posted]
    return [text for text in found if text.endswith(f"`hawse admin request show {request_id}`")]
