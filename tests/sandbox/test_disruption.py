"""Disruption budgets: their status, and evictions that they allow or refuse."""

from __future__ import annotations

import pytest

from sandbox.disruption import Budgets
from sandbox.kinds import DISRUPTION_BUDGETS, PODS
from sandbox.objects import Json, Object, child, clone, integer, mapping, text
from sandbox.server import Response
from sandbox.status import StatusError
from tests.sandbox.rollouts import Driver, web
from tests.sandbox.world import World

CORE = "/api/v1/namespaces/default"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
BUDGETS = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
REFUSAL = "Cannot evict pod as it would violate the pod's disruption budget."


class Cluster:
    """Four ready pods of a deployment, and their budget."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.budgets = Budgets(world.store)
        self.driver = Driver(world)

    async def start(self, **budget: Json) -> None:
        await self.world.object("POST", DEPLOYMENTS, web(replicas=4))
        self.driver.settle()
        for item in self.driver.pods.items("default"):
            running = clone(item.value)
            child(running, "status")["phase"] = "Running"
            child(running, "spec")["nodeName"] = "sandbox"
            self.driver.pods.put(running)
        await self.protect("budget", **budget)

    async def protect(self, name: str, **budget: Json) -> None:
        spec: Object = {"selector": {"matchLabels": {"app": "web"}}, **budget}
        await self.world.object("POST", BUDGETS, {"metadata": {"name": name}, "spec": spec})
        self.budgets.reconcile()

    @property
    def status(self) -> Object:
        return self.world.status(DISRUPTION_BUDGETS, "budget")

    async def evict(self, name: str, query: str = "", **options: Json) -> Response:
        eviction: Object = {"metadata": {"name": name}, "deleteOptions": options}
        answer = await self.world.ask("POST", f"{CORE}/pods/{name}/eviction{query}", eviction)
        assert isinstance(answer, Response)
        return answer

    async def refused(self, name: str, query: str = "", **options: Json) -> StatusError:
        with pytest.raises(StatusError) as caught:
            await self.evict(name, query, **options)
        return caught.value

    def leaving(self) -> list[str]:
        pods = self.driver.values("pods")
        names = [each for each in pods if text(each, "metadata", "deletionTimestamp")]
        return [text(each, "metadata", "name") for each in names]


@pytest.fixture
def cluster(world: World) -> Cluster:
    return Cluster(world)


@pytest.mark.parametrize(
    ("budget", "wanted", "allowed"),
    [
        ({"minAvailable": 3}, 3, 1),
        ({"minAvailable": 0}, 0, 4),
        ({"minAvailable": 9}, 9, 0),
        ({"minAvailable": "30%"}, 2, 2),
        ({"maxUnavailable": 1}, 3, 1),
        ({"maxUnavailable": "30%"}, 2, 2),
        ({"maxUnavailable": 0}, 4, 0),
        ({}, 4, 0),
    ],
)
async def test_the_status_says_how_many_pods_may_go(
    cluster: Cluster, budget: Object, wanted: int, allowed: int
) -> None:
    await cluster.start(**budget)
    numbers = [integer(cluster.status, key) for key in ("expectedPods", "currentHealthy", "desiredHealthy")]
    assert (numbers, integer(cluster.status, "disruptionsAllowed")) == ([4, 4, wanted], allowed)


async def test_an_eviction_that_the_budget_allows_begins_and_the_next_is_refused(cluster: Cluster) -> None:
    await cluster.start(minAvailable=3)
    one, two, *_ = cluster.world.names(PODS)
    assert (await cluster.evict(one)).status == 201
    assert cluster.leaving() == [one]
    error = await cluster.refused(two)
    assert (error.code, error.reason, error.message) == (429, "TooManyRequests", REFUSAL)
    why = "The disruption budget budget needs 3 healthy pods and has 3 currently"
    assert error.details == {"causes": [{"reason": "DisruptionBudget", "message": why}]}
    assert error.headers == ()
    assert cluster.leaving() == [one]


async def test_a_dry_run_is_refused_alike_and_counts_nothing(cluster: Cluster) -> None:
    await cluster.start(minAvailable=3)
    one, two, *_ = cluster.world.names(PODS)
    revision = cluster.world.store.revision
    assert (await cluster.evict(one, "?dryRun=All")).status == 201
    assert (await cluster.evict(two, dryRun=["All"])).status == 201
    assert cluster.world.store.revision == revision
    await cluster.evict(one)
    assert (await cluster.refused(two, "?dryRun=All")).code == 429


async def test_a_precondition_that_fails_counts_nothing(cluster: Cluster) -> None:
    await cluster.start(minAvailable=3)
    one, two, *_ = cluster.world.names(PODS)
    assert (await cluster.refused(one, preconditions={"uid": "other"})).code == 409
    assert (await cluster.evict(two)).status == 201


async def test_a_changed_budget_is_processed_first(cluster: Cluster) -> None:
    await cluster.start(minAvailable=4)
    await cluster.world.object(
        "PATCH",
        f"{BUDGETS}/budget",
        {"spec": {"minAvailable": 3}},
        content_type="application/merge-patch+json",
    )
    pod = cluster.world.names(PODS)[0]
    error = await cluster.refused(pod)
    assert (error.code, error.headers) == (429, (("Retry-After", "10"),))
    assert "still being processed" in str(error.details)
    cluster.budgets.reconcile()
    assert (await cluster.evict(pod)).status == 201


async def test_a_pod_that_does_not_run_disrupts_nothing(cluster: Cluster) -> None:
    await cluster.start(minAvailable=4)
    waiting: Object = {
        "metadata": {"name": "waiting", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    await cluster.world.object("POST", f"{CORE}/pods", waiting)
    assert (await cluster.evict("waiting")).status == 201
    assert "waiting" not in cluster.world.names(PODS)


async def test_two_budgets_for_one_pod_are_an_error(cluster: Cluster) -> None:
    await cluster.start(minAvailable=0)
    await cluster.protect("second", minAvailable=0)
    error = await cluster.refused(cluster.world.names(PODS)[0])
    assert (error.code, "more than one PodDisruptionBudget" in error.message) == (500, True)


async def test_a_budget_without_a_selector_covers_nothing(cluster: Cluster) -> None:
    await cluster.start(minAvailable=4, selector={})
    assert mapping(cluster.status).get("expectedPods") == 0
    assert (await cluster.evict(cluster.world.names(PODS)[0])).status == 201


@pytest.mark.parametrize("spec", [{"minAvailable": 1, "maxUnavailable": 1}, {"minAvailable": "half"}])
async def test_invalid_budgets_are_refused(world: World, spec: Object) -> None:
    with pytest.raises(StatusError) as caught:
        await world.ask("POST", BUDGETS, {"metadata": {"name": "b"}, "spec": spec})
    assert caught.value.code == 422
