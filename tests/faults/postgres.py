"""A PostgreSQL server that can be killed, stopped and started again, also on a small disk that fills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs
import psycopg
import trio

from sandbox.demo.processes import free_port
from sandbox.postgres import init, new_folder, server_command, url_of
from tests.postgres import required_binaries

START_S = 30.0
# Flushed to the disk as in production, and a start after a crash does not open each file for that.
SETTINGS = {"listen_addresses": "127.0.0.1", "fsync": "on", "recovery_init_sync_method": "syncfs"}
SMALL_MIB = 64
SMALL_SETTINGS = {"min_wal_size": "2MB", "max_wal_size": "8MB"}
SMALL_OPTIONS = ("--wal-segsize=1",)


@attrs.frozen
class Disk:
    """A small file system in memory."""

    folder: Path
    """Where it is, for this process."""
    enter: list[str]
    """The start of a command line whose process sees it."""

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "ballast").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Remove what fills it."""
        (self.folder / "ballast").unlink()


@attrs.define(eq=False)
class FaultyPostgres:
    """The server in a folder, with its processes."""

    binaries: Path
    folder: Path
    as_user: list[str]
    port: int
    settings: Mapping[str, str]
    disk: Disk | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database's URL, by the server's Unix socket."""
        return f"{url_of(self.folder)}&port={self.port}"

    def start(self) -> None:
        """Start the server; call `wait` before it is used.

        The thread that calls this must outlive the server, which ends with it.
        """
        command = [*server_command(self.binaries, self.folder, self.as_user), "-p", str(self.port)]
        command += [f"--{name}={value}" for name, value in self.settings.items()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def wait(self) -> None:
        """Return when the server accepts connections."""
        until_s = time.monotonic() + START_S
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url).close()
                return
            assert time.monotonic() < until_s, (self.folder / "log").read_text()
            time.sleep(0.02)

    def execute(self, *statements: str) -> list[tuple[object, ...]]:
        """Run statements in one transaction, and return the rows of the last one."""
        with psycopg.connect(self.url) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the server."""
        assert self.process is not None
        for pid in [self.process.pid, *_children(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill all processes of the server, as the kernel does without memory."""
        assert self.process is not None
        # Stopped first, or it would start others.
        self.process.send_signal(signal.SIGSTOP)
        children = _children(self.process.pid)
        self.signal(signal.SIGKILL)
        self.process.wait()
        # A new server waits for none of the old one's memory.
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            time.sleep(0.005)


async def kill_and_restart(server: FaultyPostgres, times: int) -> None:
    """Kill the server and start it again, so many times."""
    for _ in range(times):
        await trio.sleep(0.7)
        await trio.to_thread.run_sync(server.kill)
        server.start()
        await trio.to_thread.run_sync(server.wait)
    await trio.sleep(0.5)


@contextmanager
def faulty_postgres(*, small: str = "") -> Iterator[FaultyPostgres]:
    """A running server; `small` is its folder that is on a small disk, `data` or `wal`."""
    binaries = required_binaries()
    folder, as_user = new_folder()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        settings = SETTINGS | (SMALL_SETTINGS if small else {})
        server = FaultyPostgres(binaries, folder, as_user, free_port(), settings)
        options = [f"--waldir={folder / 'wal'}"]
        if small:
            server.disk = stack.enter_context(_small_disk(folder / small, folder.stat().st_uid))
            server.as_user = [*server.disk.enter, *as_user]
            options += SMALL_OPTIONS
        stack.callback(_end, server)
        init(binaries, folder, server.as_user, *options)
        server.start()
        server.wait()
        yield server


@contextmanager
def _small_disk(folder: Path, owner: int) -> Iterator[Disk]:
    """Mount a file system in a mount namespace, which ends with this process."""
    folder.mkdir()
    options = f"size={SMALL_MIB}m,mode=700,uid={owner}"
    script = f"mount -t tmpfs -o {options} hawse-test {folder} && echo mounted && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
        # `cat` ends with its input.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        namespace = Path(f"/proc/{holder.pid}")
        inside = namespace / "root" / folder.relative_to("/")
        yield Disk(inside, ["nsenter", f"--mount={namespace}/ns/mnt"])


def _end(server: FaultyPostgres) -> None:
    if server.process is not None and server.process.poll() is None:
        server.kill()


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may contain blanks.
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(status.parent.name))
    return found
