"""The kubelet and scheduler of the one node: start processes for stored pods, and report their states."""

from __future__ import annotations

import trio

from sandbox.container import ContainerSpec
from sandbox.kinds import CONFIG_MAPS, NODES, PODS, SECRETS
from sandbox.objects import Json, Object, child, clone, integer, items, lookup, mapping, now, plain, text
from sandbox.podenv import Environment
from sandbox.processes import Pod, Registry, RestartPolicy
from sandbox.recorder import EventRecorder
from sandbox.storage import Change, Store

NODE = "sandbox"
# Processes of pods listen on this machine, so this is the pods' address.
ADDRESS = "127.0.0.1"


class Kubelet:
    """Starts and stops pods, and reports their status."""

    def __init__(self, store: Store, registry: Registry, events: EventRecorder) -> None:
        self._store = store
        self._pods = store.collection(PODS.group, PODS.resource)
        self._nodes = store.collection(NODES.group, NODES.resource)
        self._registry = registry
        self._events = events
        self._environment = Environment(
            store.collection(CONFIG_MAPS.group, CONFIG_MAPS.resource),
            store.collection(SECRETS.group, SECRETS.resource),
        )

    async def run(self) -> None:
        """Follow the pods until cancelled."""
        pods, nodes = (collection.cursor(self._store.revision) for collection in (self._pods, self._nodes))
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._store.changed
                for change in pods.take():
                    self._follow(change, nursery)
                if nodes.take():
                    self._start_waiting()
                await changed.wait()

    def _follow(self, change: Change, nursery: trio.Nursery) -> None:
        pod = change.item.value
        uid = text(pod, "metadata", "uid")
        if change.type == "DELETED":
            if self._registry.get(uid) is not None:
                nursery.start_soon(self._forget, uid)
        elif text(pod, "metadata", "deletionTimestamp"):
            nursery.start_soon(self._end, uid, integer(pod, "metadata", "deletionGracePeriodSeconds"))
        elif self._registry.get(uid) is None:
            self._start(uid)
        else:
            self._add_ephemeral(pod)

    def _start_waiting(self) -> None:
        """Retry pods that were not scheduled."""
        for item in self._pods.items():
            if not text(item.value, "metadata", "deletionTimestamp"):
                self._start(text(item.value, "metadata", "uid"))

    def _present(self, uid: str, namespace: str, name: str) -> Object | None:
        item = self._pods.get(namespace, name)
        return item.value if item is not None and text(item.value, "metadata", "uid") == uid else None

    def _by_uid(self, uid: str) -> Object | None:
        for item in self._pods.items():
            if text(item.value, "metadata", "uid") == uid:
                return item.value
        return None

    def _start(self, uid: str) -> None:
        """Schedule a new pod on the node and start its containers."""
        found = self._by_uid(uid)
        if found is None or text(found, "status", "phase") != "Pending" or text(found, "status", "startTime"):
            return
        pod = clone(found)
        node = text(pod, "spec", "nodeName")
        if node not in ("", NODE) or self._cordoned():
            return
        child(pod, "spec")["nodeName"] = NODE
        status = child(pod, "status")
        status.update({"hostIP": ADDRESS, "hostIPs": [{"ip": ADDRESS}], "startTime": now()})
        name, namespace = text(pod, "metadata", "name"), text(pod, "metadata", "namespace")
        self._report(
            pod, "Scheduled", f"Successfully assigned {namespace}/{name} to {NODE}", "default-scheduler"
        )
        self._pods.put(pod)
        specs = [self._spec(pod, container) for container in items(pod, "spec", "containers")]
        self._registry.start(
            namespace,
            name,
            uid,
            specs,
            restart_policy=_restart_policy(text(pod, "spec", "restartPolicy")),
            on_change=self._changed,
        )
        for spec in specs:
            path = f"spec.containers{{{spec.name}}}"
            if spec.pull_failure:
                continue
            self._report(
                pod, "Pulled", f'Container image "{spec.image}" already present on machine', field_path=path
            )
            self._report(pod, "Created", f"Container created: {spec.name}", field_path=path)

    def _cordoned(self) -> bool:
        node = self._nodes.get("", NODE)
        return node is None or mapping(node.value, "spec").get("unschedulable") is True

    def _spec(self, pod: Object, container: Object) -> ContainerSpec:
        return ContainerSpec.from_manifest(container, self._environment.of(pod, container))

    def _add_ephemeral(self, pod: Object) -> None:
        """Start the containers that `kubectl debug` added."""
        processes = self._registry.get(text(pod, "metadata", "uid"))
        for container in items(pod, "spec", "ephemeralContainers"):
            if processes is not None and text(container, "name") not in processes.ephemeral_containers:
                processes.add_ephemeral(self._spec(pod, container))

    async def _end(self, uid: str, grace_s: int) -> None:
        """Stop a deleted pod, and remove it once its processes are gone."""
        pod = self._by_uid(uid)
        if pod is not None and self._registry.get(uid) is not None:
            for container in items(pod, "spec", "containers"):
                name = text(container, "name")
                path = f"spec.containers{{{name}}}"
                self._report(pod, "Killing", f"Stopping container {name}", field_path=path)
        await self._registry.stop(uid, grace_s=grace_s)
        pod = self._by_uid(uid)
        if pod is not None and not lookup(pod, "metadata", "finalizers"):
            self._pods.remove(text(pod, "metadata", "namespace"), text(pod, "metadata", "name"))

    async def _forget(self, uid: str) -> None:
        """Stop a pod that was removed by force."""
        await self._registry.stop(uid, grace_s=0)

    def _changed(self, processes: Pod) -> None:
        """Update a pod's status after one of its containers changed."""
        present = self._present(processes.uid, processes.namespace, processes.name)
        if present is None:
            return
        pod = clone(present)
        for spec_name, container in processes.containers.items():
            before = _status_of(pod, spec_name)
            if container.running and not mapping(before, "state", "running"):
                path = f"spec.containers{{{spec_name}}}"
                self._report(pod, "Started", f"Container started: {spec_name}", field_path=path)
        _set_status(pod, processes)
        if pod != present:
            self._pods.put(pod)

    def _report(
        self, pod: Object, reason: str, message: str, component: str = "kubelet", *, field_path: str = ""
    ) -> None:
        self._events.record(PODS, pod, reason, message, component=component, field_path=field_path)


