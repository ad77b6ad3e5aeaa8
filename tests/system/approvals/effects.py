"""What an API server does with an approved call, against what its approver was shown. For any cluster."""

from __future__ import annotations

import json

from tests.system.approvals.scene import LATER, Row, Scene
from tests.system.world import NAMESPACE, Result

CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
HOLD = "hawse.example/hold"


def deployment(name: str, replicas: int = 1) -> dict[str, object]:
    labels = {"app": name}
    container = {"name": "main", "image": "busybox", "command": ["sleep", "3600"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
            },
        },
    }


def config_map(name: str, colour: str = "red", **metadata: object) -> dict[str, object]:
    metadata = {"name": name, "namespace": NAMESPACE, **metadata}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"colour": colour}}


def changes(shown: Row) -> dict[str, tuple[object, object]]:
    """Return what is before and after, by path."""
    listed = shown["changes"]
    assert isinstance(listed, list)
    return {each["path"]: (each["before"], each["after"]) for each in listed}


def asked(scene: Scene, part: str, *args: str) -> Row:
    """Have the agent's call refused, and return the request that it opened, with all that is shown."""
    done = scene.kubectl(*args)
    assert (done.code, b"pending" in done.err) == (1, True), done.out + done.err
    return scene.shown(scene.waiting(part))


def approved(scene: Scene, row: Row, *args: str) -> Result:
    """Approve a request and repeat the call."""
    scene.approve(row)
    done = scene.kubectl(*args)
    assert done.code == 0, done.err
    assert scene.ended(row) == "used"
    return done


def defaults_are_shown(scene: Scene) -> None:
    """The server's own defaults are in the difference, and what is stored is what was shown."""
    name = scene.named(LATER)
    scene.create(deployment(name))
    container = {"name": "main", "ports": [{"containerPort": 8080}]}
    template = {"spec": {"containers": [container]}}
    patch = ("patch", "deployment", name, "-p", json.dumps({"spec": {"template": template}}))
    shown = asked(scene, name, *patch)
    [(path, (before, after))] = changes(shown).items()
    assert before is None
    assert "ports" in path
    # The patch has no protocol.
    ports = [{"containerPort": 8080, "protocol": "TCP"}]
    assert json.loads(str(after)) == ports
    assert scene.value("deployment", name, "{.spec.template.spec.containers[0].ports}") == ""
    approved(scene, shown, *patch)
    assert json.loads(scene.value("deployment", name, "{.spec.template.spec.containers[0].ports}")) == ports
    scene.world.administrator("delete", "deployment", name, f"--namespace={NAMESPACE}")


def finalizers_keep_an_object(scene: Scene) -> None:
    """The approver reads that the object stays, and it does."""
    name = scene.named(LATER)
    scene.create(config_map(name, finalizers=[HOLD]))
    delete = ("delete", "configmap", name, "--wait=false")
    try:
        shown = asked(scene, name, *delete)
        assert HOLD in str(shown["notes"])
        assert scene.value("configmap", name, "{.metadata.deletionTimestamp}") == ""
        approved(scene, shown, *delete)
        assert scene.value("configmap", name, "{.metadata.deletionTimestamp}") != ""
    finally:
        patch = ("-p", '{"metadata":{"finalizers":null}}')
        scene.world.administrator(
            "patch", "configmap", name, f"--namespace={NAMESPACE}", "--type=merge", *patch
        )
    assert not scene.is_there(name)


def a_collection_may_shrink_and_not_grow(scene: Scene) -> None:
    """Fewer objects than were shown may be deleted under the grant, and none that were not."""
    name = scene.named("collected")
    members = [f"{name}-{letter}" for letter in "abcd"]
    scene.create(*(config_map(each, labels={"set": name}) for each in members[:3]))
    delete = ("delete", "--raw", f"{CONFIG_MAPS}?labelSelector=set%3D{name}")
    shown = asked(scene, "deletecollection", *delete)
    assert "3 configmaps" in str(shown["summary"])
    scene.world.administrator("delete", "configmap", members[0], f"--namespace={NAMESPACE}")
    scene.create(config_map(members[3], labels={"set": name}))
    scene.approve(shown)
    # The fourth one was not shown.
    grown = scene.kubectl(*delete)
    assert (grown.code, scene.ended(shown)) == (1, "stale"), grown.err
    assert all(scene.is_there(each) for each in members[1:])
    again = scene.shown(scene.waiting("deletecollection"))
    assert again["id"] != shown["id"]
    scene.world.administrator("delete", "configmap", members[1], f"--namespace={NAMESPACE}")
    approved(scene, again, *delete)
    assert not any(scene.is_there(each) for each in members)


CASES = [defaults_are_shown, finalizers_keep_an_object, a_collection_may_shrink_and_not_grow]
