"""What differs between two dry runs is left out, and nothing that the agent sends is hidden by it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.hub.approvals.preview.findings import SENT_BODY
from proxy.hub.approvals.view import Change
from tests.proxy.hub.approvals.preview.findings import WEB, findings


def pod_with_volumes(number: int, *volumes: dict[str, Any], first: bool = False) -> dict[str, Any]:
    """A pod to which the API server adds a volume with a generated name."""
    added = {"name": f"kube-api-access-{number}", "projected": {}}
    listed = [added, *volumes] if first else [*volumes, added]
    mounts = [{"name": volume["name"], "mountPath": "/x"} for volume in listed]
    spec = {"volumes": listed, "containers": [{"name": "c", "volumeMounts": mounts}]}
    return {"kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


@pytest.mark.parametrize("first", [False, True])
def test_an_element_with_a_generated_name_hides_no_other_element(first: bool) -> None:
    host = {"name": "root", "hostPath": {"path": "/"}}
    create = findings("/api/v1/namespaces/shop/pods", method="POST")
    made = create.tried(None, *(pod_with_volumes(n, host, first=first) for n in (1, 2)))
    assert made.view.flags == ("mounts a folder of the host", "changes a volume")
    assert '"path": "/"' in made.view.body
    assert "kube-api-access" not in made.view.body
    assert made.view.left_out == (
        'spec.containers[name=c].volumeMounts[name="*"]',
        'spec.volumes[name="*"]',
    )
    again = create.tried(None, *(pod_with_volumes(n, host, first=first) for n in (3, 4)))
    assert again.effect == made.effect
    other = {"name": "root", "hostPath": {"path": "/etc"}}
    changed = create.tried(None, *(pod_with_volumes(n, other, first=first) for n in (3, 4)))
    assert changed.effect != made.effect


def test_what_is_sent_is_shown_where_the_difference_leaves_it_out() -> None:
    def pod_of(*added: str) -> dict[str, Any]:
        volumes = [{"hostPath": {"path": "/"}}, *({"emptyDir": {"medium": text}} for text in added)]
        return {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"volumes": volumes}}

    body = json.dumps(pod_of()).encode()
    pods = "/api/v1/namespaces/shop/pods"
    made = findings(pods, body, method="POST").tried(None, pod_of("a"), pod_of("a", "b"))
    assert made.view.left_out == ("spec.volumes",)
    assert '"path": "/"' in made.view.body
    assert "mounts a folder of the host" in made.view.flags
    assert made.view.notes == (SENT_BODY,)
    patch = b'[{"op": "add", "path": "/spec/volumes/0", "value": {"hostPath": {"path": "/"}}}]'
    before = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {}}
    made = findings(f"{pods}/p", patch).tried(before, pod_of("a"), pod_of("a", "b"))
    assert '"path": "/"' in made.view.body
    assert "mounts a folder of the host" in made.view.flags
    assert findings(f"{pods}/p", b'{"spec": {"x": 1}}').tried(before, pod_of("a"), pod_of()).view.body == ""


def test_a_status_counts_where_the_api_may_take_it_from_the_body() -> None:
    # A custom resource may have no subresource for it, and a node is created with one.
    body = b'{"status": {"ready": true}}'
    before = {"kind": "Machine", "metadata": {"name": "m"}, "spec": {}, "status": {"ready": False}}
    after = before | {"status": {"ready": True}}
    made = findings("/apis/x.example.com/v1/machines/m", body).tried(before, after, after)
    assert made.view.changes == (Change("status.ready", "false", "true"),)
    patch = b'[{"op": "replace", "path": "/status/ready", "value": true}]'
    assert findings("/apis/x.example.com/v1/machines/m", patch).tried(before, after, after).view == made.view
    node = findings("/api/v1/nodes", body, "POST").tried(None, after, after)
    assert '"ready": true' in node.view.body
    # Elsewhere controllers change it at any time.
    assert findings(WEB, body).tried(before, after, after).view.changes == ()
