"""Disruption budgets: how many pods may be evicted, and the evictions that respect it."""

from __future__ import annotations

import math

from sandbox.kinds import DISRUPTION_BUDGETS, PODS, REPLICA_SETS
from sandbox.objects import Json, Object, child, clone, integer, items, lookup, mapping, now, text
from sandbox.ownership import is_ready
from sandbox.selectors import from_object, labels_match
from sandbox.status import StatusError
from sandbox.storage import Item, Store, follow

_REFUSAL = "Cannot evict pod as it would violate the pod's disruption budget."
_SEVERAL = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."


class Budgets:
    """Keeps the status of disruption budgets, and checks evictions against them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._budgets = store.collection(DISRUPTION_BUDGETS.group, DISRUPTION_BUDGETS.resource)
        self._replica_sets = store.collection(REPLICA_SETS.group, REPLICA_SETS.resource)
        self._pods = store.collection(PODS.group, PODS.resource)

    async def run(self) -> None:
        """Follow budgets and pods until cancelled."""
        await follow(self._store, (self._budgets, self._pods), self.reconcile)

    def reconcile(self) -> None:
        """Write the status of each budget that changed."""
        for item in self._budgets.items():
            status = self._status(item.value)
            if status != mapping(item.value, "status"):
                self._budgets.put({**clone(item.value), "status": status})

    def evict(self, pod: Item, *, dry_run: bool) -> None:
        """Count an eviction in the pod's budget; raises StatusError 429 if the budget allows none.

        A pod that doesn't run yet, or no longer, disrupts nothing.
        """
        phase = text(pod.value, "status", "phase")
        if phase in ("Pending", "Succeeded", "Failed") or text(pod.value, "metadata", "deletionTimestamp"):
            return
        budgets = [item for item in self._budgets.items(_namespace(pod.value)) if _covers(item.value, pod)]
        if not budgets:
            return
        if len(budgets) > 1:
            raise StatusError(500, "InternalError", _SEVERAL)
        [budget] = budgets
        # Evictions at the same time must not share what the last status of the budget allowed.
        status = self._status(budget.value)
        healthy, wanted = integer(status, "currentHealthy"), integer(status, "desiredHealthy")
        if not is_ready(pod.value) and healthy >= wanted > 0:
            return
        if integer(mapping(budget.value, "status"), "observedGeneration") < _generation(budget.value):
            why = f"The disruption budget {_name(budget.value)} is still being processed by the server."
            raise _too_many(why, retry_after_s=10)
        if integer(status, "disruptionsAllowed") == 0:
            raise _too_many(
                f"The disruption budget {_name(budget.value)} needs {wanted} healthy pods "
                f"and has {healthy} currently"
            )
        if not dry_run:
            value = clone(budget.value)
            child(value, "status", "disruptedPods")[_name(pod.value)] = now()
            self._budgets.put(value)

    def _status(self, budget: Object) -> Object:
        """Return a budget's status for the pods as they are."""
        covered = [item.value for item in self._pods.items(_namespace(budget)) if _covers(budget, item)]
        pods = [pod for pod in covered if text(pod, "status", "phase") not in ("Succeeded", "Failed")]
        present = {_name(pod) for pod in pods if not text(pod, "metadata", "deletionTimestamp")}
        disrupted = mapping(budget, "status", "disruptedPods")
        leaving: Object = {name: since for name, since in disrupted.items() if name in present}
        healthy = sum(is_ready(pod) for pod in pods if _name(pod) in present - set(leaving))
        expected, wanted = self._wanted(budget, pods)
        allowed = max(healthy - wanted, 0) if expected else 0
        status: Object = {
            "observedGeneration": _generation(budget),
            **({"disruptedPods": leaving} if leaving else {}),
            "disruptionsAllowed": allowed,
            "currentHealthy": healthy,
            "desiredHealthy": wanted,
            "expectedPods": expected,
        }
        status["conditions"] = [_condition(budget, allowed > 0)]
        return status

    def _wanted(self, budget: Object, pods: list[Object]) -> tuple[int, int]:
        """Return the number of expected pods, and how many of them must be healthy."""
        least = lookup(budget, "spec", "minAvailable")
        if isinstance(least, int):
            return len(pods), least
        expected = self._expected(pods)
        if least is not None:
            return expected, _share(least, expected)
        return expected, max(expected - _share(lookup(budget, "spec", "maxUnavailable"), expected), 0)

    def _expected(self, pods: list[Object]) -> int:
        """Return how many pods their replica sets want; a pod without one counts as one."""
        namespaces = {text(owner, "uid"): _namespace(pod) for pod in pods for owner in _owners(pod)}
        replicas = {
            text(item.value, "metadata", "uid"): integer(item.value, "spec", "replicas")
            for namespace in set(namespaces.values())
            for item in self._replica_sets.items(namespace)
        }
        alone = sum(not any(text(owner, "uid") in replicas for owner in _owners(pod)) for pod in pods)
        return alone + sum(count for uid, count in replicas.items() if uid in namespaces)


def _covers(budget: Object, pod: Item) -> bool:
    """Compare with the budget's selector; one without terms covers nothing."""
    selector = from_object(mapping(budget, "spec", "selector"))
    return bool(selector) and labels_match(selector, pod.value)


def _share(amount: Json, expected: int) -> int:
    """Return a number of pods, or a percentage of those expected, rounded up."""
    if isinstance(amount, str) and amount.endswith("%"):
        return math.ceil(int(amount[:-1]) * expected / 100)
    return int(amount) if isinstance(amount, (int, str)) else 0


def _too_many(why: str, *, retry_after_s: int = 0) -> StatusError:
    details: Object = {"causes": [{"reason": "DisruptionBudget", "message": why}]}
    if retry_after_s:
        details["retryAfterSeconds"] = retry_after_s
    headers = [("Retry-After", str(retry_after_s))] if retry_after_s else []
    return StatusError(429, "TooManyRequests", _REFUSAL, details, headers)


def _condition(budget: Object, allowed: bool) -> Json:
    status = "True" if allowed else "False"
    before = next(iter(items(budget, "status", "conditions")), {})
    return {
        "type": "DisruptionAllowed",
        "status": status,
        "observedGeneration": _generation(budget),
        "lastTransitionTime": text(before, "lastTransitionTime") if before.get("status") == status else now(),
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
    }


def _owners(pod: Object) -> list[Object]:
    return items(pod, "metadata", "ownerReferences")


def _namespace(value: Object) -> str:
    return text(value, "metadata", "namespace")


def _name(value: Object) -> str:
    return text(value, "metadata", "name")


def _generation(value: Object) -> int:
    return integer(value, "metadata", "generation")
