"""The controller of Jobs: it runs pods until enough of them have succeeded, or too many have failed."""

from __future__ import annotations

from sandbox.kinds import JOBS, PODS
from sandbox.objects import Json, Object, child, clone, integer, items, lookup, mapping, now, text
from sandbox.ownership import is_ready, owner_uid, reference
from sandbox.recorder import EventRecorder
from sandbox.status import StatusError
from sandbox.storage import Store, follow
from sandbox.writing import Writer


class Jobs:
    """Reconciles Jobs; retries have no back-off."""

    def __init__(self, store: Store, writer: Writer, events: EventRecorder) -> None:
        self._store = store
        self._writer = writer
        self._events = events
        self._jobs = store.collection(JOBS.group, JOBS.resource)
        self._pods = store.collection(PODS.group, PODS.resource)

    async def run(self) -> None:
        """Work until cancelled."""
        await follow(self._store, (self._jobs, self._pods), self.reconcile)

    def reconcile(self) -> None:
        """Take one step for each job."""
        for item in self._jobs.items():
            if not text(item.value, "metadata", "deletionTimestamp") and not _finished(item.value):
                self._job(item.value)

    def _job(self, job: Object) -> None:
        namespace, uid = text(job, "metadata", "namespace"), text(job, "metadata", "uid")
        pods = [item.value for item in self._pods.items(namespace) if owner_uid(item.value) == uid]
        succeeded = sum(text(pod, "status", "phase") == "Succeeded" for pod in pods)
        failed = sum(text(pod, "status", "phase") == "Failed" for pod in pods)
        active = [pod for pod in pods if text(pod, "status", "phase") not in ("Succeeded", "Failed")]
        completions = integer(job, "spec", "completions", default=1)
        wanted = min(integer(job, "spec", "parallelism", default=1), completions - succeeded)
        end = _end(job, succeeded, failed)
        if end is None and lookup(job, "spec", "suspend") is not True:
            made = (self._make_pod(job) for _ in range(wanted - len(active)))
            active += [pod for pod in made if pod is not None]
        self._write_status(job, active, succeeded, failed, end)

    def _make_pod(self, job: Object) -> Object | None:
        """Create a pod; None if the namespace or the name prevents it."""
        pod = clone(mapping(job, "spec", "template"))
        metadata = child(pod, "metadata")
        metadata["generateName"] = f"{text(job, 'metadata', 'name')}-"
        metadata["ownerReferences"] = [reference(JOBS, job)]
        try:
            made = self._writer.create(PODS, text(job, "metadata", "namespace"), pod).value
        except StatusError:
            return None
        message = f"Created pod: {text(made, 'metadata', 'name')}"
        self._events.record(JOBS, job, "SuccessfulCreate", message, component="job-controller")
        return made

    def _write_status(
        self, job: Object, active: list[Object], succeeded: int, failed: int, end: Object | None
    ) -> None:
        status: Object = {"startTime": text(job, "status", "startTime") or now()}
        counts = {
            "active": len(active),
            "ready": sum(is_ready(pod) for pod in active),
            "succeeded": succeeded,
            "failed": failed,
        }
        status.update({key: count for key, count in counts.items() if count})
        if end is not None:
            status["conditions"] = [end]
            if end["type"] == "Complete":
                status["completionTime"] = now()
        if mapping(job, "status") != status:
            self._jobs.put({**clone(job), "status": status})


def _finished(job: Object) -> bool:
    conditions = items(job, "status", "conditions")
    return any(condition.get("type") in ("Complete", "Failed") for condition in conditions)


def _end(job: Object, succeeded: int, failed: int) -> Object | None:
    """Return the condition that ends a job, or None while it goes on."""
    if succeeded >= integer(job, "spec", "completions", default=1):
        return _condition("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
    if failed > integer(job, "spec", "backoffLimit", default=6):
        return _condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    return None


def _condition(type_: str, reason: str, message: str) -> Object:
    moments: dict[str, Json] = {"lastProbeTime": now(), "lastTransitionTime": now()}
    return {"type": type_, "status": "True", **moments, "reason": reason, "message": message}
