"""The controller of Jobs; the test sets how their pods end."""

from __future__ import annotations

import pytest

from sandbox.jobs import Jobs
from sandbox.kinds import JOBS, PODS
from sandbox.objects import Json, Object, child, clone, items, string_map, strings, text
from sandbox.recorder import EventRecorder
from sandbox.status import StatusError
from tests.sandbox.conftest import Cluster
from tests.sandbox.world import World

TARGET = "/apis/batch/v1/namespaces/default/jobs"
LABEL = "batch.kubernetes.io/controller-uid"


def job(**spec: Json) -> Object:
    containers: list[Json] = [{"name": "main", "image": "i"}]
    template: Object = {"spec": {"restartPolicy": "Never", "containers": containers}}
    return {"metadata": {"name": "j"}, "spec": {"template": template, **spec}}


class Driver:
    """Steps the controller, and ends the pods."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.jobs = Jobs(world.store, world.writer, EventRecorder(world.store))
        self.pods = world.store.collection(PODS.group, PODS.resource)

    async def start(self, **spec: Json) -> None:
        await self.world.object("POST", TARGET, job(**spec))
        self.jobs.reconcile()

    def active(self) -> list[Object]:
        pods = [item.value for item in self.pods.items("default")]
        return [pod for pod in pods if text(pod, "status", "phase") == "Pending"]

    def end_one(self, phase: str) -> None:
        pod = clone(self.active()[0])
        child(pod, "status")["phase"] = phase
        self.pods.put(pod)
        self.jobs.reconcile()

    @property
    def ended(self) -> list[str]:
        return [text(each, "type") for each in items(self.world.status(JOBS, "j"), "conditions")]


@pytest.fixture
def driver(world: World) -> Driver:
    return Driver(world)


async def test_pods_are_found_by_the_jobs_uid(driver: Driver) -> None:
    await driver.start()
    [pod] = driver.active()
    made = await driver.world.object("GET", f"{TARGET}/j")
    uid = text(made, "metadata", "uid")
    assert string_map(pod, "metadata", "labels")[LABEL] == uid
    assert string_map(made, "spec", "selector", "matchLabels") == {LABEL: uid}
    assert [text(owner, "kind") for owner in items(pod, "metadata", "ownerReferences")] == ["Job"]


async def test_the_uid_in_the_labels_differs_between_two_dry_runs(world: World) -> None:
    tried = [await world.object("POST", f"{TARGET}?dryRun=All", job()) for _ in range(2)]
    labels = [string_map(each, "spec", "template", "metadata", "labels")[LABEL] for each in tried]
    assert labels[0] != labels[1]
    assert labels[0] == text(tried[0], "metadata", "uid")
    assert world.names(JOBS) == []


async def test_a_job_runs_until_enough_pods_have_succeeded(driver: Driver) -> None:
    await driver.start(completions=3, parallelism=2)
    assert len(driver.active()) == 2
    driver.end_one("Succeeded")
    driver.end_one("Succeeded")
    assert (len(driver.active()), driver.ended) == (1, [])
    driver.end_one("Succeeded")
    assert (driver.active(), driver.ended) == ([], ["Complete"])


async def test_a_job_fails_after_too_many_failures(driver: Driver) -> None:
    await driver.start(backoffLimit=1)
    driver.end_one("Failed")
    assert (len(driver.active()), driver.ended) == (1, [])
    driver.end_one("Failed")
    assert (driver.active(), driver.ended) == ([], ["Failed"])


async def test_a_suspended_job_starts_no_pods(driver: Driver) -> None:
    await driver.start(suspend=True)
    assert driver.active() == []


async def test_its_pods_outlive_a_job_that_is_deleted_without_a_policy(driver: Driver) -> None:
    await driver.start()
    leaving = await driver.world.object("DELETE", f"{TARGET}/j")
    assert strings(leaving, "metadata", "finalizers") == ["orphan"]


async def test_a_job_whose_pods_would_restart_for_ever_is_refused(world: World) -> None:
    value = job()
    child(value, "spec", "template", "spec")["restartPolicy"] = "Always"
    with pytest.raises(StatusError) as caught:
        await world.ask("POST", TARGET, value)
    assert 'valid values: "OnFailure", "Never"' in caught.value.message


async def test_the_template_of_a_job_cannot_be_changed(world: World) -> None:
    await world.object("POST", TARGET, job())
    patch: Object = {"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}
    with pytest.raises(StatusError) as caught:
        await world.ask(
            "PATCH", f"{TARGET}/j", patch, headers={"content-type": "application/merge-patch+json"}
        )
    assert "field is immutable" in caught.value.message


@pytest.mark.kubectl
def test_kubectl_runs_a_job_and_removes_it_with_its_pods(cluster: Cluster, namespace: str) -> None:
    run = cluster.kubectl
    run("create", "job", "once", "--image=i", "-n", namespace, "--", "true")
    run("wait", "--for=condition=Complete", "job/once", "-n", namespace, "--timeout=20s")
    assert "Complete   1/1" in run("get", "jobs", "-n", namespace)
    run("delete", "job", "once", "-n", namespace)
    run("wait", "--for=delete", "pods", "--all", "-n", namespace, "--timeout=20s")
