"""The controllers of Deployments and ReplicaSets; a fake kubelet sets which pods are ready."""

from __future__ import annotations

from sandbox.kinds import DEPLOYMENTS, PODS, REPLICA_SETS
from sandbox.objects import Object, integer, items, lookup, text
from sandbox.workloads import template_hash
from tests.sandbox.rollouts import Driver, image_of, template, web
from tests.sandbox.world import World


async def test_a_deployment_makes_its_pods_and_counts_them(world: World) -> None:
    driver = Driver(world)
    world.writer.create(DEPLOYMENTS, "default", web())
    driver.settle(ready=False)
    status = world.status(DEPLOYMENTS, "web")
    assert (status["replicas"], status["unavailableReplicas"], status.get("readyReplicas")) == (2, 2, None)
    driver.settle()
    status = world.status(DEPLOYMENTS, "web")
    assert [status.get(key) for key in ("replicas", "updatedReplicas", "availableReplicas")] == [2, 2, 2]
    assert {text(each, "type"): text(each, "status") for each in items(status, "conditions")} == {
        "Available": "True",
        "Progressing": "True",
    }
    [replica_set] = driver.values(REPLICA_SETS.resource)
    for pod in driver.values(PODS.resource):
        assert text(pod, "metadata", "name").startswith(text(replica_set, "metadata", "name") + "-")
        assert text(items(pod, "metadata", "ownerReferences")[0], "uid") == text(
            replica_set, "metadata", "uid"
        )


async def test_scaling_down_takes_the_unready_first(world: World) -> None:
    driver = Driver(world)
    world.writer.create(DEPLOYMENTS, "default", web(replicas=1))
    driver.settle()
    [kept] = world.names(PODS)
    driver.change(replicas=3)
    driver.settle(ready=False)
    assert len(world.names(PODS)) == 3
    driver.change(replicas=1)
    driver.settle(ready=False)
    assert world.names(PODS) == [kept]


async def test_a_rollout_keeps_the_old_pods_until_the_new_are_ready(world: World) -> None:
    driver = Driver(world)
    world.writer.create(DEPLOYMENTS, "default", web())
    driver.settle()
    driver.change(template=template("two"))
    driver.settle(ready=False)
    assert sorted(driver.images()) == ["one", "one", "two", "two"]
    driver.settle()
    assert driver.images() == ["two", "two"]
    revisions = {
        image_of({"spec": lookup(each, "spec", "template", "spec")}): text(
            each, "metadata", "annotations", "deployment.kubernetes.io/revision"
        )
        for each in driver.values(REPLICA_SETS.resource)
    }
    assert revisions == {"one": "1", "two": "2"}
    driver.change(template=template("one"))
    driver.settle()
    [deployment] = driver.values(DEPLOYMENTS.resource)
    assert text(deployment, "metadata", "annotations", "deployment.kubernetes.io/revision") == "3"
    assert len(driver.values(REPLICA_SETS.resource)) == 2


async def test_recreate_lets_the_old_go_first(world: World) -> None:
    driver = Driver(world)
    world.writer.create(DEPLOYMENTS, "default", web(strategy={"type": "Recreate"}))
    driver.settle()
    driver.change(template=template("two"))
    driver.workloads.reconcile()
    assert "two" not in driver.images()
    driver.settle()
    assert driver.images() == ["two", "two"]


async def test_a_paused_deployment_rolls_nothing_out(world: World) -> None:
    driver = Driver(world)
    world.writer.create(DEPLOYMENTS, "default", web())
    driver.settle()
    driver.change(paused=True, template=template("two"))
    driver.settle()
    assert driver.images() == ["one", "one"]


async def test_old_replica_sets_are_forgotten(world: World) -> None:
    driver = Driver(world)
    world.writer.create(DEPLOYMENTS, "default", web(revisionHistoryLimit=1))
    for image in ("one", "two", "three", "four"):
        driver.change(template=template(image))
        driver.settle()
    assert len(driver.values(REPLICA_SETS.resource)) == 2


async def test_a_lost_pod_is_replaced(world: World) -> None:
    driver = Driver(world)
    world.writer.create(DEPLOYMENTS, "default", web())
    driver.settle()
    world.writer.remove(PODS, "default", world.names(PODS)[0])
    driver.settle()
    assert integer(world.status(DEPLOYMENTS, "web"), "readyReplicas") == 2


def test_the_hash_of_a_template_minds_neither_order_nor_words() -> None:
    one: Object = {"a": 1, "b": {"c": [1, 2]}}
    other: Object = {"b": {"c": [1, 2]}, "a": 1}
    assert template_hash(one) == template_hash(other) != template_hash({"a": 2})
    assert not set(template_hash(one)) & set("aeiou013")
