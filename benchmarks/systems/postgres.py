"""Hawse with its directory and its trail in PostgreSQL, which flushes to the disk as in production."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemon, Daemons
from benchmarks.system import Missing, System, Upstream
from benchmarks.systems.hawse import enrolled
from sandbox.postgres import WHEEL, find_binaries, init, new_folder, server_command, url_of

NAME = "hawse-postgres"


@attrs.frozen
class Database:
    """A running server."""

    url: str
    daemon: Daemon


@contextmanager
def open_database(folder: Path) -> Iterator[Database]:
    """Run a PostgreSQL whose log is in `folder`; raises Missing."""
    binaries = find_binaries()
    if binaries is None:
        raise Missing(f"{NAME}: no PostgreSQL: apt-get install postgresql, or pip install {WHEEL}")
    home, as_user = new_folder()
    try:
        init(binaries, home, as_user)
        command = [*server_command(binaries, home, as_user), "-c", "listen_addresses="]
        with Daemons(folder) as daemons:
            daemon = daemons.start("database", command, cwd=home)
            daemon.wait_for("ready to accept connections")
            yield Database(url_of(home), daemon)
    finally:
        shutil.rmtree(home)


@contextmanager
def open_on_postgres(folder: Path, upstream: Upstream) -> Iterator[System]:
    """Run hub and relay on a database of their own, whose processes are counted too."""
    with (
        open_database(folder) as database,
        enrolled(folder, upstream, NAME, {"HAWSE_HUB_DATABASE_URL": database.url}) as found,
    ):
        processes = {**found.system.processes, "database": database.daemon.process.pid}
        yield attrs.evolve(found.system, processes=processes)
