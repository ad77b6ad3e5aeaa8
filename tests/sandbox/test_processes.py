"""Pods and their containers: states, restarts, execs, and cleanup after a pod."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from sandbox.container import ContainerSpec, Running, Terminated, Waiting
from sandbox.processes import (
    ContainerNotRunningError,
    Pod,
    PreviousLogMissingError,
    RestartPolicy,
    open_registry,
)
from sandbox.spawn import Process, SpawnError
from tests.sandbox.clients import group_members, running_pod, start_pod, until


def shell(script: str, name: str = "main") -> ContainerSpec:
    return ContainerSpec(name, command=("sh", "-c", script))


class Changes:
    """Waits until a pod is in the expected state."""

    def __init__(self) -> None:
        self._changed = trio.Event()

    def __call__(self, pod: Pod) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not condition():
                await self._changed.wait()


async def output_of(process: Process) -> bytes:
    assert process.stdout is not None
    data = b""
    while more := await process.stdout.receive_some():
        data += more
    return data


async def test_a_pod_runs_and_its_log_can_be_read(tmp_path: Path) -> None:
    async with running_pod(tmp_path, shell("echo hello; sleep 100")) as pod:
        container = pod.containers["main"]
        with container.logs(follow=True) as reader:
            assert await anext(reader) == b"hello\n"
        assert isinstance(container.state, Running)
        assert pod.phase == "Running"
        status = container.status()
        assert status["ready"] is True
        assert status["restartCount"] == 0
        assert status["state"] == container.state.to_json()


@pytest.mark.parametrize(
    ("policy", "script", "phase", "restarts"),
    [
        ("Never", "exit 0", "Succeeded", 0),
        ("Never", "exit 1", "Failed", 0),
        ("OnFailure", "exit 0", "Succeeded", 0),
        ("OnFailure", "test -e done || { touch done; exit 1; }", "Succeeded", 1),
    ],
)
async def test_the_restart_policy_decides_what_comes_after_the_end(
    tmp_path: Path, policy: RestartPolicy, script: str, phase: str, restarts: int
) -> None:
    changes = Changes()
    async with open_registry(tmp_path) as registry:
        pod = registry.start("default", "p", "uid", [shell(script)], restart_policy=policy, on_change=changes)
        assert pod.phase == "Pending"
        await changes.until(lambda: pod.phase not in ("Pending", "Running"))
        assert pod.phase == phase
        assert pod.containers["main"].restart_count == restarts
        with pytest.raises(ContainerNotRunningError, match=r'container not found \("main"\)'):
            pod.containers["main"].attach(stdin=False, stdout=True, stderr=True)


async def test_a_container_that_fails_again_waits_and_keeps_its_previous_log(tmp_path: Path) -> None:
    changes = Changes()
    async with open_registry(tmp_path) as registry:
        spec = shell("echo run >>count; wc -l <count; exit 7")
        pod = registry.start("default", "p", "uid", [spec], on_change=changes)
        container = pod.containers["main"]
        await changes.until(lambda: isinstance(container.state, Waiting) and container.last is not None)
        assert isinstance(container.state, Waiting)
        assert container.state.reason == "CrashLoopBackOff"
        assert container.state.message == "back-off 10s restarting failed container=main pod=p_default(uid)"
        assert container.last is not None
        assert container.last.exit_code == 7
        assert pod.phase == "Running"
        texts = []
        for previous in (True, False):
            with container.logs(previous=previous) as reader:
                texts.append(b"".join([data async for data in reader]).strip())
        assert texts == [b"1", b"2"]


async def test_a_command_that_cannot_start_is_a_start_error(tmp_path: Path) -> None:
    changes = Changes()
    async with open_registry(tmp_path) as registry:
        spec = ContainerSpec("main", command=("no-such-command",))
        pod = registry.start("default", "p", "uid", [spec], restart_policy="Never", on_change=changes)
        await changes.until(lambda: pod.phase == "Failed")
        state = pod.containers["main"].state
        assert isinstance(state, Terminated)
        assert (state.exit_code, state.reason) == (128, "StartError")
        assert "executable file not found" in state.message


async def test_there_is_no_previous_log_before_a_restart(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        with pytest.raises(PreviousLogMissingError, match='container "main" in pod "p" not found'):
            pod.containers["main"].logs(previous=True)


async def test_an_exec_runs_in_the_containers_directory_with_its_environment(tmp_path: Path) -> None:
    spec = ContainerSpec("main", environment={"COLOUR": "blue"}, working_directory="/srv/../srv/app")
    async with running_pod(tmp_path, spec) as pod:
        container = pod.containers["main"]
        script = 'pwd; echo "$COLOUR $HOSTNAME $HOME"'
        async with container.exec(
            ["sh", "-c", script], stdin=False, stdout=True, stderr=True, tty=False
        ) as process:
            lines = (await output_of(process)).decode().splitlines()
        assert lines == [str(container.root / "srv/app"), f"blue p {container.root}"]
        assert tmp_path in container.root.parents


async def test_an_exec_that_cannot_start_says_why(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        with pytest.raises(SpawnError, match="executable file not found"):
            async with pod.containers["main"].exec(
                ["no-such-command"], stdin=False, stdout=True, stderr=True, tty=False
            ):
                raise AssertionError("it started")


async def test_an_abandoned_exec_is_killed_with_all_it_started(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        with trio.CancelScope() as scope:
            async with pod.containers["main"].exec(
                ["sh", "-c", "sleep 100 & sleep 100"], stdin=False, stdout=True, stderr=True, tty=False
            ) as process:
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert process.ended
        await until(lambda: not group_members(process.pid))


async def test_what_an_exec_leaves_in_the_background_lives_as_long_as_its_container(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        async with pod.containers["main"].exec(
            ["sh", "-c", "sleep 100 >/dev/null 2>&1 &"], stdin=False, stdout=True, stderr=True, tty=False
        ) as process:
            assert await output_of(process) == b""
        assert process.ended
        assert process.group_lives()
    await until(lambda: not group_members(process.pid))


async def test_an_ephemeral_container_joins_a_running_pod(tmp_path: Path) -> None:
    changes = Changes()
    async with running_pod(tmp_path, changed=changes) as pod:
        debug = pod.add_ephemeral(shell("echo here", "debug"))
        await changes.until(lambda: isinstance(debug.state, Terminated))
        assert pod.container("debug") is debug
        assert pod.container("main") is pod.containers["main"]
        assert pod.container("other") is None
        assert pod.phase == "Running"


async def test_a_stopped_pod_is_forgotten_with_its_files(tmp_path: Path) -> None:
    async with open_registry(tmp_path) as registry:
        pod = await start_pod(registry, shell("touch file; exec sleep 100"))
        root = pod.containers["main"].root
        assert registry.get("uid-1") is pod
        assert root.exists()
        with trio.fail_after(10):
            await registry.stop("uid-1", grace_s=5)
        assert pod.ended.is_set()
        assert registry.get("uid-1") is None
        assert not root.exists()
        await registry.stop("uid-1")


async def test_leaving_the_registry_stops_what_ignores_term(tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    with trio.fail_after(10):
        async with running_pod(tmp_path, shell(script)) as pod:
            with pod.containers["main"].logs(follow=True) as reader:
                assert await anext(reader) == b"ready\n"
    state = pod.containers["main"].state
    assert isinstance(state, Terminated)
    assert state.exit_code == 137
    assert not pod.root.exists()
