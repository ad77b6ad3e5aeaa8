"""A failover to a standby that was behind: the hub stops until an operator accepts what is lost."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import trio
from click.testing import CliRunner

from audit.errors import AuditUnavailable
from proxy.cli.admin import admin
from proxy.hub.home.databases import noted_applied
from proxy.hub.home.datadir import DataDir
from proxy.hub.resources import Records
from proxy.hub.store.engines.postgres_address import PostgresAddress
from sandbox.demo.processes import free_port
from sandbox.postgres import new_folder
from tests.audit.events import call
from tests.faults.figures import note
from tests.faults.postgres import FaultyPostgres, faulty_postgres
from tests.proxy.hub.postgres_hub import config_of, opened

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]

WAIT_S = 30.0


@contextmanager
def standby_of(primary: FaultyPostgres) -> Iterator[FaultyPostgres]:
    """A running standby, for which no commit waits."""
    folder, as_user = new_folder()
    standby = FaultyPostgres(primary.binaries, folder, as_user, free_port(), primary.settings)
    try:
        source = ["-h", primary.folder, "-p", str(primary.port), "-U", "postgres"]
        command = [*as_user, primary.binaries / "pg_basebackup", *source]
        command += ["-D", folder / "data", "-R", "-c", "fast"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        standby.start()
        standby.wait()
        yield standby
    finally:
        if standby.process is not None and standby.process.poll() is None:
            standby.kill()
        shutil.rmtree(folder)


def execute(server: FaultyPostgres, *statements: str) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    with psycopg.connect(server.url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
            rows = cursor.fetchall() if cursor.description else []
    return rows


def receives(standby: FaultyPostgres) -> bool:
    return execute(standby, "SELECT count(*) FROM pg_stat_wal_receiver") == [(1,)]


async def until(condition: Callable[[], bool]) -> float:
    """Wait for a condition, and return how long that took."""
    begin = time.monotonic()
    with trio.fail_after(WAIT_S):
        while not await trio.to_thread.run_sync(condition):  # noqa: ASYNC110 - a server decides it
            await trio.sleep(0.02)
    return round(time.monotonic() - begin, 2)


async def recorded(records: Records) -> bool:
    try:
        await records.recorder.intent(call())
    except AuditUnavailable:
        return False
    return True


async def test_a_lost_revocation_is_stopped_at_until_it_is_accepted(tmp_path: Path) -> None:
    with faulty_postgres() as primary, standby_of(primary) as standby:
        hosts = f"host={primary.folder},{standby.folder}&port={primary.port},{standby.port}"
        url = f"postgresql://postgres@/postgres?{hosts}"
        config = config_of(tmp_path / "hub", PostgresAddress(url))
        data = DataDir(config.data_dir)
        async with (
            opened(config) as records,
            trio.open_nursery() as nursery,
        ):
            directory, watch = records.directory, records.watch
            assert watch is not None
            nursery.start_soon(directory.run_poll)
            nursery.start_soon(watch.run_memory)
            await directory.change(lambda store: store.add_team("sre"))
            # As the event of a hub's start: its epoch of the trail is not lost.
            assert await recorded(records)
            await directory.change(lambda store: store.add_agent("sre-1", owner="ada", teams=["sre"]))
            kept = f"SELECT version >= {directory.current.version.number} FROM directory"
            await until(lambda: execute(standby, kept) == [(True,)])
            execute(standby, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
            await until(lambda: not receives(standby))
            # What the primary alone has.
            await directory.change(lambda store: store.lock_agent("sre-1"))
            assert await recorded(records)
            locked = directory.current.version
            await until(lambda: noted_applied(data) == locked)
            await trio.to_thread.run_sync(primary.kill)
            await trio.to_thread.run_sync(execute, standby, "SELECT pg_promote()")
            promoted = time.monotonic()
            while not directory.refusal() or directory.current.version == locked:
                # The revocation holds, or nothing is served.
                assert not directory.current.agents_by_name["sre-1"].active or directory.refusal()
                await trio.sleep(0.001)
            noticed_s = round(time.monotonic() - promoted, 2)
            assert directory.current.agents_by_name["sre-1"].active
            assert "has lost changes" in directory.refusal()
            await directory.change(lambda store: store.lock_agent("sre-1"))
            assert directory.refusal()
            arguments = ["--data-dir", str(data.path), "database", "accept", "--yes"]
            done = await trio.to_thread.run_sync(CliRunner().invoke, admin, arguments)
            assert done.exit_code == 0, done.output
            accepted_s = await until(lambda: not directory.refusal())
            assert not directory.current.agents_by_name["sre-1"].active
            with trio.fail_after(WAIT_S):
                while not await recorded(records):  # noqa: ASYNC110 - a thread tries again
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        note("a failover that loses a lock", "", noticed_s=noticed_s, served_again_s=accepted_s)
