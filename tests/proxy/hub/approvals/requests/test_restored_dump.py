from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from proxy.hub.approvals.request import State
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.postgres import PostgresServer, required_binaries
from tests.proxy.hub.approvals.requests.bench import grant, opened, populate


@pytest.mark.parametrize("into", ["another database", "the same database"])
def test_a_grant_in_a_dump_of_postgresql_serves_no_call(
    postgres: PostgresServer, postgres_database: str, tmp_path: Path, into: str
) -> None:
    """Not even where the directory has not changed since the dump, so that no version shows the restore."""
    address = PostgresAddress(postgres_database)
    request_id = grant(address, populate(address))
    binaries, dump = required_binaries(), tmp_path / "dump"
    subprocess.run([binaries / "pg_dump", "-Fc", "-f", dump, postgres_database], check=True)
    with opened(address) as table:
        assert table.use(request_id, 0)
        table.spend(request_id)
    with postgres.new_database(template="template0") as name:
        target = postgres.url(name) if into == "another database" else postgres_database
        clean = [] if into == "another database" else ["--clean"]
        subprocess.run([binaries / "pg_restore", "--exit-on-error", *clean, "-d", target, dump], check=True)
        with opened(PostgresAddress(target)) as table:
            assert not table.use(request_id, 0)
            request = table.get(request_id)
            assert (request.state, request.because) == (
                State.CANCELLED,
                "the database was restored from a backup",
            )
            table.sweep()
            assert [each.state for each in table.look(60)[0]] == [State.CANCELLED]
