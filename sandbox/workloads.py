"""The controllers of Deployments and ReplicaSets: they create, replace and count pods.

They examine the whole state again after each change, since it is small here. A rollout starts all new pods at
once, and removes as many old ones as new ones are ready; maxSurge and maxUnavailable are ignored.
"""

from __future__ import annotations

import hashlib

from sandbox.kinds import DEPLOYMENTS, PODS, REPLICA_SETS, Kind
from sandbox.objects import Json, Object, child, clone, encode, integer, items, mapping, now, string_map, text
from sandbox.ownership import is_ready, owner_uid, reference
from sandbox.recorder import EventRecorder
from sandbox.selectors import from_object, labels_match
from sandbox.status import StatusError
from sandbox.storage import Store, follow
from sandbox.writing import SUFFIX_ALPHABET, Writer

REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
CHANGE_CAUSE = "kubernetes.io/change-cause"
HASH_LABEL = "pod-template-hash"
HASH_CHARS = 9


class Workloads:
    """Reconciles Deployments and ReplicaSets."""

    def __init__(self, store: Store, writer: Writer, events: EventRecorder) -> None:
        self._store = store
        self._writer = writer
        self._events = events
        self._deployments = store.collection(DEPLOYMENTS.group, DEPLOYMENTS.resource)
        self._replica_sets = store.collection(REPLICA_SETS.group, REPLICA_SETS.resource)
        self._pods = store.collection(PODS.group, PODS.resource)

    async def run(self) -> None:
        """Work until cancelled."""
        await follow(self._store, (self._deployments, self._replica_sets, self._pods), self.reconcile)

    def reconcile(self) -> None:
        """Take one step for each object."""
        for item in self._deployments.items():
            if not text(item.value, "metadata", "deletionTimestamp"):
                self._deployment(item.value)
        for item in self._replica_sets.items():
            if not text(item.value, "metadata", "deletionTimestamp"):
                self._replica_set(item.value)

    def _deployment(self, deployment: Object) -> None:
        owned = self._owned_sets(deployment)
        if mapping(deployment, "spec").get("paused") is not True:
            current = self._current_set(deployment, owned)
            if current is None:
                return
            self._roll(deployment, current, [each for each in owned if each is not current])
            self._prune(deployment, owned)
        owned = self._owned_sets(deployment)
        self._write_deployment_status(deployment, self._matching(deployment, owned), owned)

    def _owned_sets(self, deployment: Object) -> list[Object]:
        namespace = text(deployment, "metadata", "namespace")
        found = [item.value for item in self._replica_sets.items(namespace)]
        return [each for each in found if owner_uid(each) == text(deployment, "metadata", "uid")]

    def _matching(self, deployment: Object, owned: list[Object]) -> Object | None:
        wanted = _template_of(deployment)
        return next((each for each in owned if _template_of(each) == wanted), None)

    def _current_set(self, deployment: Object, owned: list[Object]) -> Object | None:
        """Return the replica set of the current template, created if missing, and keep the revisions in
        order.
        """
        current = self._matching(deployment, owned)
        highest = max((_revision(each) for each in owned), default=0)
        if current is None:
            current = self._make_set(deployment, highest + 1)
        elif _revision(current) < highest:
            current = self._annotate(REPLICA_SETS, current, str(highest + 1))
        if current is not None and _revision(deployment) != _revision(current):
            self._annotate(DEPLOYMENTS, deployment, str(_revision(current)))
        return current

    def _make_set(self, deployment: Object, revision: int) -> Object | None:
        template = clone(mapping(deployment, "spec", "template"))
        name, hashed = text(deployment, "metadata", "name"), template_hash(template)
        child(template, "metadata", "labels")[HASH_LABEL] = hashed
        selector = clone(mapping(deployment, "spec", "selector"))
        child(selector, "matchLabels")[HASH_LABEL] = hashed
        annotations = string_map(deployment, "metadata", "annotations")
        kept: Object = {CHANGE_CAUSE: annotations[CHANGE_CAUSE]} if CHANGE_CAUSE in annotations else {}
        replicas = integer(deployment, "spec", "replicas")
        value: Object = {
            "metadata": {
                "name": f"{name}-{hashed}",
                "labels": mapping(template, "metadata", "labels"),
                "annotations": {**kept, REVISION: str(revision), DESIRED: str(replicas)},
                "ownerReferences": [reference(DEPLOYMENTS, deployment)],
            },
            # The rollout scales it up as soon as the strategy permits.
            "spec": {"replicas": 0, "selector": selector, "template": template},
        }
        return self._create(REPLICA_SETS, deployment, clone(value))

    def _create(self, kind: Kind, owner: Object, value: Object) -> Object | None:
        """Create an object with an owner; None if the namespace or the name prevents it."""
        try:
            return self._writer.create(kind, text(owner, "metadata", "namespace"), value).value
        except StatusError:
            return None

    def _annotate(self, kind: Kind, value: Object, revision: str) -> Object:
        def change(present: Object) -> Object:
            child(present, "metadata", "annotations")[REVISION] = revision
            return present

        namespace, name = text(value, "metadata", "namespace"), text(value, "metadata", "name")
        return self._writer.update(kind, namespace, name, change).value

    def _roll(self, deployment: Object, current: Object, others: list[Object]) -> None:
        """Scale up the current replica set, and the others down as far as it is ready."""
        wanted = integer(deployment, "spec", "replicas")
        recreate = text(deployment, "spec", "strategy", "type") == "Recreate"
        old_pods = sum(integer(each, "status", "replicas") for each in others)
        if recreate and old_pods:
            for each in others:
                self._scale(deployment, each, 0)
            return
        self._scale(deployment, current, wanted)
        spare = max(wanted - integer(current, "status", "readyReplicas"), 0)
        for each in sorted(others, key=_revision, reverse=True):
            kept = min(integer(each, "spec", "replicas"), spare)
            spare -= kept
            self._scale(deployment, each, kept)

    def _scale(self, deployment: Object, replica_set: Object, replicas: int) -> None:
        before = integer(replica_set, "spec", "replicas")
        if before == replicas:
            return

        def change(present: Object) -> Object:
            child(present, "spec")["replicas"] = replicas
            return present

        namespace, name = text(replica_set, "metadata", "namespace"), text(replica_set, "metadata", "name")
        self._writer.update(REPLICA_SETS, namespace, name, change)
        way = "up" if replicas > before else "down"
        message = f"Scaled {way} replica set {name} from {before} to {replicas}"
        self._events.record(
            DEPLOYMENTS, deployment, "ScalingReplicaSet", message, component="deployment-controller"
        )

    def _prune(self, deployment: Object, owned: list[Object]) -> None:
        """Remove the oldest empty replica sets beyond the history limit."""
        limit = integer(deployment, "spec", "revisionHistoryLimit", default=10)
        wanted = _template_of(deployment)
        empty = [
            each
            for each in owned
            if not integer(each, "spec", "replicas")
            and not integer(each, "status", "replicas")
            and _template_of(each) != wanted
        ]
        for each in sorted(empty, key=_revision)[: max(len(empty) - limit, 0)]:
            self._replica_sets.remove(text(each, "metadata", "namespace"), text(each, "metadata", "name"))

    def _write_deployment_status(
        self, deployment: Object, current: Object | None, owned: list[Object]
    ) -> None:
        present = self._deployments.get(
            text(deployment, "metadata", "namespace"), text(deployment, "metadata", "name")
        )
        if present is None:
            return
        wanted = integer(present.value, "spec", "replicas")
        total = sum(integer(each, "status", "replicas") for each in owned)
        ready = sum(integer(each, "status", "readyReplicas") for each in owned)
        updated = integer(current, "status", "replicas") if current is not None else 0
        counts = {
            "replicas": total,
            "updatedReplicas": updated,
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(wanted - ready, 0),
        }
        status: Object = {"observedGeneration": integer(present.value, "metadata", "generation")}
        status.update({key: count for key, count in counts.items() if count})
        name = text(current, "metadata", "name") if current is not None else ""
        done = updated == wanted and ready >= wanted and total == wanted
        status["conditions"] = [
            _condition(present.value, "Available", ready >= wanted, *_AVAILABLE[ready >= wanted]),
            _condition(
                present.value,
                "Progressing",
                True,
                "NewReplicaSetAvailable" if done else "ReplicaSetUpdated",
                f'ReplicaSet "{name}" {"has successfully progressed" if done else "is progressing"}.',
            ),
        ]
        self._write_status(DEPLOYMENTS, present.value, status)

    def _write_status(self, kind: Kind, present: Object, status: Object) -> None:
        if mapping(present, "status") != status:
            self._store.collection(kind.group, kind.resource).put({**clone(present), "status": status})

    def _replica_set(self, replica_set: Object) -> None:
        uid = text(replica_set, "metadata", "uid")
        selector = from_object(mapping(replica_set, "spec", "selector"))
        pods = []
        for item in self._pods.items(text(replica_set, "metadata", "namespace")):
            pod = item.value
            ended = text(pod, "status", "phase") in ("Succeeded", "Failed")
            leaving = bool(text(pod, "metadata", "deletionTimestamp")) or ended
            if not leaving and owner_uid(pod) == uid and labels_match(selector, pod):
                pods.append(pod)
        wanted = integer(replica_set, "spec", "replicas")
        for _ in range(wanted - len(pods)):
            made = self._make_pod(replica_set)
            if made is None:
                break
            pods.append(made)
        if len(pods) > wanted:
            # The least ready pods are removed first, and among these the youngest.
            pods.sort(key=lambda pod: (not is_ready(pod), text(pod, "metadata", "creationTimestamp")))
            for pod in pods[wanted:]:
                self._remove_pod(replica_set, pod)
            pods = pods[:wanted]
        ready = sum(is_ready(pod) for pod in pods)
        status: Object = {"replicas": len(pods)}
        counts = {"fullyLabeledReplicas": len(pods), "readyReplicas": ready, "availableReplicas": ready}
        status.update({key: count for key, count in counts.items() if count})
        present = self._replica_sets.get(
            text(replica_set, "metadata", "namespace"), text(replica_set, "metadata", "name")
        )
        if present is not None:
            status["observedGeneration"] = integer(present.value, "metadata", "generation")
            self._write_status(REPLICA_SETS, present.value, status)

    def _make_pod(self, replica_set: Object) -> Object | None:
        template = clone(mapping(replica_set, "spec", "template"))
        metadata = child(template, "metadata")
        metadata["generateName"] = f"{text(replica_set, 'metadata', 'name')}-"
        metadata["ownerReferences"] = [reference(REPLICA_SETS, replica_set)]
        made = self._create(PODS, replica_set, template)
        if made is not None:
            self._report(replica_set, "SuccessfulCreate", f"Created pod: {text(made, 'metadata', 'name')}")
        return made

    def _remove_pod(self, replica_set: Object, pod: Object) -> None:
        name = text(pod, "metadata", "name")
        self._writer.delete(PODS, text(pod, "metadata", "namespace"), name)
        self._report(replica_set, "SuccessfulDelete", f"Deleted pod: {name}")

    def _report(self, replica_set: Object, reason: str, message: str) -> None:
        self._events.record(REPLICA_SETS, replica_set, reason, message, component="replicaset-controller")


