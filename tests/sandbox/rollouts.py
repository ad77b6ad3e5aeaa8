"""A Deployment to roll out, and a driver that steps its controllers and acts as their kubelet."""

from __future__ import annotations

from sandbox.kinds import DEPLOYMENTS, PODS
from sandbox.objects import Json, Object, child, clone, items, lookup, text
from sandbox.recorder import EventRecorder
from sandbox.workloads import Workloads
from tests.sandbox.world import World


def web(image: str = "one", replicas: int = 2, **spec: Json) -> Object:
    return {
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
            **spec,
        },
    }


class Driver:
    """Steps the controllers, and acts as the kubelet between steps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.workloads = Workloads(world.store, world.writer, EventRecorder(world.store))
        self.pods = world.store.collection(PODS.group, PODS.resource)

    def settle(self, *, ready: bool = True) -> None:
        for _ in range(20):
            before = self.world.store.revision
            self.workloads.reconcile()
            if ready:
                self.make_ready()
            if self.world.store.revision == before:
                return
        raise AssertionError("the controllers do not come to rest")

    def make_ready(self) -> None:
        for item in self.pods.items("default"):
            if not items(item.value, "status", "conditions"):
                pod = clone(item.value)
                child(pod, "status")["conditions"] = [{"type": "Ready", "status": "True"}]
                self.pods.put(pod)

    def images(self) -> list[str]:
        return [image_of(pod) for pod in self.values(PODS.resource)]

    def values(self, resource: str) -> list[Object]:
        group = "" if resource == PODS.resource else "apps"
        return [item.value for item in self.world.store.collection(group, resource).items("default")]

    def change(self, **spec: Json) -> None:
        def change(value: Object) -> Object:
            child(value, "spec").update(spec)
            return value

        self.world.writer.update(DEPLOYMENTS, "default", "web", change)


def image_of(pod: Object) -> str:
    return text(items(pod, "spec", "containers")[0], "image")


def template(image: str) -> Json:
    return lookup(web(image), "spec", "template")
