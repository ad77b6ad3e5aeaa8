"""The pods' containers: each is a directory and, if its spec has a command, a subprocess with its log.

There are no images and there is no isolation. A command runs on this machine as the user who runs the
sandbox, in the container's own directory and with a small environment of its own. A container without a
command does nothing and runs until it is stopped, like one of the pause image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import trio

from sandbox.container import ContainerSpec, Running, State, Terminated, Waiting
from sandbox.logs import LogReader
from sandbox.run import Attachment, Run
from sandbox.spawn import REAP_S, Process, SpawnError, kill_and_reap, spawn

RestartPolicy = Literal["Always", "OnFailure", "Never"]

# A kubelet restarts a container at once the first time, then after 10 s, doubling to 5 min. A run of 10 min
# resets the backoff.
BACKOFF_S = 10.0
BACKOFF_MAX_S = 300.0
BACKOFF_RESET_S = 600.0
# A kubelet shows a failed pull until its next sync of the pod.
PULL_BACKOFF_AFTER_S = 1.0
GRACE_S = 30.0
# The grace period of pods when the whole sandbox ends.
SHUTDOWN_GRACE_S = 1.0


class PreviousLogMissingError(Exception):
    """The log of a container's previous run was requested, and there was none."""


class ContainerNotRunningError(Exception):
    """The container has no running process to exec beside, or to attach to."""


