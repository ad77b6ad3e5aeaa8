"""Real subprocesses: pipes, terminals, exit codes, and that no process is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sandbox.spawn import REAP_S, Process, SpawnError, kill_and_reap, spawn
from tests.sandbox.clients import lives, until

ENVIRONMENT = {"PATH": os.environ["PATH"]}


@asynccontextmanager
async def running(
    directory: Path, *command: str, stdin: bool = False, tty: bool = False
) -> AsyncIterator[Process]:
    process = await spawn(command, directory=directory, environment=ENVIRONMENT, stdin=stdin, tty=tty)
    try:
        yield process
    finally:
        with trio.move_on_after(REAP_S, shield=True):
            await kill_and_reap(process)


async def everything(stream: trio.abc.ReceiveStream | None) -> bytes:
    assert stream is not None
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


async def test_outputs_are_separate_and_the_exit_code_is_returned(tmp_path: Path) -> None:
    async with running(tmp_path, "sh", "-c", "echo out; echo err >&2; exit 3") as process:
        assert await everything(process.stdout) == b"out\n"
        assert await everything(process.stderr) == b"err\n"
        assert await process.wait() == 3
        assert process.ended


async def test_the_directory_and_the_environment_are_those_given(tmp_path: Path) -> None:
    async with running(tmp_path, "sh", "-c", "pwd; env") as process:
        lines = (await everything(process.stdout)).decode().splitlines()
    assert lines[0] == str(tmp_path)
    assert {line.partition("=")[0] for line in lines[1:]} <= {"PATH", "PWD", "OLDPWD", "SHLVL", "_"}


async def test_stdin_is_passed_and_ends(tmp_path: Path) -> None:
    async with running(tmp_path, "cat", stdin=True) as process:
        assert process.stdin is not None
        await process.stdin.send_all(b"x" * 1000)
        await process.stdin.aclose()
        assert await everything(process.stdout) == b"x" * 1000
        assert await process.wait() == 0


async def test_death_by_a_signal_is_128_and_its_number(tmp_path: Path) -> None:
    async with running(tmp_path, "sh", "-c", "kill -9 $$") as process:
        assert await process.wait() == 137


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["no-such-command"], 'exec: "no-such-command": executable file not found in $PATH'),
        (["/no/such/file"], 'exec: "/no/such/file": stat /no/such/file: no such file or directory'),
        (["./plain"], 'exec: "./plain": permission denied'),
        (["./noexec"], 'exec: "./noexec": exec format error'),
        ([], "exec: no command"),
        (["a\0b"], "exec: no command"),
    ],
)
async def test_what_cannot_be_started_says_why(tmp_path: Path, command: list[str], message: str) -> None:
    (tmp_path / "plain").write_text("text")
    (tmp_path / "noexec").write_bytes(b"\x00\x01")
    (tmp_path / "noexec").chmod(0o755)
    with pytest.raises(SpawnError) as raised:
        await spawn(command, directory=tmp_path, environment=ENVIRONMENT, stdin=False)
    assert str(raised.value) == message


async def test_a_terminal_is_the_controlling_terminal_of_its_command(tmp_path: Path) -> None:
    async with running(tmp_path, "sh", "-c", "tty; : >/dev/tty && echo mine", tty=True) as process:
        output = await everything(process.stdout)
        assert output.startswith(b"/dev/pts/")
        assert output.endswith(b"mine\r\n")
        assert process.stderr is None
        assert await process.wait() == 0


async def test_a_terminal_has_the_size_it_is_given_and_says_when_it_changes(tmp_path: Path) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    async with running(tmp_path, "sh", "-c", script, tty=True) as process:
        assert process.stdout is not None
        assert await process.stdout.receive_some() == b"ready\r\n"
        process.resize(120, 40)
        assert await everything(process.stdout) == b"40 120\r\n"


async def test_a_size_beyond_16_bits_is_clipped(tmp_path: Path) -> None:
    async with running(tmp_path, "sh", "-c", "read _; stty size", tty=True) as process:
        assert process.stdin is not None
        process.resize(1 << 20, -1)
        await process.stdin.send_all(b"\n")
        assert (await everything(process.stdout)).endswith(b"0 65535\r\n")


async def test_ctrl_c_on_a_terminal_is_an_interrupt(tmp_path: Path) -> None:
    # Not a shell: one that is about to fork may keep the signal to itself.
    async with running(tmp_path, "cat", tty=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(b"here\n")
        echoed = b""
        while echoed.count(b"here") < 2:
            echoed += await process.stdout.receive_some()
        await process.stdin.send_all(b"\x03")
        assert await process.wait() == 128 + signal.SIGINT


async def test_killing_reaches_what_the_command_started(tmp_path: Path) -> None:
    async with running(tmp_path, "sh", "-c", "sleep 100 & echo $!; wait") as process:
        assert process.stdout is not None
        child = int(await process.stdout.receive_some())
        assert process.group_lives()
        await kill_and_reap(process)
        await until(lambda: not lives(child))
