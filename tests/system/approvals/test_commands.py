"""Commands of kubectl that repeat themselves: which of them ask again."""

from __future__ import annotations

import json

import pytest

from tests.system.approvals.effects import approved, asked, config_map, deployment
from tests.system.approvals.scene import DEADLINE_S, LATER, Scene
from tests.system.waiting import wait_until
from tests.system.world import NAMESPACE

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def test_the_same_deletion_of_another_object_asks_again(scene: Scene) -> None:
    name = scene.named(LATER)
    delete = ("delete", "configmap", name)
    scene.make(name)
    row = asked(scene, name, *delete)
    approved(scene, row, *delete)
    scene.make(name)
    # Right after a use the call is refused alone, since clients repeat calls whose answer was lost.
    assert scene.kubectl(*delete).code == 1
    assert scene.requests(name, state="pending") == []
    scene.age(row)
    assert asked(scene, name, *delete)["id"] != row["id"]
    assert scene.writes(name) == [200]


def test_a_restart_of_another_second_is_the_same_call(scene: Scene) -> None:
    name = scene.named(LATER)
    scene.create(deployment(name))
    restart = ("rollout", "restart", f"deployment/{name}")
    first = scene.kubectl(*restart)
    row = scene.waiting(name)
    assert (first.code, str(row["id"]) in first.err.decode()) == (1, True)
    scene.approve(row)
    assert scene.kubectl(*restart).code == 0
    assert scene.ended(row) == "used"
    # Each restart needs an approval of its own.
    scene.age(row)
    while b"within the past second" in (again := scene.kubectl(*restart)).err:
        # kubectl itself restarts once a second.
        assert again.code == 1
    assert again.code == 1
    assert scene.waiting(name)["id"] != row["id"]
    assert scene.writes(name) == [200]


def test_an_apply_asks_for_a_change_and_not_without_one(scene: Scene) -> None:
    name = scene.named(LATER)
    apply = ("apply", "--filename=-")
    # The rule names objects, and a creation has no name in its URL.
    assert scene.kubectl(*apply, document=config_map(name, "red")).code == 0
    assert scene.kubectl(*apply, document=config_map(name, "blue")).code == 1
    row = scene.waiting(name)
    scene.approve(row)
    done = scene.kubectl(*apply, document=config_map(name, "blue"))
    assert (done.code, done.out) == (0, f"configmap/{name} configured\n".encode()), done.err
    again = scene.kubectl(*apply, document=config_map(name, "blue"))
    assert (again.code, again.out) == (0, f"configmap/{name} unchanged\n".encode()), again.err
    assert [each["id"] for each in scene.requests(name)] == [row["id"]]


def test_each_server_side_apply_asks(scene: Scene) -> None:
    name = scene.named(LATER)
    apply = ("apply", "--server-side", "--filename=-")
    ids = set()
    for _ in range(2):
        assert scene.kubectl(*apply, document=config_map(name, "red")).code == 1
        row = scene.waiting(name)
        ids.add(row["id"])
        scene.approve(row)
        assert scene.kubectl(*apply, document=config_map(name, "red")).code == 0
        assert scene.ended(row) == "used"
        scene.age(row)
    assert len(ids) == 2


def test_a_drain_asks_once_an_eviction(scene: Scene) -> None:
    """A budget refuses the approved evictions with 429 first, which gives the grants back."""
    name = scene.named("drained")
    budget = ("poddisruptionbudget", name, f"--namespace={NAMESPACE}")
    scene.create(deployment(name, replicas=2))
    administrator = scene.world.administrator
    administrator("create", *budget, f"--selector=app={name}", "--min-available=2")
    healthy = "--for=jsonpath={.status.currentHealthy}=2"
    administrator("wait", healthy, *budget, "--timeout=20s")
    argv = scene.world.command("tunnel", "drain", "sandbox", f"--pod-selector=app={name}", "--timeout=50s")
    process = scene.program(*argv).start()
    try:
        wait_until(lambda: len(scene.requests(name, state="pending")) == 2, DEADLINE_S)
        rows = scene.requests(name, state="pending")
        for row in rows:
            scene.approve(row)
        wait_until(lambda: scene.writes(f"{name}-") == [429, 429], DEADLINE_S)
        administrator("patch", *budget, "--type=merge", "-p", json.dumps({"spec": {"minAvailable": 0}}))
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        out, err = process.communicate()
        administrator("uncordon", "sandbox")
    assert process.returncode == 0, (out + err).decode()
    assert err.count(b"Cannot evict pod as it would violate the pod's disruption budget.") == 2
    assert {scene.ended(row) for row in rows} == {"used"}
    assert len(scene.requests(name)) == 2
    assert sorted(scene.writes(f"{name}-")) == [201, 201, 429, 429]