class Container:
    """One container of a pod: its directory, its state, and its current and previous run."""

    def __init__(self, spec: ContainerSpec, pod: Pod, root: Path) -> None:
        self.spec = spec
        self.pod = pod
        self.root = root
        self.directory = Path(f"{root}{os.path.normpath('/' + spec.working_directory)}")
        self.state: State = Waiting("ContainerCreating")
        self.last: Terminated | None = None
        self.restart_count = 0
        self._run: Run | None = None
        self._previous: Run | None = None

    @property
    def name(self) -> str:
        """Return the container's name."""
        return self.spec.name

    @property
    def running(self) -> bool:
        """True while its command is running."""
        return isinstance(self.state, Running)

    @property
    def started(self) -> bool:
        """True once its command has been started for the first time."""
        return self.last is not None or isinstance(self.state, Running | Terminated)

    def status(self) -> dict[str, object]:
        """Return the v1 ContainerStatus."""
        return {
            "name": self.name,
            "state": self.state.to_json(),
            "lastState": self.last.to_json() if self.last is not None else {},
            "ready": self.running,
            "restartCount": self.restart_count,
            "image": self.spec.image,
            "imageID": f"sandbox://{self.spec.image}",
            "containerID": self._id if self.started else "",
            "started": self.running,
        }

    @property
    def _id(self) -> str:
        return f"sandbox://{self.pod.uid}/{self.name}/{self.restart_count}"

    def _environment(self, *, tty: bool) -> dict[str, str]:
        # Only the search path and the locale of our own environment: the rest may hold secrets.
        inherited = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL") if key in os.environ}
        terminal = {"TERM": "xterm"} if tty else {}
        return {
            **inherited,
            **terminal,
            "HOME": str(self.root),
            "HOSTNAME": self.pod.name,
            **self.spec.environment,
        }

    def logs(
        self,
        *,
        tail: int | None = None,
        since_ns: int | None = None,
        timestamps: bool = False,
        follow: bool = False,
        limit_bytes: int | None = None,
        previous: bool = False,
    ) -> LogReader:
        """Return an async iterator of bytes over the log, for use in a `with` block.

        Following ends with the run of that log. Raises ContainerNotRunningError before the first run, and
        PreviousLogMissingError.
        """
        run = self._previous if previous else self._run
        if run is None and previous:
            raise PreviousLogMissingError(
                f'previous terminated container "{self.name}" in pod "{self.pod.name}" not found'
            )
        if run is None:
            raise ContainerNotRunningError(
                f'container "{self.name}" in pod "{self.pod.name}" is waiting to start: ContainerCreating'
            )
        return run.log.read(
            tail=tail, since_ns=since_ns, timestamps=timestamps, follow=follow, limit_bytes=limit_bytes
        )

    @asynccontextmanager
    async def exec(
        self, command: Sequence[str], *, stdin: bool, stdout: bool, stderr: bool, tty: bool
    ) -> AsyncIterator[Process]:
        """Run a command beside the container's own; raises ContainerNotRunningError or SpawnError.

        Leaving the block before the command's end kills it with everything that it started: its client is
        gone. If the command has ended, processes that it left in the background live as long as the
        container.
        """
        run = self._running_run()
        process = await spawn(
            command,
            directory=self.directory,
            environment=self._environment(tty=tty),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            tty=tty,
        )
        run.add_exec(process)
        try:
            yield process
            await process.wait()
        except BaseException:
            run.remove_exec(process)
            with trio.move_on_after(REAP_S, shield=True):
                await kill_and_reap(process)
            raise
        await process.release()
        if not process.group_lives():
            run.remove_exec(process)

    def attach(self, *, stdin: bool, stdout: bool, stderr: bool) -> Attachment:
        """Connect to the running command; use it in a `with` block. Raises ContainerNotRunningError."""
        return self._running_run().attach(stdin=stdin, stdout=stdout, stderr=stderr)

    def _running_run(self) -> Run:
        if self._run is None or not self.running:
            raise ContainerNotRunningError(f'container not found ("{self.name}")')
        return self._run

    async def live(self, policy: RestartPolicy) -> None:
        """Run the command, and restart it by the restart policy; returns when there are no more restarts."""
        if failure := self.spec.pull_failure:
            self._enter(Waiting("ErrImagePull", failure))
            await trio.sleep(PULL_BACKOFF_AFTER_S)
            message = f'Back-off pulling image "{self.spec.image}": ErrImagePull: {failure}'
            self._enter(Waiting("ImagePullBackOff", message))
            await trio.sleep_forever()
        delay_s = 0.0
        while True:
            began = trio.current_time()
            ended = await self._run_once()
            if policy == "Never" or (policy == "OnFailure" and ended.exit_code == 0):
                return
            if trio.current_time() - began >= BACKOFF_RESET_S:
                delay_s = 0.0
            self.last = ended
            if delay_s:
                self._enter(
                    Waiting(
                        "CrashLoopBackOff",
                        f"back-off {delay_s:.0f}s restarting failed container={self.name} "
                        f"pod={self.pod.name}_{self.pod.namespace}({self.pod.uid})",
                    )
                )
                await trio.sleep(delay_s)
            delay_s = min(max(2 * delay_s, BACKOFF_S), BACKOFF_MAX_S)

    async def _run_once(self) -> Terminated:
        if self._run is not None:
            self._previous = self._run
            self.restart_count += 1
        run = self._run = Run(self.spec)
        started_at = datetime.now(UTC)
        message = ""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            await run.start(self.directory, self._environment(tty=self.spec.tty))
            self._enter(Running(started_at))
            await run.wait(lambda: self.pod.grace_s)
        except (SpawnError, OSError) as exc:
            # runc's message, and the exit code of a container that could not start.
            run.exit_code = 128
            message = f"unable to start container process: {exc}"
        finally:
            run.end()
            # A container without a command has no exit code: it ends like a pause container, by KILL.
            code = 137 if run.exit_code is None else run.exit_code
            ended = Terminated(code, started_at, datetime.now(UTC), self._id, message)
            self._enter(ended)
        return ended

    def _enter(self, state: State) -> None:
        self.state = state
        self.pod.changed()


