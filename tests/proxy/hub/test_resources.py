"""A hub's data folder beside a directory in PostgreSQL."""

from __future__ import annotations

import json
import time
from pathlib import Path

import attrs
import psycopg
import pytest
from click.testing import CliRunner

from audit.errors import AnotherTrail
from audit.record import Response
from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.hub.audit import accept
from proxy.cli.group import build_group
from proxy.hub.admin.data.backup import BackupError, backup
from proxy.hub.check import check_hub
from proxy.hub.home.config import HubConfig
from proxy.hub.home.databases import noted_address
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.local_admin import AdminEndpoint
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.home.sections.database import DatabaseConfig
from proxy.hub.relays.registry import Registry
from proxy.hub.resources import open_home, open_records, open_replays
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from tests.audit.events import call
from tests.fakes.databases import StoreInPostgres
from tests.proxy.hub.postgres_hub import config_of, opened, start, variables


@pytest.fixture
def config(tmp_path: Path, in_postgres: PostgresAddress) -> HubConfig:
    return config_of(tmp_path / "hub", in_postgres)


async def test_directory_and_trail_are_in_postgresql_and_the_rest_in_the_folder(
    config: HubConfig,
) -> None:
    assert await start(config, "sre") == {"sre"}
    assert await start(config) == {"sre"}
    data = DataDir(config.data_dir)
    assert noted_address(data) == config.database.address
    assert not data.store_file.exists()
    assert not data.audit_file.exists()
    _, findings = check_hub(None, variables(config))
    assert (findings.fatal, findings.seen["database"]) == ([], "PostgreSQL")


async def test_the_used_tokens_are_where_the_directory_is(config: HubConfig, tmp_path: Path) -> None:
    in_file = attrs.evolve(config, data_dir=tmp_path / "other", database=DatabaseConfig())
    until = time.time() + 60
    for each, file_is_there in ((config, False), (in_file, True)):
        async with open_home(each, replace=False) as home, open_records(each, home, Registry()):
            for fresh in (True, False):
                async with open_replays(each, home) as store:
                    assert await store.enter("assertion", "a", "j", until, time.time()) is fresh
            assert home.data.seen_file.exists() is file_is_there


async def test_a_folder_is_of_one_directory(config: HubConfig) -> None:
    other = HubConfig(data_dir=config.data_dir, public_url=config.public_url, listen=config.listen)
    await start(config)
    data = DataDir(config.data_dir)
    told = rf"are in PostgreSQL, as {data.address_file} says: set database\.url, or remove that file"
    with pytest.raises(DataDirError, match=told):
        await start(other)
    _, findings = check_hub(None, variables(other))
    assert len(findings.faults) == 1
    data.address_file.unlink()
    data.store_file.touch()
    with pytest.raises(DataDirError, match=r"hub\.db has this hub's teams, .* database\.url names another"):
        await start(config)


async def test_an_empty_database_does_not_replace_that_of_a_hub_that_has_run(
    config: HubConfig, tables_in_postgres: StoreInPostgres, postgres_database: str
) -> None:
    await start(config, "sre")
    admin = DataDir(config.data_dir).admin
    admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
    assert await start(config) == {"sre"}
    # As where database.url names another database.
    tables_in_postgres.empty()
    with pytest.raises(
        DataDirError, match=r"this one has run before: correct database\.url, restore"
    ) as told:
        await start(config)
    _, findings = check_hub(None, variables(config))
    assert findings.faults == [str(told.value)]
    # Without tables too.
    _, findings = check_hub(None, variables(config_of(config.data_dir, PostgresAddress(postgres_database))))
    assert findings.faults == [str(told.value)]
    admin.endpoint_file.unlink()
    assert await start(config) == set()


def run(config: HubConfig, *command: str) -> str:
    """Run `hawse audit` on the folder, and return what it prints."""
    done = CliRunner().invoke(build_group(), ["audit", *command, "--data-dir", str(config.data_dir)])
    assert done.exit_code == 0, done.output
    return done.output


async def test_a_trail_in_postgresql_is_written_by_the_hub_and_read_on_its_machine(config: HubConfig) -> None:
    event = call()
    async with opened(config) as records:
        assert records.members is not None
        epoch = records.members.me.epoch
        await records.recorder.intent(event)
        records.recorder.complete(event.completed(event.ts, resp=Response(200)))
    listed = [json.loads(line) for line in run(config, "list", "--json", "--agent", "robot").splitlines()]
    assert [(row["eid"], row["phase"], row["epoch"], row["seq"]) for row in listed] == [
        (event.eid, "intent", epoch, 1),
        (event.eid, "complete", epoch, 2),
    ]
    assert f"rows      {epoch}.1 (intent) and {epoch}.2 (complete)" in run(config, "show", f"{epoch}.2")
    assert event.eid in run(config, "show", event.eid)
    assert run(config, "prune", "--keep", "90d", "--yes") == "no event is that old\n"
    # The reads by operators are in the epoch that all of them share.
    reads = [json.loads(line) for line in run(config, "list", "--json", "--kind", "audit.read").splitlines()]
    assert [(row.get("epoch"), row["seq"]) for row in reads] == [(None, n) for n in range(1, 5)]
    unknown = CliRunner().invoke(
        build_group(), ["audit", "list", "--agent", "robto", "--data-dir", str(config.data_dir)]
    )
    assert "did you mean robot?" in unknown.output


async def test_an_older_state_of_the_trail_in_postgresql_is_accepted_by_an_operator(
    config: HubConfig,
) -> None:
    await start(config)
    async with opened(config) as records:
        await records.recorder.intent(call())
    address = config.database.address
    assert address is not None
    with psycopg.connect(address.url, autocommit=True) as connection:
        connection.execute("DELETE FROM trail_events")
    with pytest.raises(AnotherTrail, match="an older state of the audit trail"):
        await start(config)
    done = CliRunner().invoke(accept, ["--yes"], obj=Reach(None, config.data_dir))
    assert done.exit_code == 0, done.output
    assert await start(config) == set()
    assert "audit.gap" in run(config, "list", "--kind", "audit.gap")


async def test_a_backup_of_the_folder_alone_is_refused(config: HubConfig, tmp_path: Path) -> None:
    await start(config)
    with pytest.raises(
        BackupError,
        match=r"are in PostgreSQL: back that up with pg_dump, and copy the sealing key .* and tls/",
    ):
        backup(config.data_dir, tmp_path / "archive")


async def test_the_folder_names_a_directory_only_once_that_was_opened(
    config: HubConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "snapshot", lambda store: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await start(config)
    assert noted_address(DataDir(config.data_dir)) is None
