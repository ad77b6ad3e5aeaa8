"""A PostgreSQL server that can be killed, stopped and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import psycopg

from tests.postgres import init, new_folder, required_binaries

START_S = 30.0
# Flushed to the disk as in production.
SETTINGS = """
listen_addresses = ''
fsync = on
"""


@attrs.define(eq=False)
class FaultyPostgres:
    """The server in a folder, with its processes."""

    binaries: Path
    folder: Path
    as_user: list[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start the server; call `wait` before it is used.

        The thread that calls this must outlive the server, which ends with it.
        """
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.as_user, self.binaries / "postgres", "-D", self.folder / "data", "-k", self.folder],
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


@contextmanager
def faulty_postgres() -> Iterator[FaultyPostgres]:
    """A running server."""
    binaries = required_binaries()
    folder, as_user = new_folder()
    server = FaultyPostgres(binaries, folder, as_user)
    try:
        init(binaries, folder, as_user)
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)
        server.start()
        server.wait()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
        shutil.rmtree(folder)


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may contain blanks.
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(status.parent.name))
    return found