class Pod:
    """The containers of one pod, and their working directories."""

    def __init__(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        root: Path,
        restart_policy: RestartPolicy,
        on_change: Callable[[Pod], None],
    ) -> None:
        self.namespace = namespace
        self.name = name
        self.uid = uid
        self.root = root
        self.restart_policy = restart_policy
        self.grace_s = GRACE_S
        self.containers: dict[str, Container] = {}
        self.ephemeral_containers: dict[str, Container] = {}
        self._on_change = on_change
        # Set when the pod is to stop: connections without a process of their own end then.
        self.ended = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._stopped = trio.Event()

    @property
    def sandbox_id(self) -> str:
        """Return the pod's id in a container runtime."""
        return hashlib.sha256(self.uid.encode()).hexdigest()

    def container(self, name: str) -> Container | None:
        """Return the container with this name, ephemeral or not."""
        return self.containers.get(name) or self.ephemeral_containers.get(name)

    @property
    def phase(self) -> str:
        """Return the v1 PodStatus phase."""
        states = [container.state for container in self.containers.values()]
        codes = [state.exit_code for state in states if isinstance(state, Terminated)]
        if len(codes) == len(states) and not self._will_restart(codes):
            return "Failed" if any(codes) else "Succeeded"
        started = any(container.started for container in self.containers.values())
        return "Running" if started else "Pending"

    def _will_restart(self, codes: Sequence[int]) -> bool:
        if self.ended.is_set():
            return False
        return self.restart_policy == "Always" or (self.restart_policy == "OnFailure" and any(codes))

    def add_ephemeral(self, spec: ContainerSpec) -> Container:
        """Start an additional container, as `kubectl debug` does; it never restarts."""
        container = self.ephemeral_containers[spec.name] = Container(spec, self, self.root / spec.name)
        if self._nursery is not None:
            self._nursery.start_soon(container.live, "Never")
        return container

    async def live(self) -> None:
        """Run the containers until the pod is stopped; then delete their directories."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.ended.is_set():
                    nursery.cancel_scope.cancel()
                for container in [*self.containers.values()]:
                    nursery.start_soon(container.live, self.restart_policy)
                for container in [*self.ephemeral_containers.values()]:
                    nursery.start_soon(container.live, "Never")
                # An ended pod still accepts ephemeral containers, and its files stay until it is deleted.
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(self.root, ignore_errors=True))
            self._stopped.set()

    async def stop(self, grace_s: float) -> None:
        """Stop all containers and wait until they have ended; a second call may shorten the grace period."""
        self.request_stop(grace_s)
        await self._stopped.wait()

    def request_stop(self, grace_s: float) -> None:
        """Begin to stop all containers."""
        self.grace_s = grace_s
        self.ended.set()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def changed(self) -> None:
        """Notify the owner that a container's state has changed."""
        self._on_change(self)


class Registry:
    """The running pods, by uid; made by `open_registry`."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        self._root = root
        self._nursery = nursery
        self._pods: dict[str, Pod] = {}

    def start(
        self,
        namespace: str,
        name: str,
        uid: str,
        containers: Sequence[ContainerSpec],
        *,
        restart_policy: RestartPolicy = "Always",
        on_change: Callable[[Pod], None],
    ) -> Pod:
        """Start a pod. `on_change` is called, in the event loop, at each change of a container's state."""
        root = self._root / f"{namespace}_{name}_{uid}"
        pod = Pod(namespace, name, uid, root=root, restart_policy=restart_policy, on_change=on_change)
        for spec in containers:
            pod.containers[spec.name] = Container(spec, pod, root / spec.name)
        self._pods[uid] = pod
        self._nursery.start_soon(pod.live)
        return pod

    def get(self, uid: str) -> Pod | None:
        """Return the pod with this uid."""
        return self._pods.get(uid)

    async def stop(self, uid: str, *, grace_s: float = GRACE_S) -> None:
        """Stop a pod (TERM, then KILL after the grace period), delete its files and forget it."""
        pod = self._pods.get(uid)
        if pod is not None:
            await pod.stop(grace_s)
            self._pods.pop(uid, None)

    def end_all(self) -> None:
        """Begin to stop every pod, when the sandbox itself ends."""
        for pod in self._pods.values():
            pod.request_stop(SHUTDOWN_GRACE_S)


@asynccontextmanager
async def open_registry(root: Path) -> AsyncIterator[Registry]:
    """Own the pods' tasks; leaving the block stops them all within a short grace period."""
    async with trio.open_nursery() as nursery:
        registry = Registry(root, nursery)
        try:
            yield registry
        finally:
            registry.end_all()
            nursery.cancel_scope.cancel()
