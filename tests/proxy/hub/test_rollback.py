"""A hub whose database has lost changes that it had applied, and what an operator does about it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from audit.postgres.reader import PostgresReader
from audit.query import Query
from audit.record import Kind, utc
from proxy.cli.admin import admin
from proxy.hub.admin.metrics.hub import DatabaseCollector
from proxy.hub.authorize.events import Trail
from proxy.hub.check import check_hub
from proxy.hub.health.database_watch import DatabaseWatch
from proxy.hub.home.config import HubConfig
from proxy.hub.home.databases import note_applied, noted_applied
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.sections.database import DatabaseConfig
from proxy.hub.resources import Records
from proxy.hub.store.directory import open_directory
from proxy.hub.store.engines import postgres as engine_module
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.versions.lineage import Lineage
from proxy.hub.store.versions.version import Version
from tests.fakes.databases import lose, run
from tests.proxy.hub.postgres_hub import config_of, opened, variables


@pytest.fixture
def config(tmp_path: Path, in_postgres: PostgresAddress) -> HubConfig:
    return config_of(tmp_path / "hub", in_postgres)


@asynccontextmanager
async def started(config: HubConfig) -> AsyncIterator[tuple[Records, DatabaseWatch]]:
    """A hub up to its listeners, with the watch over its database."""
    async with opened(config) as records:
        assert records.watch is not None
        yield records, records.watch


async def poll(records: Records) -> None:
    """Poll once, as the hub does every half second."""
    await trio.to_thread.run_sync(records.directory._refresh)
    records.directory._notify()


@pytest.fixture
def events(in_postgres: PostgresAddress) -> Callable[[], list[str]]:
    """The notes of this test's events of losses, in a trail that other tests share."""
    query = Query(kinds=(Kind.DIRECTORY_ROLLED_BACK,), since=utc(time.time()))

    def read() -> list[str]:
        with closing(PostgresReader(lambda: in_postgres.url)) as reader:
            return [json.loads(stored.line)["note"] for stored in reader.query(query)]

    return read


def accept(config: HubConfig) -> str:
    arguments = ["--data-dir", str(config.data_dir), "database", "accept", "--yes"]
    done = CliRunner().invoke(admin, arguments)
    assert done.exit_code == 0, done.output
    return done.stderr