_AVAILABLE = {
    True: ("MinimumReplicasAvailable", "Deployment has minimum availability."),
    False: ("MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
}


def template_hash(template: Object) -> str:
    """Return a short hash of a pod template, in an alphabet that spells no words."""
    digest = int.from_bytes(hashlib.sha256(encode(_sorted(template))).digest(), "big")
    letters = []
    for _ in range(HASH_CHARS):
        digest, index = divmod(digest, len(SUFFIX_ALPHABET))
        letters.append(SUFFIX_ALPHABET[index])
    return "".join(letters)


def _sorted(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _template_of(workload: Object) -> Object:
    """Return a workload's template without the label that distinguishes replica sets."""
    template = clone(mapping(workload, "spec", "template"))
    labels = child(template, "metadata", "labels")
    labels.pop(HASH_LABEL, None)
    return template


def _revision(value: Object) -> int:
    revision = text(value, "metadata", "annotations", REVISION)
    return int(revision) if revision.isdecimal() else 0


def _condition(value: Object, type_: str, holds: bool, reason: str, message: str) -> Json:
    """Return a condition with the times of its last change and update."""
    status = "True" if holds else "False"
    before = next((each for each in items(value, "status", "conditions") if each.get("type") == type_), {})
    same = before.get("status") == status
    updated = same and (before.get("reason"), before.get("message")) == (reason, message)
    return {
        "type": type_,
        "status": status,
        "lastUpdateTime": text(before, "lastUpdateTime") if updated else now(),
        "lastTransitionTime": text(before, "lastTransitionTime") if same else now(),
        "reason": reason,
        "message": message,
    }
