"""Real subprocesses with pipes or a pseudo-terminal, as trio streams.

Every process leads its own session, and so its own process group: a signal also reaches its child processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import trio

READ_BYTES_MAX = 65536
# A killed process ends at once, unless it sleeps in the kernel; that one is abandoned after this time.
REAP_S = 5.0
# Larger pipes mean fewer wakeups for bulk data. More than this, times 50 execs, would reach the kernel's
# limit of pipe pages per user.
PIPE_BYTES = 256 * 1024
# A session leader that opens a terminal without O_NOCTTY gets it as its controlling terminal, which makes
# Ctrl-C a signal. A shell that then becomes the command does this. So no Python code runs between fork and
# exec, where other threads make it unsafe.
_TAKE_TERMINAL = 'terminal=$1; shift; exec 3<>"$terminal" 3>&-; exec "$@"'


class SpawnError(Exception):
    """The command cannot be started; the message is a container runtime's."""


class _TerminalStream(trio.abc.ReceiveStream, trio.abc.SendStream):
    """The master side of a pseudo-terminal: reading ends when the last process closes the other side."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._stream = trio.lowlevel.FdStream(fd)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes or READ_BYTES_MAX))
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EIO:
                return b""
            raise

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Do nothing: input and output share one descriptor, which `Process.release` closes."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._stream.close()


@attrs.define(eq=False)
class Process:
    """A running command and its streams; streams that were not requested are None."""

    stdin: trio.abc.SendStream | None
    stdout: trio.abc.ReceiveStream | None
    stderr: trio.abc.ReceiveStream | None
    _process: trio.Process
    _terminal: _TerminalStream | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True once the command has ended, even if processes in the background remain."""
        return self._process.poll() is not None

    async def wait(self) -> int:
        """Wait for the end and return the exit code; death by signal N is 128 + N, as in a shell."""
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group; no effect if none of it lives."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def group_lives(self) -> bool:
        """True while any process of the group lives."""
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, which sends SIGWINCH; no effect without a terminal."""
        if self._terminal is not None:
            resize_terminal(self._terminal.fd, width, height)

    async def release(self) -> None:
        """Close the streams. Processes of the group that still run continue without them."""
        if self._terminal is not None:
            self._terminal.close()
            return
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)


def resize_terminal(fd: int, width: int, height: int) -> None:
    """Set a terminal's size; values beyond its 16 bits are clipped."""
    size = struct.pack("HHHH", min(max(height, 0), 0xFFFF), min(max(width, 0), 0xFFFF), 0, 0)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, size)


async def spawn(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    stdin: bool,
    stdout: bool = True,
    stderr: bool = True,
    tty: bool = False,
) -> Process:
    """Start a command; raises SpawnError. If cancelled, it leaves no process behind."""
    if not command or not command[0] or any("\0" in part for part in command):
        raise SpawnError("exec: no command")
    _check_executable(command[0], directory, environment)
    try:
        if tty:
            return await _spawn_on_terminal(command, directory, environment)
        return await _spawn_on_pipes(command, directory, environment, stdin, stdout, stderr)
    except OSError as exc:
        raise SpawnError(f'exec: "{command[0]}": {(exc.strerror or str(exc)).lower()}') from exc


def _check_executable(name: str, directory: Path, environment: Mapping[str, str]) -> None:
    """Refuse an invalid command, in the words of a container runtime; the real start may still fail."""
    if "/" in name:
        path = directory / name
        if not path.exists():
            raise SpawnError(f'exec: "{name}": stat {name}: no such file or directory')
        if path.is_dir() or not os.access(path, os.X_OK):
            raise SpawnError(f'exec: "{name}": permission denied')
        return
    for folder in os.get_exec_path(dict(environment)):
        candidate = Path(folder or ".", name)
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return
    raise SpawnError(f'exec: "{name}": executable file not found in $PATH')


async def _spawn_on_pipes(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    stdin: bool,
    stdout: bool,
    stderr: bool,
) -> Process:
    def pipe(wanted: bool) -> int:
        return subprocess.PIPE if wanted else subprocess.DEVNULL

    process = await trio.lowlevel.open_process(
        list(command),
        stdin=pipe(stdin),
        stdout=pipe(stdout),
        stderr=pipe(stderr),
        cwd=directory,
        env=dict(environment),
        start_new_session=True,
    )
    for stream in (process.stdin, process.stdout):
        if isinstance(stream, trio.lowlevel.FdStream):
            _widen(stream.fileno())
    return Process(process.stdin, process.stdout, process.stderr, process)


def _widen(fd: int) -> None:
    # It fails if the user's share of pipe memory is used up; the default size works too.
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


async def _spawn_on_terminal(
    command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> Process:
    master, slave = os.openpty()
    try:
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", _TAKE_TERMINAL, "sh", os.ttyname(slave), *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    terminal = _TerminalStream(master)
    return Process(terminal, terminal, None, process, terminal)


async def kill_and_reap(process: Process) -> int:
    """Kill the whole group and return the leader's exit code. Callers shield it, for at most REAP_S."""
    process.signal_group(signal.SIGKILL)
    code = await process.wait()
    await process.release()
    return code
