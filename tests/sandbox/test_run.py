"""One run of a container: its log, its attached clients, and how it is stopped."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sandbox.container import ContainerSpec
from sandbox.run import Run
from sandbox.spawn import spawn

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def shell(script: str, *, stdin: bool = False, stdin_once: bool = False, tty: bool = False) -> ContainerSpec:
    command = ("sh", "-c", script)
    return ContainerSpec("main", command=command, stdin=stdin, stdin_once=stdin_once, tty=tty)


@asynccontextmanager
async def started(directory: Path, spec: ContainerSpec, codes: list[int] | None = None) -> AsyncIterator[Run]:
    """A run that is stopped at the end of the block, unless it has ended by itself."""
    run = Run(spec)
    await run.start(directory, ENVIRONMENT)

    async def wait() -> None:
        try:
            code = await run.wait(lambda: 5)
            if codes is not None:
                codes.append(code)
        finally:
            run.end()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            yield run
            nursery.cancel_scope.cancel()


async def log_text(run: Run) -> bytes:
    with run.log.read(follow=True) as reader:
        return b"".join([data async for data in reader])


async def test_both_outputs_are_logged_and_the_code_returned(tmp_path: Path) -> None:
    codes: list[int] = []
    async with started(tmp_path, shell("echo out; echo err >&2; printf end; exit 4"), codes) as run:
        assert sorted((await log_text(run)).splitlines()) == [b"end", b"err", b"out"]
        await run.ended.wait()
    assert codes == [4]


async def test_a_background_process_does_not_keep_an_ended_container(tmp_path: Path) -> None:
    codes: list[int] = []
    async with started(tmp_path, shell("sleep 100 & echo started"), codes) as run:
        await run.ended.wait()
    assert codes == [0]


async def test_stopping_sends_term_first(tmp_path: Path) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    run = Run(shell(script))
    await run.start(tmp_path, ENVIRONMENT)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with run.log.read(follow=True) as reader:
                nursery.start_soon(run.wait, lambda: 5)
                assert await anext(reader) == b"ready\n"
                nursery.cancel_scope.cancel()
    assert run.exit_code == 0
    run.end()
    assert b"bye\n" in await log_text(run)


async def test_what_ignores_term_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    run = Run(shell("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    await run.start(tmp_path, ENVIRONMENT)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with run.log.read(follow=True) as reader:
                nursery.start_soon(run.wait, lambda: 0.05)
                assert await anext(reader) == b"ready\n"
                nursery.cancel_scope.cancel()
    assert run.exit_code == 137


async def test_an_attached_client_gets_output_from_then_on_and_the_end(tmp_path: Path) -> None:
    async with started(
        tmp_path, shell("echo early; read line; echo got $line; echo e >&2", stdin=True)
    ) as run:
        with run.log.read(follow=True) as reader:
            assert await anext(reader) == b"early\n"
        with run.attach(stdin=True, stdout=True, stderr=True) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stderr is not None
            await client.stdin.send_all(b"hello\n")
            assert await client.stdout.receive_some() == b"got hello\n"
            assert await client.stderr.receive_some() == b"e\n"
            assert await client.stdout.receive_some() == b""
            assert await client.wait() == 0


@pytest.mark.parametrize("once", [False, True])
async def test_stdin_outlives_a_client_unless_it_is_once(tmp_path: Path, once: bool) -> None:
    script = "while read line; do echo got $line; done; echo over"
    async with started(tmp_path, shell(script, stdin=True, stdin_once=once)) as run:
        # Attach the second client before the first one leaves, or it might miss the output at that moment.
        with run.attach(stdin=True, stdout=True, stderr=True) as second:
            assert second.stdin is not None
            assert second.stdout is not None
            with run.attach(stdin=True, stdout=False, stderr=False) as first:
                assert first.stdin is not None
                assert first.stdout is None
                await first.stdin.aclose()
            await second.stdin.send_all(b"again\n")
            assert await second.stdout.receive_some() == (b"over\n" if once else b"got again\n")


async def test_a_client_that_does_not_read_stops_the_output_until_it_leaves(tmp_path: Path) -> None:
    async with started(tmp_path, shell("yes | head -c 3000000", stdin=True)) as run:
        with run.attach(stdin=False, stdout=True, stderr=True) as client:
            await wait_all_tasks_blocked(0.05)
            assert not run.ended.is_set()
            assert client.stdout is not None
            assert len(await client.stdout.receive_some()) > 0
        await run.ended.wait()


async def test_a_container_without_a_command_runs_until_it_is_stopped(tmp_path: Path) -> None:
    codes: list[int] = []
    async with started(tmp_path, ContainerSpec("main"), codes) as run:
        with run.attach(stdin=True, stdout=True, stderr=False) as client:
            assert client.stdin is None
            await wait_all_tasks_blocked()
            assert not run.ended.is_set()
            client.resize(80, 24)
    assert codes == []


async def test_an_exec_ends_with_the_run(tmp_path: Path) -> None:
    process = await spawn(["sleep", "100"], directory=tmp_path, environment=ENVIRONMENT, stdin=False)
    async with started(tmp_path, ContainerSpec("main")) as run:
        run.add_exec(process)
    with trio.fail_after(5):
        assert await process.wait() == 137
    late = await spawn(["sleep", "100"], directory=tmp_path, environment=ENVIRONMENT, stdin=False)
    run.add_exec(late)
    with trio.fail_after(5):
        assert await late.wait() == 137
    await process.release()
    await late.release()