def _restart_policy(name: str) -> RestartPolicy:
    match name:
        case "Never" | "OnFailure":
            return name
    return "Always"


def _status_of(pod: Object, container: str) -> Object:
    statuses = items(pod, "status", "containerStatuses")
    return next((status for status in statuses if status.get("name") == container), {})


def _set_status(pod: Object, processes: Pod) -> None:
    """Set the status of the containers, in place."""
    status = child(pod, "status")
    status["phase"] = processes.phase
    status["observedGeneration"] = integer(pod, "metadata", "generation")
    status["podIP"] = ADDRESS
    status["podIPs"] = [{"ip": ADDRESS}]
    status["containerStatuses"] = [plain(each.status()) for each in processes.containers.values()]
    if processes.ephemeral_containers:
        status["ephemeralContainerStatuses"] = [
            plain(each.status()) for each in processes.ephemeral_containers.values()
        ]
    ready = all(container.running for container in processes.containers.values())
    why: Object = {}
    if not ready and processes.phase == "Succeeded":
        why = {"reason": "PodCompleted"}
    elif not ready:
        names = " ".join(name for name, each in processes.containers.items() if not each.running)
        why = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{names}]"}
    conditions = [
        ("PodReadyToStartContainers", True, {}),
        ("Initialized", True, {}),
        ("Ready", ready, why),
        ("ContainersReady", ready, why),
        ("PodScheduled", True, {}),
    ]
    status["conditions"] = [_condition(pod, *condition) for condition in conditions]


def _condition(pod: Object, type_: str, holds: bool, why: Object) -> Json:
    """Return a condition, with the time of its last change."""
    value = "True" if holds else "False"
    before = next((each for each in items(pod, "status", "conditions") if each.get("type") == type_), {})
    since = text(before, "lastTransitionTime") if before.get("status") == value else now()
    return {"type": type_, "status": value, "lastProbeTime": None, "lastTransitionTime": since, **why}