async def test_a_running_hub_refuses_what_is_new_until_the_loss_is_accepted(
    config: HubConfig,
    in_postgres: PostgresAddress,
    events: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started(config) as (records, watch):
        directory = records.directory
        await directory.change(lambda store: store.add_team("kept"))
        before = directory.current.version
        await directory.change(lambda store: store.add_team("applied"))
        applied = directory.current.version
        note_applied(DataDir(config.data_dir), applied)
        assert directory.refusal() == ""
        lose(in_postgres, back_to=before)
        run(in_postgres, "delete from teams where name = 'applied'")
        await poll(records)
        # All rows are read, and not only those that were touched since.
        assert set(directory.current.teams_by_name) == {"kept"}
        assert "has lost changes" in directory.refusal()
        # What an operator repeats does not end it, also where the lost number is given again.
        for name in ("again", "more"):
            await directory.change(lambda store, name=name: store.add_team(name))
            assert directory.current.version.number > before.number
            assert directory.refusal()
        [logged] = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert f"this hub has applied version {applied.number} of the directory" in logged.getMessage()
        assert watch.lineage.loss is not None
        assert watch.lineage.applied == applied
        metrics = CollectorRegistry()
        metrics.register(DatabaseCollector(watch))
        assert metrics.get_sample_value("hawse_directory_rolled_back") == 1
        assert metrics.get_sample_value("hawse_database_clock_error_seconds") == 0
        assert "accepted: the hub goes on" in accept(config)
        await poll(records)
        assert metrics.get_sample_value("hawse_directory_rolled_back") == 0
        assert directory.refusal() == ""
        assert directory.current.version.number == applied.number + 2
        assert set(directory.current.teams_by_name) == {"kept", "again", "more"}
    [note] = events()
    assert note.startswith(f"the database has lost changes: this hub has applied version {applied.number}")


async def test_no_call_is_decided_by_what_a_database_has_after_a_loss(
    config: HubConfig, in_postgres: PostgresAddress
) -> None:
    async with started(config) as (records, _):
        directory = records.directory
        before = directory.current.version
        await directory.change(lambda store: store.add_team("applied"))
        lose(in_postgres, back_to=before)
        # The thread has replaced the snapshot, and the loop has called no listener yet.
        await trio.to_thread.run_sync(directory._refresh)
        assert directory.current.version == before
        assert directory.refusal()


async def test_a_restart_does_not_accept_a_loss(
    config: HubConfig, in_postgres: PostgresAddress, events: Callable[[], list[str]]
) -> None:
    async with started(config) as (records, _):
        before = records.directory.current.version
        await records.directory.change(lambda store: store.add_team("applied"))
        note_applied(DataDir(config.data_dir), records.directory.current.version)
    async with started(config) as (records, _):
        assert records.directory.refusal() == ""
    lose(in_postgres, back_to=before)
    for _ in range(2):
        async with started(config) as (records, watch):
            assert records.directory.refusal()
            assert watch.lineage.loss is not None
        _, findings = check_hub(None, variables(config))
        assert findings.fatal == []
        assert "then run `hawse admin database accept`" in findings.refused[0]
    accept(config)
    async with started(config) as (records, _):
        assert records.directory.refusal() == ""
    _, findings = check_hub(None, variables(config))
    assert findings.refused == []
    assert len(events()) == 2


async def test_a_loss_is_accepted_by_the_configuration(
    config: HubConfig, in_postgres: PostgresAddress, events: Callable[[], list[str]]
) -> None:
    config = attrs.evolve(config, database=DatabaseConfig(in_postgres.url, accept_rollback=True))
    async with started(config) as (records, _):
        directory = records.directory
        before = directory.current.version
        await directory.change(lambda store: store.add_team("applied"))
        applied = directory.current.version
        lose(in_postgres, back_to=before)
        await poll(records)
        await poll(records)
        assert directory.refusal() == ""
        assert directory.current.version.number == applied.number + 1
    assert [note.endswith("; accepted") for note in events()] == [True]


async def test_a_copy_in_memory_is_no_loss(config: HubConfig) -> None:
    async with started(config) as (records, watch):
        directory = records.directory
        await directory.change(lambda store: store.add_team("sre"))
        applied = watch.lineage.applied
        await directory.change_in_memory(lambda store: store.add_team("kept"), lambda: None)
        assert directory.current.version != applied
        assert watch.lineage.applied == applied
        await directory.change(lambda store: store.add_team("later"))
        assert directory.refusal() == ""
        assert watch.lineage.applied == directory.current.version


@asynccontextmanager
async def watching(
    address: PostgresAddress, remember: Callable[[Version], None]
) -> AsyncIterator[tuple[DatabaseWatch, trio.Nursery]]:
    """A watch over a directory without the rest of a hub."""
    async with open_directory(address, org="main", clock=time.time) as directory:
        watch = DatabaseWatch(directory, Lineage(None), Trail("main").hub, lambda event: None, remember)
        async with trio.open_nursery() as nursery:
            yield watch, nursery
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Return once a thread has done something, while virtual time passes."""
    while not condition():  # noqa: ASYNC110 - a thread decides it
        await trio.sleep(0.1)


async def test_the_applied_version_is_written_when_it_changes(
    in_postgres: PostgresAddress,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = DataDir.open(tmp_path / "hub")
    written: list[Version] = []

    def remember(version: Version) -> None:
        note_applied(data, version)
        written.append(version)

    first, second = Version(1, "a"), Version(2, "b")
    async with watching(in_postgres, remember) as (watch, nursery):
        nursery.start_soon(watch.run_memory)
        watch.lineage.applied = first
        await until(lambda: bool(written))
        assert noted_applied(data) == first
        data.path.rename(tmp_path / "away")
        watch.lineage.applied = second
        await until(lambda: bool(caplog.records))
        assert "cannot write" in caplog.records[0].getMessage()
        (tmp_path / "away").rename(data.path)
        assert noted_applied(data) == first
        await until(lambda: len(written) == 2)
        assert noted_applied(data) == second
        await trio.sleep(10)
        assert written == [first, second]
        assert len(caplog.records) == 1


async def test_the_clock_is_compared_while_the_hub_runs(
    in_postgres: PostgresAddress,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = time.time
    monkeypatch.setattr(engine_module, "wall_clock", lambda: there() - 20)
    async with watching(in_postgres, lambda version: None) as (watch, nursery):
        nursery.start_soon(watch.run_clock)
        await until(lambda: -21 < watch.clock_error_s < -19)


async def test_a_clock_that_is_off_is_logged_once_an_hour(
    in_postgres: PostgresAddress, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(in_postgres, lambda version: None) as (watch, _):
        for error_s in (30.0, -30.0):
            watch.note_clock(error_s)
        assert caplog.records == []
        for _ in range(12):
            watch.note_clock(-31.0)
            await trio.sleep(600)
        [first, _] = [record.getMessage() for record in caplog.records]
        assert first.startswith("the clock of this machine is 31 s behind that of the PostgreSQL database")
